"""Subscriptions that read the log: from a start position, and after they could not keep up."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from broker_kit import broker_on
from trial_store import START_US, TrialStore
from trio.testing import MockClock, wait_all_tasks_blocked

from persistence import Page, StoreUnavailable
from trio_broker import (
    After,
    At,
    AtEnd,
    Broker,
    Draining,
    Earliest,
    Gap,
    InvalidId,
    InvalidPosition,
    Last,
    Message,
    MessageTooLarge,
    New,
    SlowConsumer,
    SlowPolicy,
    StorageUnavailable,
    open_broker,
)
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.message import DROPPED_OLDEST, LIVE_BUFFER, UNAVAILABLE
from trio_broker.start import Start, Until
from trio_broker.subscription import Messages


class ReadStore(TrialStore):
    """It counts its reads, which can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.away = False

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        self.reads += 1
        if self.away:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("away")
        return await super().read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)


@pytest.fixture(params=["memory:", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Broker]:
    url = "memory:" if request.param == "memory:" else f"sqlite:///{tmp_path / 'broker.db'}"
    async with open_broker(url, Config(subscriber_messages=8)) as broker:
        yield broker


@pytest.fixture
def store() -> ReadStore:
    return ReadStore()


async def fill(broker: Broker, count: int, expiration: int | None = None) -> None:
    for _ in range(count):
        await broker.publish("a", b"", expiration)


async def ids(broker: Broker, start: Start, until: Until | None = AtEnd()) -> list[int]:  # noqa: B008
    with trio.fail_after(20):
        async with broker.subscribe("a", start=start, until=until) as messages:
            return [message.id async for message in messages]


async def take(messages: Messages[Message], count: int) -> list[int]:
    with trio.fail_after(20):
        return [(await messages.receive()).id for _ in range(count)]


# start and end


async def test_a_log_is_read_from_each_kind_of_start_to_its_end(broker: Broker) -> None:
    await fill(broker, 20)
    assert await ids(broker, Earliest()) == list(range(1, 21))
    assert await ids(broker, After(0)) == list(range(1, 21))
    assert await ids(broker, After(17)) == [18, 19, 20]
    assert await ids(broker, After(20)) == []
    assert await ids(broker, Last(3)) == [18, 19, 20]
    assert await ids(broker, Last(0)) == []
    assert await ids(broker, Last(100)) == list(range(1, 21))
    assert await ids(broker, New()) == []
    assert await ids(broker, At(datetime(2000, 1, 1, tzinfo=UTC))) == list(range(1, 21))
    assert await ids(broker, At(datetime(9000, 1, 1, tzinfo=UTC))) == []
    fifth = await broker.fetch("a", 5)
    assert set(range(6, 21)) < set(await ids(broker, At(fifth.published_at)))
    later = await ids(broker, At(fifth.published_at + timedelta(microseconds=1)))
    assert 5 not in later
    assert broker.subscribers == 0


async def test_an_end_may_be_an_id_of_the_log_or_one_to_come(broker: Broker) -> None:
    await fill(broker, 5)
    assert await ids(broker, Earliest(), until=3) == [1, 2, 3]
    assert await ids(broker, Earliest(), until=0) == []
    assert await ids(broker, New(), until=2) == []
    async with broker.subscribe("a", start=Last(1), until=7) as messages:
        assert await take(messages, 1) == [5]
        await fill(broker, 5)
        assert await take(messages, 2) == [6, 7]
        with pytest.raises(trio.EndOfChannel):
            await messages.receive()


async def test_a_replay_goes_on_live(broker: Broker) -> None:
    await fill(broker, 30)
    async with broker.subscribe("a", start=Earliest()) as messages:
        assert await take(messages, 30) == list(range(1, 31))
        for id_ in range(31, 50):
            await fill(broker, 1, 0)
            assert await take(messages, 1) == [id_]


async def test_publishing_goes_on_during_a_replay_and_nothing_is_lost_or_doubled(broker: Broker) -> None:
    await fill(broker, 100)
    async with broker.subscribe("a", start=Earliest()) as messages, trio.open_nursery() as nursery:
        nursery.start_soon(fill, broker, 200)
        assert await take(messages, 300) == list(range(1, 301))


async def test_a_start_that_no_log_has_is_refused(broker: Broker) -> None:
    await fill(broker, 3)
    for start in (Last(-1), After(-1), At(datetime(2026, 1, 1))):
        with pytest.raises(InvalidPosition):
            await ids(broker, start)
    with pytest.raises(InvalidPosition):
        await ids(broker, Earliest(), until=-1)
    with pytest.raises(InvalidId) as unknown:
        await ids(broker, After(4))
    assert unknown.value.metadata == {"last_id": "3"}
    assert broker.subscribers == 0


async def test_a_start_is_not_found_while_the_store_is_away(store: ReadStore) -> None:
    async with broker_on(store) as broker:
        await fill(broker, 1)
        store.away = True
        with pytest.raises(StorageUnavailable):
            await ids(broker, At(datetime(2000, 1, 1, tzinfo=UTC)))


async def test_what_has_expired_is_a_gap_unless_it_is_from_before_the_start(store: ReadStore) -> None:
    async with broker_on(store) as broker:
        await fill(broker, 2, 10)
        await fill(broker, 1)
        await fill(broker, 2, 10)
        await fill(broker, 1)
        store.clock_us = START_US + 60_000_000
        for start, before in ((Earliest(), []), (Last(6), []), (After(0), [Gap("a", 1, 2, UNAVAILABLE)])):
            async with broker.subscribe("a", start=start, until=AtEnd(), report_gaps=True) as stream:
                got = [item if isinstance(item, Gap) else item.id async for item in stream]
            assert got == [*before, 3, Gap("a", 4, 5, UNAVAILABLE), 6]
        assert await ids(broker, After(0)) == [3, 6]
        assert broker.fanout.gaps[UNAVAILABLE] == 6


# who cannot keep up


async def test_who_is_behind_catches_up_and_is_live_again(broker: Broker) -> None:
    async with broker.subscribe("a") as messages:
        await fill(broker, 100)
        assert await take(messages, 100) == list(range(1, 101))
        await fill(broker, 1, 0)
        assert await take(messages, 1) == [101]
    assert broker.fanout.gaps == {UNAVAILABLE: 0, LIVE_BUFFER: 0, DROPPED_OLDEST: 0}


async def test_what_was_not_to_be_kept_is_a_gap_for_who_is_behind(broker: Broker) -> None:
    async with broker.subscribe("a", report_gaps=True) as stream, broker.subscribe("a") as silent:
        await fill(broker, 20, 0)
        await fill(broker, 1)
        got = [await stream.receive() for _ in range(10)]
        assert [item.id for item in got if isinstance(item, Message)] == [*range(1, 9), 21]
        assert got[8] == Gap("a", 9, 20, LIVE_BUFFER)
        assert await take(silent, 9) == [*range(1, 9), 21]
    assert broker.fanout.gaps[LIVE_BUFFER] == 2


async def test_who_drops_the_oldest_gets_the_newest_and_the_store_is_not_read(store: ReadStore) -> None:
    async with (
        broker_on(store, subscriber_messages=8) as broker,
        broker.subscribe("a", slow=SlowPolicy.DROP_OLDEST, report_gaps=True) as stream,
    ):
        await fill(broker, 100)
        gap = await stream.receive()
        assert isinstance(gap, Gap)
        assert (gap.first_id, gap.reason) == (1, DROPPED_OLDEST)
        following = [await stream.receive() for _ in range(100 - gap.last_id)]
        assert [item.id for item in following if isinstance(item, Message)] == list(range(gap.last_id + 1, 101))
        assert store.reads == 0


async def test_64_that_stall_cost_64_that_keep_up_no_read_and_get_all_they_missed(store: ReadStore) -> None:
    async with broker_on(store, subscriber_messages=8) as broker:
        stalled = [broker.open_subscription("a") for _ in range(64)]
        healthy = [broker.open_subscription("a") for _ in range(64)]
        for id_ in range(1, 101):
            await fill(broker, 1)
            for subscription in healthy:
                assert subscription.receive_nowait().last_id == id_
        assert store.reads == 0
        assert broker.fanout.lags == 64
        for subscription in stalled:
            assert await take(Messages(subscription), 100) == list(range(1, 101))
        for subscription in (*stalled, *healthy):
            subscription.close()


async def test_a_replay_waits_for_a_store_that_is_away_and_loses_nothing(
    store: ReadStore, autojump_clock: MockClock
) -> None:
    async with broker_on(store) as broker:
        await fill(broker, 10)
        async with broker.subscribe("a", start=Earliest()) as messages, trio.open_nursery() as nursery:
            store.away = True
            nursery.start_soon(take, messages, 10)
            await trio.sleep(5)
            assert store.reads > 1
            store.away = False


async def test_pages_that_wait_count_in_the_backlog_and_are_dropped_and_read_again_when_it_is_full(
    store: ReadStore,
) -> None:
    body = bytes(10_000)
    async with run_broker(store, Config(subscriber_messages=8), backlog_max_bytes=400_000) as broker:
        for _ in range(40):
            await broker.publish("a", body, None)
        span = await broker.locate("a", Earliest(), None)
        readers = [broker.open_subscription("a", span) for _ in range(10)]
        for reader in readers:
            reader.pull()
        await wait_all_tasks_blocked()
        assert broker.fanout.backlog.bytes <= 400_000
        for reader in readers:
            assert await take(Messages(reader), 40) == list(range(1, 41))
            reader.close()
        assert broker.fanout.slow_consumers == 0


async def test_a_message_for_which_there_is_no_memory_ends_the_subscription(store: ReadStore) -> None:
    async with run_broker(store, Config(), backlog_max_bytes=100_000) as broker:
        await broker.publish("a", b"small", None)
        await broker.publish("a", bytes(200_000), None)
        with trio.fail_after(5):
            async with broker.subscribe("a", start=After(1)) as messages:
                with pytest.raises(MessageTooLarge, match=r"message 2 of 'a' has 200000 bytes.*--memory-max"):
                    await messages.receive()


async def test_memory_that_is_short_takes_a_buffer_and_not_the_subscription(store: ReadStore) -> None:
    async with broker_on(store) as broker, broker.subscribe("a") as messages:
        failing = broker.open_subscription("a", slow=SlowPolicy.FAIL)
        await fill(broker, 10)
        broker.cache.shrink(0)
        broker.fanout.cut_farthest_behind(0)
        assert broker.fanout.backlog.bytes == 0
        assert isinstance(failing.error, SlowConsumer)
        failing.close()
        assert await take(messages, 10) == list(range(1, 11))


async def test_a_reader_that_asks_for_nothing_has_nothing_read_for_it(store: ReadStore) -> None:
    async with broker_on(store, subscriber_messages=8) as broker:
        await fill(broker, 100)
        async with broker.subscribe("a", start=Earliest()) as messages:
            await wait_all_tasks_blocked()
            assert store.reads == 0
            assert await take(messages, 8) == list(range(1, 9))
            await wait_all_tasks_blocked()
            assert store.reads == 1


async def test_draining_ends_who_is_behind(store: ReadStore) -> None:
    async with broker_on(store, subscriber_messages=8) as broker:
        await fill(broker, 100)
        async with broker.subscribe("a", start=Earliest()) as messages:
            assert await take(messages, 5) == [1, 2, 3, 4, 5]
            await broker.drain()
            with pytest.raises(Draining):
                await take(messages, 100)


async def test_a_bug_in_the_store_ends_no_replay(store: ReadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_broker.replay.RETRY_S", 0.0)
    read, failures = store.read, [ZeroDivisionError()]

    async def broken(*args: object, **limits: int) -> Page:
        if failures:
            raise failures.pop()
        return await read(*args, **limits)  # type: ignore[arg-type]

    async with broker_on(store) as broker:
        await fill(broker, 3)
        monkeypatch.setattr(store, "read", broken)
        assert await ids(broker, Earliest()) == [1, 2, 3]


@asynccontextmanager
async def resumed(broker: Broker, after_id: int) -> AsyncGenerator[Messages[Message]]:
    async with broker.subscribe("a", start=After(after_id)) as messages:
        yield messages


async def test_who_resumes_after_its_last_id_again_and_again_misses_nothing_and_gets_nothing_twice(
    broker: Broker,
) -> None:
    got: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill, broker, 300)
        while len(got) < 300:
            async with resumed(broker, got[-1] if got else 0) as messages:
                got += await take(messages, min(7, 300 - len(got)))
    assert got == list(range(1, 301))
