"""Who has the headers of a subscription to what is new gets all that is acknowledged after them, by any broker."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import trio
from replicas_kit import until_linked

from persistence import NewMessage, Outcome, Store
from persistence.facade import Limits
from persistence.memory import MemoryStore
from trio_broker import Broker
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.replicas import Replicas, run_replicas
from trio_broker.rpc.listeners import listen_tcp


class HeldView:
    """One broker's way to a store that several share. It can hold answers to appends: what they are about is there."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.appended = trio.Event()

    def hold(self) -> None:
        self.may_answer, self.appended = trio.Event(), trio.Event()

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        outcomes = await self._store.append(batch)
        self.appended.set()
        with trio.CancelScope(shield=True):
            await self.may_answer.wait()
        return outcomes

    def limits(self) -> Limits:
        return self._store.limits()._replace(shared=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@asynccontextmanager
async def brokers(count: int) -> AsyncGenerator[list[tuple[Broker, HeldView, Replicas]]]:
    """So many on one store, each of which hears all others."""
    store = MemoryStore(lambda: 1_700_000_000_000_000)
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            view = HeldView(store)
            broker = await stack.enter_async_context(run_broker(cast("Store", view), Config()))
            listener = listen_tcp("127.0.0.1", 0)
            replicas = await stack.enter_async_context(run_replicas(cast("Store", view), broker, listener))
            made.append((broker, view, replicas))
        await until_linked([replicas for _, _, replicas in made], count)
        yield made
        for _, view, _ in made:
            view.may_answer.set()


async def publish(broker: Broker, told: list[str]) -> None:
    await broker.publish("a", b"under way", None)
    told.append("acknowledged")


async def check_race(publisher: Broker, view: HeldView, subscriber: Broker) -> None:
    """Subscribe while the store has appended a message, and its publisher has not been told."""
    told: list[str] = []
    await publisher.publish("a", b"before", None)
    view.hold()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, publisher, told)
            await view.appended.wait()
            nursery.start_soon(release_later, view)
            async with subscriber.subscribe("a") as messages:
                told.append("subscribed")
                assert await publisher.publish("a", b"after", None) == 3
                assert (await messages.receive()).id == 3
    assert told == ["acknowledged", "subscribed"]


async def release_later(view: HeldView) -> None:
    await trio.sleep(0.1)
    view.may_answer.set()


async def test_what_another_broker_has_under_way_is_acknowledged_before_who_subscribes_is_told() -> None:
    async with brokers(2) as ((ours, _, _), (theirs, view, _)):
        await check_race(theirs, view, ours)


async def test_what_the_same_broker_has_under_way_is_acknowledged_before_who_subscribes_is_told() -> None:
    async with brokers(1) as ((ours, view, _),):
        await check_race(ours, view, ours)
