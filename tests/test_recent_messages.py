"""Subscribers that lag a little, or come back, cost the store no read; nobody sees what is no longer in the log."""

from collections.abc import AsyncGenerator

import pytest
import trio
from broker_kit import broker_on
from prometheus_client import CollectorRegistry
from trial_store import START_US, TrialStore
from trio.testing import MockClock

import trio_broker
from metrics import State
from persistence import Failed, Head, Limits, NewMessage, OutcomeUnknown, Page, open_store
from trio_broker import After, AtEnd, Broker, Earliest, Gap, InvalidId, Last, Message
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.message import LIVE_BUFFER
from trio_broker.metering import Metering
from trio_broker.replay import READERS_HERE
from trio_broker.rpc.server import Server
from trio_broker.service.places import Places
from trio_broker.start import Start
from trio_broker.subscription import Messages


class CountedStore(TrialStore):
    """It counts the reads of logs, and the looks at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.looks = 0
        self.shared = False

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        self.reads += 1
        return await super().read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)

    async def head(self, subject: str) -> Head:
        self.looks += 1
        return await super().head(subject)

    def limits(self) -> Limits:
        return super().limits()._replace(shared=self.shared)


@pytest.fixture
def store() -> CountedStore:
    return CountedStore()


@pytest.fixture
async def broker(store: CountedStore) -> AsyncGenerator[Broker]:
    async with broker_on(store, subscriber_messages=8) as broker:
        yield broker


async def fill(broker: Broker, count: int, expiration: int | None = None) -> None:
    for _ in range(count):
        await broker.publish("a", b"", expiration)


async def take(messages: Messages[Message], count: int) -> list[int]:
    with trio.fail_after(20):
        return [(await messages.receive()).id for _ in range(count)]


async def resume(broker: Broker, start: Start, count: int) -> list[int]:
    async with broker.subscribe("a", start=start) as messages:
        return await take(messages, count)


async def test_who_lags_a_little_costs_the_store_no_read(broker: Broker, store: CountedStore) -> None:
    async with broker.subscribe("a") as messages:
        await fill(broker, 100)
        assert await take(messages, 100) == list(range(1, 101))
        await fill(broker, 1, 0)
        assert await take(messages, 1) == [101]
    assert broker.fanout.lags == 1
    assert (store.reads, broker.replay.store_pages) == (0, 0)
    assert broker.cache.hits > 0


async def test_who_comes_back_costs_a_store_of_one_broker_nothing(broker: Broker, store: CountedStore) -> None:
    async with broker.subscribe("a") as messages:
        await fill(broker, 10)
        assert await take(messages, 5) == [1, 2, 3, 4, 5]
    await fill(broker, 10)
    assert await resume(broker, After(5), 15) == list(range(6, 21))
    async with broker.subscribe("a", start=After(20), until=22) as messages:
        await fill(broker, 2)
        assert await take(messages, 2) == [21, 22]
    assert (store.reads, store.looks) == (0, 0)
    assert await resume(broker, Earliest(), 22) == list(range(1, 23))
    assert await resume(broker, Last(2), 2) == [21, 22]
    assert (store.reads, store.looks) == (0, 2)
    with pytest.raises(InvalidId):
        await resume(broker, After(23), 1)


async def test_who_comes_back_to_a_store_of_several_asks_it_for_the_end_and_reads_nothing(
    broker: Broker, store: CountedStore
) -> None:
    store.shared = True
    async with broker_on(store) as broker, broker.subscribe("a"):
        await fill(broker, 10)
        looks = store.looks
        assert await resume(broker, After(5), 5) == [6, 7, 8, 9, 10]
        assert (store.reads, store.looks) == (0, looks + 1)
        await store.append([NewMessage("a", b"by another broker", None)])
        assert await resume(broker, After(5), 6) == [6, 7, 8, 9, 10, 11]
        assert await resume(broker, After(10), 1) == [11]
        await fill(broker, 1)
        assert await resume(broker, After(5), 7) == [6, 7, 8, 9, 10, 11, 12]


async def test_64_that_stall_and_wake_get_all_they_missed_and_nobody_reads_the_store(
    broker: Broker, store: CountedStore
) -> None:
    stalled = [broker.open_subscription("a") for _ in range(64)]
    healthy = [broker.open_subscription("a") for _ in range(64)]
    for id_ in range(1, 201):
        await fill(broker, 1)
        for subscription in healthy:
            batch = subscription.receive_nowait()
            assert (batch.first_id, batch.last_id) == (id_, id_)
    assert broker.fanout.lags == 64
    got: list[list[int]] = []

    async def wake(subscription: Messages[Message]) -> None:
        got.append(await take(subscription, 200))

    async with trio.open_nursery() as nursery:
        for subscription in stalled:
            nursery.start_soon(wake, Messages(subscription))
    assert got == [list(range(1, 201))] * 64
    assert store.reads == 0
    assert set(broker.fanout.gaps.values()) == {0}
    for subscription in (*stalled, *healthy):
        subscription.close()


async def test_they_share_the_batches_of_those_that_kept_up(broker: Broker) -> None:
    with broker.open_subscription("a") as healthy, broker.open_subscription("a") as stalled:
        live = []
        for _ in range(20):
            await fill(broker, 1)
            live.append(healthy.receive_nowait())
        with trio.fail_after(20):
            assert [await stalled.receive() for _ in range(20)] == live
        assert broker.fanout.backlog.bytes == 0, "the cache has them anyway"


async def test_what_memory_has_is_read_while_the_store_is_slow(broker: Broker, store: CountedStore) -> None:
    """Whoever needs the store waits for it, and not those whom memory serves."""
    await fill(broker, 20)
    asked = 0

    async def stuck(*_: object, **_limits: int) -> Page:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()
        raise AssertionError

    store.read = stuck  # type: ignore[method-assign]
    async with broker.subscribe("a") as messages, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(resume, broker, Earliest(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert asked == READERS_HERE
        await fill(broker, 50)
        assert await take(messages, 50) == list(range(21, 71))
        nursery.cancel_scope.cancel()


async def test_what_was_not_to_be_kept_is_a_gap_also_in_memory(broker: Broker, store: CountedStore) -> None:
    async with broker.subscribe("a", report_gaps=True) as stream:
        await fill(broker, 20, 0)
        await fill(broker, 1)
        got = [await stream.receive() for _ in range(10)]
    assert got[8] == Gap("a", 9, 20, LIVE_BUFFER)
    assert got[9].id == 21  # type: ignore[union-attr]
    assert store.reads == 0


async def test_what_has_expired_is_not_shown(store: CountedStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, subscriber_messages=8) as broker, broker.subscribe("a"):
        await trio.sleep(0.1)  # the probe has asked
        await fill(broker, 5, 10)
        await fill(broker, 5)
        assert await resume(broker, After(0), 10) == list(range(1, 11))
        assert store.reads == 0
        for passed_s, first_id in ((9, 1), (10, 6)):
            store.clock_us = START_US + passed_s * 1_000_000
            await trio.sleep(1)  # the probe asks again
            assert await resume(broker, After(0), 11 - first_id) == list(range(first_id, 11))
        assert store.reads > 0


async def test_a_later_message_tells_the_time_too(store: CountedStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, subscriber_messages=8) as broker, broker.subscribe("a"):
        await trio.sleep(0.1)
        await fill(broker, 5, 10)
        store.clock_us += 20_000_000
        await fill(broker, 1)
        assert await resume(broker, After(0), 1) == [6]


async def test_what_another_broker_purged_is_not_shown_after_the_next_subscription(store: CountedStore) -> None:
    store.shared = True
    async with broker_on(store, subscriber_messages=8) as broker, broker.subscribe("a"):
        await fill(broker, 10)
        await store.purge("a", 6)
        assert await resume(broker, After(0), 4) == [7, 8, 9, 10]
        assert await resume(broker, After(6), 4) == [7, 8, 9, 10]
        assert broker.cache.end_after("a", 6) == 10


@pytest.mark.parametrize("in_part", [False, True])
async def test_after_an_unknown_outcome_the_store_is_asked(broker: Broker, store: CountedStore, in_part: bool) -> None:
    async with broker.subscribe("a"):
        await fill(broker, 5)
        lost = OutcomeUnknown("lost while it committed")
        await store.append([NewMessage("a", b"committed, and nobody knows", None)])
        store.plan.append((lambda outcomes: [Failed(lost)] * len(outcomes)) if in_part else lost)
        with pytest.raises(trio_broker.OutcomeUnknown):
            await fill(broker, 1)
        assert broker.cache.end_after("a", 5) is None
        await broker.publish("b", b"")  # the store is back
        assert await resume(broker, After(5), 1) == [6]


async def test_publishing_to_nobody_keeps_nothing(broker: Broker) -> None:
    await fill(broker, 10)
    assert (dict(broker.cache.subjects), broker.cache.bytes) == ({}, 0)


async def test_without_a_cache_the_store_is_read(store: CountedStore) -> None:
    async with broker_on(store, subscriber_messages=8, cache_bytes=0) as broker, broker.subscribe("a") as messages:
        await fill(broker, 30)
        assert await take(messages, 30) == list(range(1, 31))
        assert (broker.cache.bytes, broker.cache.hits) == (0, 0)
        assert store.reads == broker.replay.store_pages > 0


async def test_pages_and_bytes_are_told(store: CountedStore) -> None:
    config = Config(subscriber_messages=8, cache_bytes=100_000)
    metering = Metering(config, State)
    registry: CollectorRegistry = metering.registry()

    def told(name: str) -> float | None:
        return registry.get_sample_value(f"trio_broker_cache_{name}")

    assert (told("bytes"), told("limit_bytes"), told("hits_total"), told("misses_total")) == (0, 100_000, 0, 0)
    async with run_broker(store, config) as broker:
        metering.watch(broker, Server(), Places(1))
        await fill(broker, 10)
        async with broker.subscribe("a", start=Earliest()) as messages:
            assert await take(messages, 10) == list(range(1, 11))
            await fill(broker, 20)
            assert await take(messages, 20) == list(range(11, 31))
        assert told("bytes") == broker.cache.bytes > 0
        assert told("hits_total") == broker.cache.hits > 0
        assert told("misses_total") == store.reads > 0


async def test_two_brokers_on_one_postgres_hide_nothing_of_each_other(postgres_url: str) -> None:
    """Each has what it committed in memory; of what the other appended in between nobody misses anything."""
    config = Config(subscriber_messages=8)
    async with (
        open_store(postgres_url) as here,
        open_store(postgres_url) as there,
        run_broker(here, config) as ours,
        run_broker(there, config) as theirs,
        ours.subscribe("a") as messages,
        theirs.subscribe("a") as their_messages,
    ):
        last_id = 0
        for count in (1, 5, 20, 3, 12, 1):
            for broker in (ours, theirs):
                await fill(broker, count)
                last_id += count
                for after_id in (0, last_id // 2, max(0, last_id - 2)):
                    for reader in (ours, theirs):
                        expected = list(range(after_id + 1, last_id + 1))
                        assert await resume(reader, After(after_id), len(expected)) == expected
        assert (await ours.publish("a", b"", None), await theirs.publish("a", b"", None)) == (last_id + 1, last_id + 2)
        assert await take(messages, last_id + 1) == list(range(1, last_id + 2))
        assert await take(their_messages, last_id + 2) == list(range(1, last_id + 3))
        assert ours.cache.hits > 0
        assert ours.fanout.gaps == theirs.fanout.gaps
        assert set(ours.fanout.gaps.values()) == {0}
        await ours.publish("a", b"", None)
        async with ours.subscribe("a", start=Earliest(), until=AtEnd()) as whole:
            assert [message.id async for message in whole] == list(range(1, last_id + 4))
