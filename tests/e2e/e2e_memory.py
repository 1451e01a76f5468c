"""Loads beyond what a broker's memory holds, each with an ordinary client beside it.

Owns:      the loads; what their clients may be told; the ordinary client, and whether everything is served afterwards.
Not here:  the broker, its limit and how its memory is measured (test_e2e_memory.py, memory_trial.py).
Threads:   one trio loop; the hostile clients write frames by hand and read only where a load says so.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from trio_broker._proto import broker_pb2 as pb
from trio_broker.client import connect
from trio_broker.client.client import Client
from trio_broker.config import BODY_MAX_BYTES
from trio_broker.errors import BrokerError, Overloaded, SlowConsumer
from trio_broker.rpc import frames
from trio_broker.rpc.hpack import literal

LOAD_S = 120
"""A load that takes longer hangs."""

T = TypeVar("T")

Load = Callable[[str], Awaitable[Counter[str]]]
"""Does its worst to the broker at an address; returns what it was told, and how often."""


def told(error: BrokerError) -> str:
    """Name an error that a client may get while memory is short; anything else goes on up."""
    if isinstance(error, SlowConsumer):
        return "SLOW_CONSUMER"
    if isinstance(error, Overloaded) and error.retry_after_s:
        return "OVERLOADED"
    raise error


async def ask_of(call: Awaitable[object], outcomes: Counter[str]) -> None:
    """Make a call, and count what became of it."""
    try:
        await call
    except BrokerError as error:
        outcomes[told(error)] += 1
    else:
        outcomes["served"] += 1


async def ask(address: str, call: Callable[[Client], Awaitable[object]], outcomes: Counter[str]) -> None:
    """Make a call by a connection of its own."""
    async with connect(address) as client:
        await ask_of(call(client), outcomes)


async def publish_at_once(address: str, connections: int = 200) -> Counter[str]:
    """Publish the largest message by each of many connections, at the same time."""
    outcomes: Counter[str] = Counter()
    body = bytes(BODY_MAX_BYTES)
    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(ask, address, lambda client, n=number: client.publish(f"burst.{n}", body, 60), outcomes)
    return outcomes


async def subscribe_and_stall(address: str, subjects: int = 300) -> Counter[str]:
    """Subscribe to many subjects, read nothing, and publish the largest message to each."""
    outcomes: Counter[str] = Counter()
    body = bytes(BODY_MAX_BYTES)
    async with hostile_peers(address, subjects // 10, window=frames.WINDOW_MAX) as peers, connect(address) as client:
        for number, peer in enumerate(peers):
            for offset in range(10):
                request = pb.SubscribeRequest(subject=f"stalled.{10 * number + offset}")
                await peer.call(2 * offset + 1, "Subscribe", request.SerializeToString())
        for number in range(subjects):
            await ask_of(client.publish(f"stalled.{number}", body), outcomes)
    return outcomes


async def fetch_and_stall(address: str, connections: int = 20, calls: int = 50) -> Counter[str]:
    """Fetch large messages by many calls, and do not read the answers."""
    outcomes: Counter[str] = Counter()
    async with connect(address) as client:
        id_ = await until_served(partial(client.publish, "large", bytes(BODY_MAX_BYTES), 600))
        request = pb.FetchRequest(subject="large", id=id_).SerializeToString()
        for window in (0, frames.WINDOW_MAX):  # the windows stay shut, or the sockets stay full
            async with hostile_peers(address, connections, window=window) as peers:
                for peer in peers:
                    for number in range(calls):
                        await peer.call(2 * number + 1, "Fetch", request)
                async with trio.open_nursery() as nursery:
                    for _ in range(10):
                        nursery.start_soon(ask, address, lambda client: client.fetch("large", id_), outcomes)
                await until_served(partial(client.fetch, "large", id_))  # who does not read has to make room
                outcomes["served"] += 1
    return outcomes


async def connect_and_idle(address: str, connections: int = 5000) -> Counter[str]:
    """Open many connections, and leave them idle."""
    outcomes: Counter[str] = Counter()
    async with hostile_peers(address, connections, window=0):
        with trio.move_on_after(5):  # new connections may have to wait for the end of these
            await ask(address, lambda client: client.publish("idle", b"x"), outcomes)
    return outcomes


async def begin_and_stall(address: str, connections: int = 10, calls: int = 100) -> Counter[str]:
    """Begin to publish large messages, and do not go on."""
    outcomes: Counter[str] = Counter()
    part = pb.PublishRequest(subject="half", body=bytes(BODY_MAX_BYTES)).SerializeToString()
    async with hostile_peers(address, connections, window=0) as peers:
        for peer in peers:
            for number in range(calls):
                await peer.begin(2 * number + 1, "Publish", part, upto=20_000)
        for _ in range(5):
            await ask(address, lambda client: client.publish("half", bytes(BODY_MAX_BYTES)), outcomes)
    return outcomes


async def fill_and_wait(address: str, kept_s: int = 3) -> Counter[str]:
    """Publish until it is refused because what a store in memory keeps leaves no room."""
    outcomes: Counter[str] = Counter()
    async with connect(address) as client:
        while not outcomes["OVERLOADED"]:
            await ask_of(client.publish("fill", bytes(100_000), kept_s), outcomes)
    return outcomes


LOADS: dict[str, Load] = {
    "large publishes at once": publish_at_once,
    "subscribers that do not read": subscribe_and_stall,
    "fetches that nobody reads": fetch_and_stall,
    "idle connections": connect_and_idle,
    "half-sent bodies": begin_and_stall,
}


@asynccontextmanager
async def neighbour(address: str) -> AsyncGenerator[Counter[str]]:
    """Publish small messages by one connection during the block, one at a time; count what became of them.

    Each has to be served, or refused as one that may be tried again.
    """
    outcomes: Counter[str] = Counter()
    async with connect(address) as client, trio.open_nursery() as nursery:

        async def publish() -> None:
            while True:
                await ask_of(client.publish("neighbour", b"small"), outcomes)
                await trio.sleep(0.02)

        nursery.start_soon(publish)
        yield outcomes
        nursery.cancel_scope.cancel()


async def everything_is_served(address: str) -> None:
    """Publish, subscribe and fetch the largest message, again and again until all three are served."""
    body = bytes(BODY_MAX_BYTES)

    async def use_everything() -> None:
        async with connect(address) as client, client.subscribe("after") as messages:
            id_ = await client.publish("after", body, 60)
            assert (await anext(messages)).body == body
            assert (await client.fetch("after", id_)).body == body

    await until_served(use_everything)


async def until_served(ask_for: Callable[[], Awaitable[T]]) -> T:
    """Ask as an ordinary client does: again after the delay that it is told."""
    with trio.fail_after(LOAD_S):
        while True:
            try:
                return await ask_for()
            except Overloaded as error:
                await trio.sleep(error.retry_after_s or 0)


class HostilePeer:
    """A connection whose frames are written by hand, and that reads nothing."""

    def __init__(self, stream: trio.SocketStream, window: int) -> None:
        self._stream = stream
        self._window = window

    async def greet(self) -> None:
        connection = frames.WINDOW_MAX - frames.WINDOW_INITIAL if self._window else 0
        greeting = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: self._window})
        await self._send(greeting + (frames.window_update(0, connection) if connection else b""))

    async def call(self, stream_id: int, method: str, message: bytes) -> None:
        """Send a whole request."""
        await self._send(_headers(stream_id, method) + _data(stream_id, message, len(message) + 5, end=True))

    async def begin(self, stream_id: int, method: str, message: bytes, *, upto: int) -> None:
        """Send a request's first bytes."""
        await self._send(_headers(stream_id, method) + _data(stream_id, message, upto, end=False))

    async def _send(self, data: bytes) -> None:
        try:
            with trio.move_on_after(1):  # the broker may not read from who does not read
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # or may have closed the connection


@asynccontextmanager
async def hostile_peers(address: str, count: int, *, window: int) -> AsyncGenerator[list[HostilePeer]]:
    """Connect so many, or as many as can, for the length of the block; ``window``: what each stream may be sent."""
    host, _, port = address.rpartition(":")
    streams: list[trio.SocketStream] = []
    try:
        for _ in range(count):
            with trio.move_on_after(1) as waiting:
                streams.append(await trio.open_tcp_stream(host, int(port)))
            if waiting.cancelled_caught:
                break  # as many wait to be accepted as may
        peers = [HostilePeer(stream, window) for stream in streams]
        for peer in peers:
            await peer.greet()
        yield peers
    finally:
        for stream in streams:
            stream.socket.close()


def _headers(stream_id: int, method: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/broker.Broker/{method}",
        ":authority": "broker",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
    return frames.headers(0, stream_id, block)


def _data(stream_id: int, message: bytes, upto: int, *, end: bool) -> bytes:
    body = (b"\0" + len(message).to_bytes(4, "big") + message[:upto])[:upto]
    parts = [body[begin : begin + frames.FRAME_MAX_BYTES] for begin in range(0, len(body), frames.FRAME_MAX_BYTES)]
    return b"".join(
        frames.frame(frames.DATA, frames.END_STREAM if end and part is parts[-1] else 0, stream_id, part)
        for part in parts
    )
