"""Brokers on one log, in this process, that stream to each other what they commit."""

import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio
from postgres_kit import until

from persistence import open_store
from trio_broker import Broker
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.errors import BrokerError, OutcomeUnknown
from trio_broker.replicas import Replicas, run_replicas
from trio_broker.rpc.listeners import listen_tcp


@asynccontextmanager
async def replica(
    url: str,
    *,
    advertise: str = "",
    peers: tuple[str, ...] = (),
    listener: socket.socket | None = None,
    **settings: float,
) -> AsyncGenerator[tuple[Broker, Replicas]]:
    """A broker of its own. (``settings`` are of `Config`.)"""
    config = Config.model_validate(settings)
    listener = listener or listen_tcp("127.0.0.1", 0)
    async with (
        open_store(url, poll_interval_s=config.poll_interval) as store,
        run_broker(store, config) as broker,
        run_replicas(store, broker, listener, advertise=advertise, peers=peers) as replicas,
    ):
        yield broker, replicas


@asynccontextmanager
async def linked(url: str, count: int) -> AsyncGenerator[tuple[list[Broker], list[Replicas]]]:
    """So many, each of which hears all others."""
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(replica(url)) for _ in range(count)]
        brokers, replicas = [broker for broker, _ in both], [each for _, each in both]
        await until_linked(replicas, count)
        yield brokers, replicas


async def until_linked(replicas: list[Replicas], count: int) -> None:
    """Wait until each of them hears all others of so many."""
    await until(lambda: all(len(each.links) == count - 1 and each.is_linked() for each in replicas))


class Mortal:
    """A replica in a task of its own, that can leave, or end without a word, before the others."""

    broker: Broker
    replicas: Replicas
    listening_at: str
    """HOST:PORT, whatever it advertises."""

    def __init__(self, advertise: str = "") -> None:
        self.leaving = trio.Event()
        self.ended = trio.Event()
        self._scope = trio.CancelScope()
        self._advertise = advertise

    async def run(self, url: str, task_status: trio.TaskStatus["Mortal"]) -> None:
        with self._scope:
            listener = listen_tcp("127.0.0.1", 0)
            self.listening_at = "{}:{}".format(*listener.getsockname()[:2])
            async with replica(url, advertise=self._advertise, listener=listener) as (self.broker, self.replicas):
                task_status.started(self)
                await self.leaving.wait()
                await self.broker.drain()
        self.ended.set()

    async def leave(self) -> None:
        """Stop as an operator stops it."""
        self.leaving.set()
        await self.ended.wait()

    def kill(self) -> None:
        """Stop answering and writing registers, with whatever is in flight."""
        self._scope.cancel()


@dataclass(eq=False)
class Published:
    """What publishers were told of the messages of one subject, by body."""

    ids: dict[bytes, int] = field(default_factory=dict)
    unknown: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)

    async def publish(self, broker: Broker, subject: str, body: bytes, *, key: str = "") -> None:
        try:
            self.ids[body] = await broker.publish(subject, body, None, idempotency_key=key)
        except OutcomeUnknown:
            self.unknown.add(body)
        except BrokerError:
            self.refused.add(body)

    async def check(self, broker: Broker, subject: str) -> None:
        """The log has all that was acknowledged, once and under that id, and else only what is unknown."""
        stored = []
        after_id = 0
        while (page := await broker.fetch_range(subject, after_id)).messages:
            stored += [(message.id, message.body) for message in page.messages]
            after_id = page.scanned_to
        assert [id_ for id_, _ in stored] == list(range(1, len(stored) + 1))
        bodies = {body: id_ for id_, body in stored}
        assert len(bodies) == len(stored), "something is there twice"
        assert self.ids.items() <= bodies.items()
        assert bodies.keys() - self.ids.keys() <= self.unknown
