"""A gRPC client for tests without sockets, and an application that writes down what it is told."""

from collections import deque
from dataclasses import dataclass, field

from h2_peer import CODES, REQUEST, Fields, Peer, data
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, RstStreamFrame

from trio_broker.rpc import frames
from trio_broker.rpc.application import Job
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.call import Call
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.request import RequestParser
from trio_broker.rpc.status import Refusals


@dataclass(frozen=True)
class Method:
    """As much of a method as a call looks at."""

    name: str
    request_streams: bool = False


ROUTES = {
    "/toy.Toy/Echo": Method("Echo"),
    "/toy.Toy/Collect": Method("Collect", request_streams=True),
}


class App:
    """The application of the calls: it does nothing but remember."""

    connection_id = "test"
    at_once_bytes = 1 << 30
    identity = None

    def __init__(self) -> None:
        self.refusals = Refusals()
        self.calls: list[Call] = []
        """All calls that were opened, in order."""
        self.ready_calls: list[Call] = []
        self.over_calls: list[Call] = []
        self.began_calls: list[Call] = []
        self.received_calls: list[Call] = []
        self.jobs: deque[Job] = deque()
        """What is to be done in a thread."""

    def opened(self, call: Call) -> None:
        self.calls.append(call)
        if call.method is not None and call.method.request_streams:
            call.inbox = deque()

    def ready(self, call: Call) -> None:
        self.ready_calls.append(call)

    def received(self, call: Call) -> None:
        self.received_calls.append(call)

    def began(self, call: Call) -> None:
        self.began_calls.append(call)

    def aside(self, job: Job) -> None:
        self.jobs.append(job)

    def run_jobs(self) -> None:
        """Do what is to be done in a thread."""
        while self.jobs:
            job = self.jobs.popleft()
            work = job.begin()
            if work is not None:
                job.done(work())

    def over(self, call: Call) -> None:
        self.over_calls.append(call)

    def expire(self, call: Call) -> None:
        raise NotImplementedError


@dataclass
class Answer:
    """What a client got for one stream."""

    headers: dict[bytes, bytes] | None = None
    body: bytes = b""
    trailers: dict[bytes, bytes] | None = None
    reset: str | None = None
    ended: bool = False

    @property
    def code(self) -> int:
        return int((self.trailers or {})[b"grpc-status"])

    @property
    def text(self) -> str:
        return (self.trailers or {}).get(b"grpc-message", b"").decode()


@dataclass
class _Block:
    stream_id: int
    end: bool
    data: bytes = field(default=b"")


class GrpcPeer(Peer):
    """A client of calls."""

    def __init__(self, limits: Limits | None = None, budgets: Budgets | None = None, *, connect: bool = True) -> None:
        self.app = App()
        self.budgets = budgets
        self.parser = RequestParser(ROUTES.get)
        self.answers: dict[int, Answer] = {}
        super().__init__(limits, connect=connect)

    def make_connection(self, limits: Limits) -> Connection:
        return Connection(self._new_call, self.parser.parse, self._on_output, limits, self.budgets)

    def _new_call(self, connection: Connection, stream_id: int) -> Call:
        return Call(self.app, connection, stream_id)

    def request(
        self, stream_id: int, *messages: bytes, method: str = "Echo", end: bool = True, more: Fields = ()
    ) -> bytes:
        """Return a request with whole messages. ``method`` is the toy's, or a whole path."""
        path = method if method.startswith("/") else f"/toy.Toy/{method}"
        fields = [(name, path if name == ":path" else value) for name, value in REQUEST]
        body = b"".join(framed(message) for message in messages)
        begin = self.headers(stream_id, [*fields, *more], end=end and not messages)
        return begin + (data(stream_id, body, end=end) if messages else b"")

    def call(self, stream_id: int, *messages: bytes, **how: object) -> Call:
        """Begin a call; return the server's end of it."""
        self.connection.receive(self.request(stream_id, *messages, **how))
        return self.app.calls[-1]

    def answer(self, stream_id: int, *sent: bytes) -> Answer:
        """Let the server receive bytes; return what a stream has got so far."""
        block: _Block | None = None
        for frame in self.send(*sent):
            block = self._take(frame, block)
        assert block is None
        return self.answers.setdefault(stream_id, Answer())

    def _take(self, frame: Frame, block: _Block | None) -> _Block | None:
        answer = self.answers.setdefault(frame.stream_id, Answer())
        match frame:
            case HeadersFrame() | ContinuationFrame():
                if isinstance(frame, HeadersFrame):
                    assert not answer.ended
                    block = _Block(frame.stream_id, "END_STREAM" in frame.flags)
                assert block is not None
                assert block.stream_id == frame.stream_id
                block.data += frame.data
                if "END_HEADERS" not in frame.flags:
                    return block
                fields = dict(self.decoder.decode(block.data, raw=True))
                if block.end:
                    answer.trailers, answer.ended = fields, True
                else:
                    assert answer.headers is None
                    answer.headers = fields
            case DataFrame():
                assert answer.headers is not None
                assert not answer.ended
                answer.body += frame.data
                answer.ended = "END_STREAM" in frame.flags
            case RstStreamFrame():
                if answer.reset is None:  # who goes on after the end is told again (section 5.4.2)
                    answer.reset = CODES[frame.error_code]
        return None


def deframed(body: bytes) -> list[bytes]:
    """Take apart uncompressed messages."""
    found = []
    while body:
        assert body[0] == 0
        size = int.from_bytes(body[1:5])
        assert len(body) >= 5 + size
        found.append(body[5 : 5 + size])
        body = body[5 + size :]
    return found


def window(peer: Peer, size: int) -> None:
    """Give new streams this window, and the connection the largest."""
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: size}))
    peer.send(frames.window_update(0, frames.WINDOW_MAX - peer.connection.send_window))
