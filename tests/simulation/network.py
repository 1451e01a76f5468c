"""The network between simulated brokers: streams that are slow, break, and are made again; frames lost, doubled, late.

The two ends are the production code: `Link` and `TailFeed`. Frames arrive in any order that the dice say: more than a
connection allows, since nothing may depend on it. Calls between them are in asking.py.
"""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import cast

import trio
from purerpc import Status

from trio_broker.errors import ConnectionLost
from trio_broker.replicas.service import ReplicasService
from trio_broker.replicas.tails import TailFeed
from trio_broker.rpc.call import Call
from trio_broker.rpc.framing import PREFIX_BYTES

from .asking import Fates, Question, question
from .world import World


class Network:
    """The ways between brokers, each named after who hears and who tells."""

    def __init__(
        self, world: World, nursery: trio.Nursery, service_of: Callable[[str], ReplicasService | None]
    ) -> None:
        """``service_of`` returns that of a broker by its name; None: it is down."""
        self._world = world
        self.nursery = nursery
        self.service_of = service_of
        self._random = random = world.random("network")
        self.delay_s = random.choice([0.0002, 0.002, 0.03])
        self.loss = random.choice([0.0, 0.0, 0.05, 0.3])
        self.doubling = random.choice([0.0, 0.1, 0.3])
        self.lateness = random.choice([0.0, 0.0, 0.1, 0.3])
        self.asking = Fates(world)
        self.parted: dict[str, None] = {}
        """The ways that are cut. (A dict for a set that keeps its order.)"""
        self._streams: dict[_Stream, None] = {}

    def heal(self) -> None:
        self.loss = self.lateness = 0.0
        self.delay_s = 0.001
        self.asking.heal()
        for stream in tuple(self._streams):
            stream.lose_questions("healed")
        self.parted.clear()

    def part(self, hearer: str, teller: str) -> None:
        """Cut a way, and what is on it."""
        self._world.note("network", "parts", hearer, teller)
        self._world.count("partition: brokers")
        self.parted[f"{hearer} {teller}"] = None
        self.lose(lambda stream: stream.address == f"{hearer} {teller}")

    def lose(self, which: Callable[["_Stream"], bool]) -> None:
        """Break streams."""
        for stream in tuple(self._streams):
            if which(stream):
                stream.lose("parted")

    def went_down(self, name: str) -> None:
        self.lose(lambda stream: name in stream.address.split())

    @asynccontextmanager
    async def open_channel(self, address: str) -> AsyncGenerator["_Channel"]:
        """Stand in for `trio_broker.client.channel.open_channel`; an address is who hears and who tells."""
        await trio.sleep(self.delay_s)
        if not self.reaches(address):
            raise ConnectionLost("nobody is there")
        yield _Channel(self, address)

    def reaches(self, address: str) -> bool:
        return address not in self.parted and self.service_of(address.split()[1]) is not None

    def start(self, address: str) -> "_Stream":
        service = self.service_of(address.split()[1])
        if service is None or address in self.parted:
            raise ConnectionLost("nobody is there")
        stream = _Stream(self._world, self, address, service, self._random)
        self._streams[stream] = None
        self.nursery.start_soon(stream.carry)
        self._world.count("stream between brokers")
        return stream

    def forget(self, stream: "_Stream") -> None:
        self._streams.pop(stream, None)


class _Channel:
    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._stream: _Stream | None = None

    async def open(self, path: str) -> "_Stream":
        await trio.lowlevel.checkpoint()
        self._stream = self._network.start(self._address)
        return self._stream

    async def start(self, path: str, message: bytes, *, timeout_s: float) -> Question:
        await trio.lowlevel.checkpoint()
        assert self._stream is not None, "it asks of those that it hears"
        return self._stream.ask(path, message)

    def lose(self, why: str) -> None:
        if self._stream is not None:
            self._stream.lose(why)


class _Stream:
    """Both ends of one stream: the call of who hears, and that which `TailFeed` answers."""

    def __init__(self, world: World, network: Network, address: str, service: ReplicasService, random: Random) -> None:
        self.address = address
        self.connection = self
        self.inbox: deque[bytes] = deque()
        self.request_ended = False
        self._world = world
        self._network = network
        self._random = random
        self._requests: deque[bytes] = deque()
        self._responses: deque[bytes] = deque()
        self._late: deque[bytes] = deque()
        self._moved = trio.Event()
        self._arrived = trio.Event()
        self._lost = ""
        self._questions: dict[Question, None] = {}
        self._feed: TailFeed | None = cast("TailFeed", service.Tail(cast("Call", self)))

    # as the call of who hears

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not self._lost:
            self._requests.append(message)
            self._moved.set()

    async def receive_some(self) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while not self._responses and not self._lost:
            self._arrived = trio.Event()
            await self._arrived.wait()
        if self._lost:
            raise ConnectionLost(self._lost)
        responses = list(self._responses)
        self._responses.clear()
        return responses

    def close(self) -> None:
        self.lose("closed")

    def lose(self, why: str) -> None:
        """Break: what is under way is lost."""
        self._lost = self._lost or why
        self.lose_questions(why)
        self._moved.set()
        self._arrived.set()

    # as the call that a feed answers

    def mark(self, _call: object) -> None:
        self._moved.set()

    def take_message(self) -> bytes:
        return self.inbox.popleft()

    def take(self, _size: int) -> None:
        pass

    def finish(self, status: Status) -> None:
        self.lose(f"finished: {status.status_message}")

    # as the connection on which who hears also asks

    def lose_questions(self, why: str) -> None:
        questions, self._questions = self._questions, {}
        for each in questions:
            each.lose(why)

    def ask(self, path: str, message: bytes) -> Question:
        network = self._network
        asked = question(path, message, self._world, network.asking, lambda: network.reaches(self.address))
        asked.leave(self._lost)
        self._questions[asked] = None
        service = network.service_of(self.address.split()[1])
        network.nursery.start_soon(asked.carry, service, network.delay_s)
        return asked

    async def carry(self) -> None:
        """Carry both ways, until it breaks. Who tells may hear of that late."""
        while not self._lost:
            await self._moved.wait()
            self._moved = trio.Event()
            await trio.sleep(self._random.random() * self._network.delay_s)
            assert self._feed is not None
            if self._lost:
                break
            if self._requests:
                self.inbox.extend(self._requests)
                self._requests.clear()
                self._feed.feed()
            while data := self._feed.take(self, self._random.choice([1, 1000, 100_000])):  # type: ignore[arg-type]
                for frame in _frames(data):
                    self._deliver(frame)
            if self._responses:
                self._arrived.set()
        await trio.sleep(self._random.random() * self._network.delay_s)
        self._close_feed()
        self._network.forget(self)

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _deliver(self, frame: bytes) -> None:
        network, fate = self._network, self._random.random()
        if fate < network.loss:
            self._world.count("frame lost")
            return
        if self._random.random() < network.lateness:
            self._world.count("frame late")
            self._late.append(frame)
            return
        self._responses.append(frame)
        if self._random.random() < network.doubling:
            self._world.count("frame doubled")
            self._late.append(frame)
        elif self._late and self._random.random() < 0.5:
            self._responses.append(self._late.popleft())


def _frames(data: bytes) -> list[bytes]:
    frames = []
    while data:
        stop = PREFIX_BYTES + int.from_bytes(data[1:PREFIX_BYTES])
        frames.append(data[PREFIX_BYTES:stop])
        data = data[stop:]
    return frames
