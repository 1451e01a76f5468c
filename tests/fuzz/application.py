"""The application of a server under test: every kind of handler, and what each is owed by the layer.

Owns:      what is asserted of the order and number of what a handler is told.
Not here:  when it answers (server.py chooses).
"""

from collections import deque
from typing import Any

from grpc_peer import Method
from purerpc import Status, StatusCode

from trio_broker.rpc.call import Call
from trio_broker.rpc.framing import PREFIX_BYTES, framed
from trio_broker.rpc.status import Refusals

ROUTES = {
    f"/toy.Toy/{name}": Method(name, request_streams)
    for name, request_streams in [
        *[("Later", False), ("Now", False), ("Drain", False)],
        *[("Collect", True), ("Feed", True)],
    ]
}
METHODS = [*ROUTES, "/toy.Toy/Nothing"]


class Source:
    """What calls of Drain and of Feed are answered from. A Feed sends back what it is sent."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.retired = False
        self.closed = 0

    def push(self, message: bytes) -> None:
        if not self.call.closed:
            self.messages.append(message)
            self.call.connection.mark(self.call)

    def take(self, call: Call, credit: int) -> bytes:
        assert not self.closed, "asked after its end"
        assert credit > 0
        taken = b""
        while self.messages and len(taken) < credit:
            taken += framed(self.messages.pop(0))
        over = self.retired or (call.feed is self and call.request_ended)
        if over and not self.messages:
            call.send(taken)
            call.finish(Status(StatusCode.UNAVAILABLE, "go on elsewhere") if self.retired else Status(StatusCode.OK))
            return b""
        return taken

    def feed(self) -> None:
        call = self.call
        while call.inbox:
            message = call.take_message()
            call.take(len(message) + PREFIX_BYTES)
            self.messages.append(message)
        call.connection.mark(call)

    def retire(self) -> None:
        self.retired = True
        self.call.connection.mark(self.call)

    def close(self) -> None:
        self.closed += 1
        self.messages.clear()


class Application:
    """What stands above the calls of one connection."""

    connection_id = "fuzz"
    peer = "fuzz"
    at_once_bytes = 2000
    """What is inflated without leaving the thread, for each time that work is done aside."""

    def __init__(self) -> None:
        self.refusals = Refusals()
        self.calls: list[Call] = []
        self.sources: list[Source] = []
        self._ready: set[Call] = set()
        self.over_calls: set[Call] = set()
        self._jobs: deque[Any] = deque()

    def opened(self, call: Call) -> None:
        assert call not in self.calls
        self.calls.append(call)
        if call.method is not None and call.method.request_streams:
            call.inbox = deque()
            if call.method.name == "Feed":
                call.feed = self._attach(call)

    def ready(self, call: Call) -> None:
        assert call not in self._ready, "ready twice"
        assert call not in self.over_calls, "ready after its end"
        assert isinstance(call.message, bytes)
        assert len(call.message) <= call.connection.limits.message_max_bytes
        self._ready.add(call)
        if call.method.name == "Now":
            call.reply(call.message)
        elif call.method.name == "Drain":
            self._attach(call)

    def received(self, call: Call) -> None:
        assert call not in self.over_calls, "received after its end"
        if call.feed is not None:
            call.feed.feed()

    def began(self, call: Call) -> None:
        assert call not in self.over_calls, "began after its end"

    def over(self, call: Call) -> None:
        assert call in self.calls, "over, but not opened"
        assert call not in self.over_calls, "over twice"
        self.over_calls.add(call)

    def hurry(self, call: Call, seconds: float) -> None:
        call.shed(Status(StatusCode.UNAVAILABLE, "time is over"))

    def aside(self, job: Any) -> None:
        self._jobs.append(job)

    def work_aside(self) -> None:
        self.at_once_bytes = type(self).at_once_bytes
        while self._jobs:
            job = self._jobs.popleft()
            if (work := job.begin()) is not None:
                job.done(work())

    def _attach(self, call: Call) -> Source:
        source = Source(call)
        self.sources.append(source)
        call.attach(source)
        return source
