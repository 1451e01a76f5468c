"""The Python client's end of a connection, told anything by a server.

Owns:      what a server may send, and what must hold of the client's calls.
Not here:  sockets (trio_broker/client/channel.py).
"""

from trio_broker.client.exchange import Exchange, Trailers, frame
from trio_broker.client.statuses import raise_for
from trio_broker.client.wire import Wire
from trio_broker.errors import BrokerError, ConnectionLost
from trio_broker.rpc import frames
from trio_broker.rpc.hpack import INDEXED_STATUS_200, literal

from .choices import Choices
from .ledger import Cutter

CALLS_MAX = 8
HEADERS = [
    *[(b":status", b"200"), (b":status", b"103"), (b":status", b"502"), (b"content-type", b"application/grpc")],
    *[(b"content-type", b"text/html"), (b"grpc-status", b"0"), (b"grpc-status", b"14"), (b"grpc-status", b"99")],
    *[(b"grpc-message", b"a%20b%"), (b"grpc-status-details-bin", b"CA4SAXg"), (b"x", b"y")],
]
NUMBERS = [0, 1, 1000, 65_535, 16_384, 2**24 - 1, 2**31 - 1, 2**32 - 1]
UNREAD_MAX = 1024 * 1024 + 64 * 1024 * 1024 + 5


class Session:
    """A client, the calls that it has made, and the server that answers them."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.wire = Wire("localhost")
        self.calls: list[Exchange] = []
        self.ended: set[Exchange] = set()
        self._sent = Cutter(len(frames.PREFACE))
        self._window = frames.WINDOW_INITIAL
        self._told_to_close = False
        self.read()

    # -- the server -------------------------------------------------------------------------------------------

    def tell(self, data: bytes) -> bool:
        """Let the client receive bytes; say whether the connection can go on."""
        at = self.choices.number(1) * len(data) // 255 if data else 0
        for piece in (data[:at], data[at:]):
            try:
                news = self.wire.receive(piece)
            except ConnectionLost:
                return False
            assert len(news) == len(set(news))
            assert set(news) <= set(self.calls)
        return True

    def some_stream(self) -> int:
        return 1 + 2 * self.choices.below(len(self.calls) + 1)

    def raw(self) -> bytes:
        return self.choices.piece()

    def any_frame(self) -> bytes:
        kind, flags = self.choices.below(12), self.choices.number(1)
        return frames.frame(kind, flags, self.choices.below(2) * self.some_stream(), self.choices.piece())

    def headers(self) -> bytes:
        choices = self.choices
        flags = choices.below(2) * frames.END_STREAM
        fields = [HEADERS[choices.below(len(HEADERS))] for _ in range(choices.below(5))]
        block = INDEXED_STATUS_200 * choices.below(2) + b"".join(literal(*field) for field in fields)
        if choices.below(4) == 3:
            name = HEADERS[choices.below(len(HEADERS))][0]
            block += literal(name, choices.piece() * (1 + choices.below(40)))
        return frames.headers(flags, self.some_stream(), block)

    def data(self) -> bytes:
        choices = self.choices
        message = bytes(frame(bytes(NUMBERS[choices.below(5)])))
        message = message[: 1 + len(message) * choices.number(1) // 255]
        if choices.below(8) == 7:
            message = choices.bytes(5) + message[5:]
        parts = [message[at : at + frames.FRAME_MAX_BYTES] for at in range(0, len(message), frames.FRAME_MAX_BYTES)]
        stream_id = self.some_stream()
        return b"".join(frames.frame(frames.DATA, choices.below(8) == 7, stream_id, part) for part in parts)

    def settings(self) -> bytes:
        name, value = self.choices.below(8), NUMBERS[self.choices.below(len(NUMBERS))]
        return frames.settings({name: value})

    def reset(self) -> bytes:
        return frames.reset(self.some_stream(), self.choices.below(16))

    def open_window(self) -> bytes:
        stream_id = self.choices.below(2) * self.some_stream()
        return frames.window_update(stream_id, NUMBERS[self.choices.below(7)])

    def goaway(self) -> bytes:
        return frames.goaway(self.some_stream() if self.choices.below(2) else frames.STREAM_ID_MAX, 0)

    # -- the client -------------------------------------------------------------------------------------------

    def act(self) -> None:
        match self.choices.below(6):
            case 0:
                self.call()
            case 1 if call := self.some_call():
                data = frame(bytes(NUMBERS[self.choices.below(5)]))
                if not call.sent and call.end is None:
                    sent = self.wire.send(call, data, last=bool(self.choices.below(2)))
                    assert 0 <= sent <= len(data)
            case 2 if call := self.some_call():
                assert all(isinstance(message, bytes) for message in self.wire.take(call))
                assert not call.messages
            case 3 if call := self.some_call():
                self.wire.leave(call)
                assert call.end is not None
            case 4 if call := self.some_call():
                self.wire.end(call)
            case 5:
                self.read()

    def call(self) -> None:
        if len(self.calls) < CALLS_MAX:
            try:
                self.calls.append(self.wire.request("/toy.Toy/Echo", [None, 1.0, 1e9][self.choices.below(3)]))
            except ConnectionLost as error:
                assert error.retry_after_s is not None  # noqa: PT017

    def some_call(self) -> Exchange | None:
        return self.calls[self.choices.below(len(self.calls))] if self.calls else None

    def read(self) -> None:
        """What the client says is whole frames; how large, the server's settings say."""
        for kind, _, stream_id, payload in self._sent.cut(self.wire.outgoing()):
            assert kind != frames.WINDOW_UPDATE or 0 < int.from_bytes(payload) <= frames.WINDOW_MAX
            assert kind in (frames.SETTINGS, frames.WINDOW_UPDATE, frames.PING) or stream_id & 1
        assert self._sent.whole, "a part of a frame"

    # -- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        wire = self.wire
        assert wire._send_window >= 0, "more was sent than the server takes"
        assert len(wire._in) < frames.FRAME_MAX_BYTES + frames.FRAME_HEADER_BYTES
        assert wire._block is None or len(wire._block) <= 128 * 1024 + frames.FRAME_MAX_BYTES
        assert {call for call in self.calls if call.end is None} == set(wire._exchanges.values())
        for call in self.calls:
            assert 0 <= call.receive_window <= 1024 * 1024
            assert call.held_bytes >= 0
            assert len(call._partial) + sum(map(len, call.messages)) <= UNREAD_MAX
            if call in self.ended:
                assert call.end is not None, "an end was taken back"
            elif call.end is not None:
                self.ended.add(call)

    def end(self) -> None:
        """The connection is lost: every call has ended, with an error that is declared or an answer."""
        lost = self.wire.lose("the end")
        assert set(lost) == set(self.calls) - self.ended
        for call in self.calls:
            assert isinstance(call.end, Trailers | BrokerError)
            try:
                raise_for(call.end)
            except BrokerError as error:
                assert str(error)  # noqa: PT017
        assert not self.wire._exchanges


TELLS = [
    *[Session.raw, Session.any_frame, Session.headers, Session.data, Session.settings, Session.reset],
    *[Session.open_window, Session.goaway],
]
"""Numbered by their place, as in server.py."""


def client(data: bytes) -> None:
    """Play what the bytes say."""
    choices = Choices(data)
    session = Session(choices)
    going = choices.below(8) == 7 or session.tell(frames.settings({}))
    for _ in range(choices.below(4)):
        session.call()
    while going and choices.left:
        move = choices.below(2 * len(TELLS))
        if move < len(TELLS):
            going = session.tell(TELLS[move](session))
        else:
            session.act()
        session.check()
    session.read()
    session.end()
