"""A service with a method of every kind, for tests with sockets, and a client made of frames.

Every message is a `google.protobuf.BytesValue`. A request says what its handler is to do: see `Toy.act`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import purerpc
import trio
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import Answer, GrpcPeer
from h2_peer import settings, words
from hyperframe.frame import Frame
from purerpc import Cardinality, RPCSignature, Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.call import Call
from trio_broker.rpc.framing import framed
from trio_broker.rpc.handlers import Context, drained, grouped
from trio_broker.rpc.server import Server

MEBIBYTE = 1024 * 1024
PATIENCE_S = 60
"""What a wait for something that must happen may take on a machine that does much else."""
METHODS = {
    "Echo": Cardinality.UNARY_UNARY,
    "Repeat": Cardinality.UNARY_STREAM,
    "Collect": Cardinality.STREAM_UNARY,
    "Chat": Cardinality.STREAM_STREAM,
    "Group": Cardinality.UNARY_UNARY,
    "Drain": Cardinality.UNARY_STREAM,
}
SIGNATURES = {name: RPCSignature(cardinality, BytesValue, BytesValue) for name, cardinality in METHODS.items()}


class Toy:
    """The service. `log` has what its handlers did: ``began Echo``, ``ended Echo``, and so on."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._noted = trio.Event()
        self.produced = 0
        self.sources: list[Source] = []
        self.groups: list[int] = []
        """How many calls each group had."""
        self.abandon_status: Status | None = None

    def service(self) -> purerpc.Service:
        @grouped(self.abandoned)
        async def group(calls: list[Call], request: None = None) -> None:
            await self.group(calls)

        service = purerpc.Service("toy.Toy")
        handlers = {"Group": group}
        for name, signature in SIGNATURES.items():
            service.add_method(name, handlers.get(name) or getattr(self, name.lower()), signature)
        return service

    def note(self, event: str) -> None:
        self.log.append(event)
        self._noted.set()
        self._noted = trio.Event()

    async def until(self, event: str, count: int = 1) -> None:
        """Wait until something was noted so often."""
        while self.log.count(event) < count:
            await self._noted.wait()

    async def act(self, method: str, order: bytes) -> None:
        """Do what a request asks for; anything that is no order does nothing."""
        self.note(f"began {method}")
        try:
            match order:
                case b"wait":
                    await trio.sleep_forever()
                case b"bug":
                    raise ValueError("a secret")
                case b"bug of a child":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_fail)
                case b"bug when cancelled":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_fail_when_cancelled)
                        nursery.start_soon(trio.sleep_forever)
                case b"two bugs":
                    raise ExceptionGroup("both", [ValueError("a secret"), OSError("another")])
                case b"refuse":
                    raise purerpc.RpcFailedError(Status(StatusCode.ABORTED, "not now"))
                case b"refuse in a child":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_refuse)
                case b"does not parse":
                    raise DecodeError("a message within the message")
                case _:
                    await trio.lowlevel.checkpoint()
        finally:
            self.note(f"ended {method}")

    async def echo(self, message: BytesValue) -> BytesValue:
        await self.act("Echo", message.value)
        return message

    async def repeat(self, message: BytesValue, request: Context) -> AsyncIterator[BytesValue]:
        """``pour``: a mebibyte at a time, for ever, without waiting for anything; else the message, three times."""
        await self.act("Repeat", message.value)
        try:
            if message.value == b"pour":
                while True:
                    self.produced += 1
                    yield BytesValue(value=bytes(MEBIBYTE))
            for _ in range(3):
                yield message
        finally:
            self.note("closed Repeat")

    async def collect(self, messages: AsyncIterator[BytesValue]) -> BytesValue:
        """Join the messages; after ``hold`` take no more."""
        total = b""
        async for message in messages:
            if message.value == b"hold":
                await self.act("Collect", b"wait")
            await self.act("Collect", message.value)
            total += message.value
        return BytesValue(value=total)

    async def chat(self, messages: AsyncIterator[BytesValue], request: Context) -> AsyncIterator[BytesValue]:
        async for message in messages:
            await self.act("Chat", message.value)
            yield message

    async def group(self, calls: list[Call], request: None = None) -> None:
        """Reply to each call; after ``wait``, to none any more."""
        self.groups.append(len(calls))
        for call in calls:
            await self.act("Group", call.message.value)
            call.reply(call.message.SerializeToString())

    def abandoned(self, call: Call) -> Status | None:
        self.note("abandoned Group")
        return self.abandon_status

    @drained()
    async def drain(self, message: BytesValue, request: Context) -> "Source":
        await self.act("Drain", message.value)
        source = Source(self, request.call)
        self.sources.append(source)
        return source


async def _fail() -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("a secret")


async def _fail_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("a secret")


async def _refuse() -> None:
    await trio.lowlevel.checkpoint()
    raise purerpc.RpcFailedError(Status(StatusCode.ABORTED, "not now"))


class Source:
    """What a drained call is answered from: `messages`, and ``bug`` is an error."""

    def __init__(self, toy: Toy, call: Call) -> None:
        self._toy = toy
        self.call = call
        self.messages = [] if call.message.value == b"idle" else [call.message.value] * 3
        self._over = False

    def push(self, message: bytes) -> None:
        self.messages.append(message)
        self.call.connection.mark(self.call)

    def take(self, call: Call, credit: int) -> bytes:
        taken = b""
        while self.messages and len(taken) < credit:
            message = self.messages.pop(0)
            if message == b"bug":
                raise ValueError("a secret")
            taken += framed(BytesValue(value=message).SerializeToString())
        if self._over and not self.messages:
            call.send(taken)
            call.finish(Status(StatusCode.UNAVAILABLE, "go on elsewhere"))
            return b""
        return taken

    def retire(self) -> None:
        self._toy.note("retired Drain")
        self.messages.append(b"last")
        self._over = True
        self.call.connection.mark(self.call)

    def close(self) -> None:
        self._toy.note("closed Drain")


@asynccontextmanager
async def serving(toy: Toy, *services: purerpc.Service, **how: object) -> AsyncIterator[Server]:
    """Serve a toy, and perhaps more, on a free port of 127.0.0.1 for the length of the block.

    The end of each call is noted as ``over METHOD CODE``.
    """
    server = server_of(toy, *services, **how)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_async)
            yield server
            nursery.cancel_scope.cancel()


def server_of(toy: Toy, *services: purerpc.Service, **how: object) -> Server:
    """Return a server that is yet to be started."""

    def over(call: Call, seconds: float) -> None:
        method = "unknown" if call.method is None else call.method.name
        toy.note(f"over {method} {call.status and call.status.int_value}")

    server = Server(**{"on_call_over": over, **how})
    for service in (toy.service(), *services):
        server.add_service(service)
    return server


async def serve(server: Server, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Serve until the server returns by itself, or its scope, which this is started with, is cancelled."""
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_async)
            task_status.started(nursery.cancel_scope)


class Wire(GrpcPeer):
    """A client on a socket that speaks in frames; it need not be well-behaved.

    What the base class has for a server without sockets is used for building requests and reading answers.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__()
        self.stream = stream
        self.frames: list[Frame] = []
        """All that came, in order."""
        self._buffer = b""

    async def write(self, *data: bytes) -> None:
        await self.stream.send_all(b"".join(data))

    async def read(self) -> bool:
        """Take in what comes next; False at the end."""
        data = await self.stream.receive_some()
        self._buffer += data
        block = None
        while len(self._buffer) >= 9 and len(self._buffer) >= 9 + int.from_bytes(self._buffer[:3]):
            frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]))
            frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
            self._buffer = self._buffer[9 + length :]
            self.frames.append(frame)
            block = self._take(frame, block)
        return bool(data)

    async def answered(self, stream_id: int) -> Answer:
        """Wait for the end of an answer."""
        while not self.answers.setdefault(stream_id, Answer()).ended:
            assert await self.read(), "the connection was closed"
        return self.answers[stream_id]

    async def was_reset(self, stream_id: int) -> str:
        """Wait for RST_STREAM; return its code."""
        while (code := self.answers.setdefault(stream_id, Answer()).reset) is None:
            assert await self.read(), "the connection was closed"
        return code

    async def begun(self, stream_id: int) -> Answer:
        """Wait for the headers of an answer."""
        while self.answers.setdefault(stream_id, Answer()).headers is None:
            assert await self.read(), "the connection was closed"
        return self.answers[stream_id]

    async def to_the_end(self) -> list[str]:
        """Read until the server closes; return what came after what was read before, in words."""
        before = len(self.frames)
        while await self.read():
            pass
        return [words(frame) for frame in self.frames[before:]]

    def order(self, stream_id: int, method: str, order: bytes, **how: object) -> bytes:
        """Return a call of a method with one message."""
        return self.request(stream_id, BytesValue(value=order).SerializeToString(), method=method, **how)


@asynccontextmanager
async def connected(server: Server, values: dict[int, int] | None = None) -> AsyncIterator[Wire]:
    """Connect; the preface and SETTINGS are sent, and acknowledged."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        wire = Wire(stream)
        await wire.write(frames.PREFACE, settings(values))
        while not any(words(frame) == "SETTINGS ACK" for frame in wire.frames):
            assert await wire.read()
        yield wire
