"""Clients of three gRPC implementations behind one face, so that one scenario runs through each of them.

Owns:      `Peer` and its three kinds: grpcio with threads, grpcio on asyncio, purerpc on trio.
Not here:  frames by hand (e2e_wire.py).
Threads:   each peer lives in its own world.

A scenario is an async function that a peer runs where its library is at home. For grpcio with threads that is no event
loop at all: the client's methods block, so a coroutine that awaits nothing else runs through in one go.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import grpc
import purerpc
import trio
from e2e_broker import SAFETY_S
from e2e_failure import CallFailed, call_failed
from google.protobuf.message import Message

from trio_broker._proto import broker_pb2 as pb

T = TypeVar("T")
Task = Coroutine[Any, Any, T]

SERVICE = "broker.Broker"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Otherwise grpcio shares one connection among all channels to an address."""


class Stream(Protocol):
    """An open subscription."""

    async def receive(self) -> pb.MessageResponse:
        """Wait for the next message; raises `CallFailed` when the broker ends the stream."""


class Client(Protocol):
    """One connection to a broker. Methods raise `CallFailed`."""

    async def publish(self, subject: str, body: bytes = b"", **fields: object) -> pb.PublishResponse: ...

    async def fetch(self, subject: str, id_: int) -> pb.MessageResponse: ...

    def subscribe(self, subject: str, **fields: object) -> AbstractAsyncContextManager[Stream]:
        """Subscribe for the length of the block, which begins when the response's headers are there."""


class Peer(Protocol):
    """A gRPC library."""

    sees_details: bool
    """Its users can get at grpc-status-details-bin."""

    def run(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        """Run ``scenario(peer, *args)``; fails if it takes longer than `SAFETY_S`."""

    def connect(self, address: str) -> AbstractAsyncContextManager[Client]:
        """Open a connection for the length of the block."""

    async def together(self, tasks: Sequence[Task[T]]) -> list[T]:
        """Run tasks at the same time; return their results in order."""


async def received(stream: Stream, count: int) -> list[pb.MessageResponse]:
    return [await stream.receive() for _ in range(count)]


# -- grpcio ---------------------------------------------------------------------------------------------------


class GrpcioStubs:
    """The calls of the broker on a channel of either kind."""

    def __init__(self, channel: Any) -> None:
        self.publish = channel.unary_unary(
            f"/{SERVICE}/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
        )
        self.fetch = channel.unary_unary(
            f"/{SERVICE}/Fetch", pb.FetchRequest.SerializeToString, pb.MessageResponse.FromString
        )
        self.subscribe = channel.unary_stream(
            f"/{SERVICE}/Subscribe", pb.SubscribeRequest.SerializeToString, pb.MessageResponse.FromString
        )


@contextmanager
def grpcio_failures() -> Generator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise grpcio_failure(error) from None


def grpcio_failure(error: Any) -> CallFailed:
    trailers = dict(error.trailing_metadata() or ())
    return call_failed(error.code().name, error.details(), trailers.get("grpc-status-details-bin"))


class GrpcioSync:
    sees_details = True

    def run(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        return drive(scenario(self, *args))

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncGenerator[Client]:
        with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
            yield GrpcioSyncClient(channel)

    async def together(self, tasks: Sequence[Task[T]]) -> list[T]:
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(drive, tasks))


def drive(task: Task[T]) -> T:
    """Run a coroutine that never waits for an event loop."""
    try:
        task.send(None)
    except StopIteration as returned:
        return returned.value
    raise AssertionError("waits for an event loop, and there is none")


class GrpcioSyncClient:
    def __init__(self, channel: grpc.Channel) -> None:
        self._stubs = GrpcioStubs(channel)

    async def publish(self, subject: str, body: bytes = b"", **fields: object) -> pb.PublishResponse:
        with grpcio_failures():
            return self._stubs.publish(pb.PublishRequest(subject=subject, body=body, **fields), timeout=SAFETY_S)

    async def fetch(self, subject: str, id_: int) -> pb.MessageResponse:
        with grpcio_failures():
            return self._stubs.fetch(pb.FetchRequest(subject=subject, id=id_), timeout=SAFETY_S)

    @asynccontextmanager
    async def subscribe(self, subject: str, **fields: object) -> AsyncGenerator[Stream]:
        call = self._stubs.subscribe(pb.SubscribeRequest(subject=subject, **fields), timeout=SAFETY_S)
        call.initial_metadata()
        try:
            yield GrpcioSyncStream(call)
        finally:
            call.cancel()


class GrpcioSyncStream:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def receive(self) -> pb.MessageResponse:
        with grpcio_failures():
            return next(self._call)


class GrpcioAio:
    sees_details = True

    def run(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        return asyncio.run(self._bounded(scenario(self, *args)))

    async def _bounded(self, task: Task[T]) -> T:
        async with asyncio.timeout(SAFETY_S):
            return await task

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncGenerator[Client]:
        async with grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
            yield GrpcioAioClient(channel)

    async def together(self, tasks: Sequence[Task[T]]) -> list[T]:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task) for task in tasks]
        return [task.result() for task in running]


class GrpcioAioClient:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stubs = GrpcioStubs(channel)

    async def publish(self, subject: str, body: bytes = b"", **fields: object) -> pb.PublishResponse:
        with grpcio_failures():
            return await self._stubs.publish(pb.PublishRequest(subject=subject, body=body, **fields))

    async def fetch(self, subject: str, id_: int) -> pb.MessageResponse:
        with grpcio_failures():
            return await self._stubs.fetch(pb.FetchRequest(subject=subject, id=id_))

    @asynccontextmanager
    async def subscribe(self, subject: str, **fields: object) -> AsyncGenerator[Stream]:
        call = self._stubs.subscribe(pb.SubscribeRequest(subject=subject, **fields))
        await call.initial_metadata()
        try:
            yield GrpcioAioStream(call)
        finally:
            call.cancel()


class GrpcioAioStream:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def receive(self) -> pb.MessageResponse:
        with grpcio_failures():
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise call_failed((await self._call.code()).name, await self._call.details(), None)
            return response


# -- purerpc --------------------------------------------------------------------------------------------------


class Purerpc:
    sees_details = False  # it keeps trailers that begin grpc- to itself

    def run(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        return trio.run(self._bounded, scenario, *args)

    async def _bounded(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        with trio.fail_after(SAFETY_S):
            return await scenario(self, *args)

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncGenerator[Client]:
        host, _, port = address.rpartition(":")
        async with purerpc.insecure_channel(host, int(port)) as channel:
            yield PurerpcClient(channel)
        await channel._grpc_socket._socket._stream.aclose()  # purerpc leaves its socket open

    async def together(self, tasks: Sequence[Task[T]]) -> list[T]:
        results: list[Any] = [None] * len(tasks)

        async def run(place: int, task: Awaitable[T]) -> None:
            results[place] = await task

        async with trio.open_nursery() as nursery:
            for place, task in enumerate(tasks):
                nursery.start_soon(run, place, task)
        return results


class PurerpcClient:
    def __init__(self, channel: Any) -> None:
        self._client = purerpc.Client(SERVICE, channel)

    async def publish(self, subject: str, body: bytes = b"", **fields: object) -> pb.PublishResponse:
        request = pb.PublishRequest(subject=subject, body=body, **fields)
        return await self._unary("Publish", request, pb.PublishResponse)

    async def fetch(self, subject: str, id_: int) -> pb.MessageResponse:
        return await self._unary("Fetch", pb.FetchRequest(subject=subject, id=id_), pb.MessageResponse)

    async def _unary(self, method: str, request: Message, response_type: Any) -> Any:
        stream = await self._start(method, request, response_type)
        response = await PurerpcStream(stream).receive()
        assert await stream.receive_message() is None
        return response

    @asynccontextmanager
    async def subscribe(self, subject: str, **fields: object) -> AsyncGenerator[Stream]:
        stream = await self._start("Subscribe", pb.SubscribeRequest(subject=subject, **fields), pb.MessageResponse)
        await stream.receive_event()  # the headers
        yield PurerpcStream(stream)  # purerpc cannot cancel a call: it ends with the connection

    async def _start(self, method: str, request: Message, response_type: Any) -> Any:
        stream = await self._client.rpc(method, type(request), response_type)
        await stream.send_message(request)
        await stream.close()
        return stream


class PurerpcStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def receive(self) -> Any:
        message = await self._stream.receive_message()
        if message is None:
            status = self._stream.end_stream_event.status
            raise CallFailed(status.status_code.name, status.status_message)
        return message


PEERS: dict[str, Peer] = {"grpcio": GrpcioSync(), "grpcio.aio": GrpcioAio(), "purerpc": Purerpc()}
