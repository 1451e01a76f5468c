"""Who has the headers of a subscription to what is new gets all that is acknowledged after them, by any broker."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
import trio
from postgres_kit import until
from replicas_kit import until_linked

from persistence import NewMessage, Outcome, Store
from persistence.facade import Limits
from persistence.memory import MemoryStore
from trio_broker import Broker, settling
from trio_broker._proto import broker_pb2
from trio_broker.broker import run_broker
from trio_broker.client.channel import open_channel
from trio_broker.config import Config
from trio_broker.fanout import Span
from trio_broker.replicas import Replicas, links, run_replicas, service
from trio_broker.replicas.links import SETTLE_PATH, Link
from trio_broker.rpc.listeners import listen_tcp
from trio_broker.rpc.server import Server
from trio_broker.service.places import Places
from trio_broker.service.servicer import BrokerService
from trio_broker.settling import Settling
from trio_broker.start import After, Earliest, Last, New, Start


class HeldView:
    """One broker's way to a store that several share. It can hold answers to appends: what they are about is there."""

    def __init__(self, store: MemoryStore, *, shared: bool = True, leaves_subjects: bool = False) -> None:
        self._store = store
        self._shared = shared
        self._leaves_subjects = leaves_subjects
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
        return self._store.limits()._replace(shared=self._shared, leaves_subjects=self._leaves_subjects)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def memory() -> MemoryStore:
    return MemoryStore(lambda: 1_700_000_000_000_000)


@asynccontextmanager
async def brokers(
    count: int, *, leaves_subjects: bool = False
) -> AsyncGenerator[list[tuple[Broker, HeldView, Replicas]]]:
    """So many on one store, each of which hears all others."""
    store = memory()
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            view = HeldView(store, leaves_subjects=leaves_subjects)
            broker = await stack.enter_async_context(run_broker(cast("Store", view), Config()))
            listener = listen_tcp("127.0.0.1", 0)
            replicas = await stack.enter_async_context(run_replicas(cast("Store", view), broker, listener))
            made.append((broker, view, replicas))
        await until_linked([replicas for _, _, replicas in made], count)
        yield made
        for _, view, _ in made:
            view.may_answer.set()


LONG_S = 60.0
"""Longer than any test."""


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody's patience end: what does not wait for it ends by itself."""
    for module in (settling, links, service):
        monkeypatch.setattr(module, "SETTLE_MAX_S", LONG_S)


async def publish(broker: Broker, told: list[str]) -> None:
    await broker.publish("a", b"under way", None)
    told.append("acknowledged")


async def check_race(publisher: Broker, view: HeldView, subscriber: Broker, until_id: int | None = None) -> None:
    """Subscribe while the store has appended a message, and its publisher has not been told."""
    told: list[str] = []
    await publisher.publish("a", b"before", None)
    view.hold()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, publisher, told)
            await view.appended.wait()
            nursery.start_soon(release_when_waited_for, publisher, view)
            async with subscriber.subscribe("a", until=until_id) as messages:
                told.append("subscribed")
                assert await publisher.publish("a", b"after", None) == 3
                assert (await messages.receive()).id == 3
    assert told == ["acknowledged", "subscribed"]


async def release_when_waited_for(publisher: Broker, view: HeldView) -> None:
    """Let the store answer once a subscription waits for that, or does not."""
    with trio.move_on_after(1):
        await until(lambda: publisher.committer._landed)
    view.may_answer.set()


@pytest.mark.usefixtures("unbounded")
async def test_what_another_broker_has_under_way_is_acknowledged_before_who_subscribes_is_told() -> None:
    async with brokers(2) as ((ours, _, _), (theirs, view, _)):
        await check_race(theirs, view, ours)


@pytest.mark.usefixtures("unbounded")
async def test_what_the_same_broker_has_under_way_is_acknowledged_before_who_subscribes_is_told() -> None:
    async with brokers(1) as ((ours, view, _),):
        await check_race(ours, view, ours)


@pytest.mark.usefixtures("unbounded")
async def test_so_it_is_for_who_has_an_end_where_there_is_no_other_broker() -> None:
    view = HeldView(memory(), shared=False)
    async with run_broker(cast("Store", view), Config()) as broker:
        await check_race(broker, view, broker, until_id=9)


@pytest.mark.usefixtures("unbounded")
async def test_what_was_left_to_another_broker_is_under_way_at_the_one_that_was_asked_for_it() -> None:
    async with brokers(3, leaves_subjects=True) as made:
        (subscriber, _, _), *others = made
        publisher, view, replicas = next(each for each in others if each[0].committer.is_left("a"))
        assert replicas.forwarding is not None
        append = replicas.forwarding.append

        async def append_and_hold(batch: Sequence[NewMessage]) -> list[Outcome]:
            outcomes = await append(batch)
            told = replicas.forwarding and replicas.forwarding.take_told()
            view.appended.set()
            await view.may_answer.wait()
            if replicas.forwarding is not None:
                replicas.forwarding._told = told or frozenset()
            return outcomes

        publisher.committer.append_left = append_and_hold
        await check_race(publisher, view, subscriber)
        assert replicas.forwarding.forwarded == 3


async def waited_s(broker: Broker) -> float:
    began = trio.current_time()
    async with broker.subscribe("a"):
        return trio.current_time() - began


async def test_a_broker_that_does_not_get_on_is_not_waited_for_longer() -> None:
    async with brokers(2) as ((ours, _, _), (theirs, view, _)), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(theirs.publish, "a", b"", None)
        await view.appended.wait()
        assert settling.SETTLE_MAX_S <= await waited_s(ours) < settling.SETTLE_MAX_S + 1
        view.may_answer.set()


@pytest.mark.usefixtures("unbounded")
async def test_a_broker_whose_connection_breaks_is_not_waited_for() -> None:
    async with brokers(2) as ((ours, _, replicas), (theirs, view, _)), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(theirs.publish, "a", b"", None)
        await view.appended.wait()

        async def break_connection() -> None:
            await until(lambda: theirs.committer._landed)
            for link in replicas.links.values():
                link.lose("cut by the test")

        nursery.start_soon(break_connection)
        with trio.fail_after(10):
            await waited_s(ours)
        view.may_answer.set()


@pytest.mark.usefixtures("unbounded")
async def test_an_older_broker_that_does_not_know_the_question_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "SETTLE_PATH", "/broker.Replicas/Unknown")
    async with brokers(2) as ((ours, _, replicas), (theirs, view, _)), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(theirs.publish, "a", b"", None)
        await view.appended.wait()
        with trio.fail_after(10):
            await waited_s(ours)
        assert replicas.is_linked(), "an answer that is not understood breaks nothing"
        view.may_answer.set()


@pytest.mark.usefixtures("unbounded")
async def test_those_who_come_while_a_question_is_under_way_share_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = Link.ask

    async def counting(self: Link, path: str, message: bytes, timeout_s: float) -> bytes:
        asked.append(path)
        return await ask(self, path, message, timeout_s)

    monkeypatch.setattr(Link, "ask", counting)
    async with brokers(2) as ((ours, _, _), (theirs, view, _)), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(theirs.publish, "a", b"", None)
        await view.appended.wait()
        nursery.start_soon(waited_s, ours)
        await until(lambda: theirs.committer._landed)
        for _ in range(1000):
            nursery.start_soon(waited_s, ours)
        await until(lambda: ours.subscribers == 1001)
        view.may_answer.set()
    assert asked == [SETTLE_PATH] * 2


async def test_a_subscription_that_is_cancelled_while_it_waits_is_closed() -> None:
    async with brokers(1) as ((ours, view, _),), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(ours.publish, "a", b"", None)
        await view.appended.wait()
        with trio.move_on_after(0.05) as scope:
            await waited_s(ours)
        assert scope.cancelled_caught
        assert ours.subscribers == 0
        view.may_answer.set()


async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    async with brokers(1) as ((ours, view, _),), trio.open_nursery() as nursery:
        places = Places(10)
        server = Server()
        server.add_service(BrokerService(ours, places=places).service)
        port = await nursery.start(server.serve_async)
        view.hold()
        nursery.start_soon(ours.publish, "a", b"", None)
        await view.appended.wait()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            request = broker_pb2.SubscribeRequest(subject="a").SerializeToString()
            call = await channel.start("/broker.Broker/Subscribe", request)
            await until(lambda: (ours.subscribers, places.taken) == (1, 1))
            call.close()
            await until(lambda: (ours.subscribers, places.taken) == (0, 0))
        view.may_answer.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("start", "span"),
    [(New(), Span()), (Earliest(), Span(0)), (Last(1), Span(7)), (After(7), Span(7, None, 7, live=True))],
    ids=["where there is no other broker", "earliest", "last", "after an id"],
)
async def test_who_has_its_position_from_elsewhere_does_not_wait(start: Start, span: Span) -> None:
    async with brokers(1) as ((ours, view, _),), trio.open_nursery() as nursery:
        view.hold()
        nursery.start_soon(ours.publish, "a", b"", None)
        await view.appended.wait()
        with trio.testing.assert_no_checkpoints():
            await Settling(ours.committer).wait(start, span)
        view.may_answer.set()
