import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from broker_kit import broker_on
from structlog.testing import capture_logs
from trial_store import POISON, TrialStore, message
from trio.testing import MockClock

import persistence
from trio_broker import (
    InvalidId,
    OutcomeUnknown,
    StorageUnavailable,
    open_broker,
)
from trio_broker.errors import Rejected


@pytest.fixture
def store() -> TrialStore:
    return TrialStore()


async def test_a_poison_body_fails_alone_on_a_real_database(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with open_broker(f"sqlite:///{path}") as broker:
        plant = sqlite3.connect(path)
        plant.execute(
            "CREATE TRIGGER poison BEFORE INSERT ON messages WHEN NEW.body = CAST('poison' AS BLOB) "
            "BEGIN SELECT RAISE(ABORT, 'this body is not allowed'); END"
        )
        plant.close()
        bodies = [b"%d" % number for number in range(20)]
        bodies[3] = bodies[17] = POISON
        with broker.open_subscription("a") as subscription:
            group = broker.hand_over([broker.check("a", body, 3600) for body in bodies], "me")
            while await group.settled():
                pass
            delivered = []
            while True:
                try:
                    delivered += [m.body for m in subscription.receive_nowait().messages]
                except trio.WouldBlock:
                    break
        assert delivered == [body for body in bodies if body != POISON]
        guilty = [number for number, pending in enumerate(group.pendings) if isinstance(pending.outcome, Rejected)]
        assert guilty == [3, 17]
        assert "this body is not allowed" in str(group.pendings[3].outcome)
        assert [(await broker.fetch("a", id_)).body for id_ in range(1, 19)] == delivered
        with pytest.raises(InvalidId):
            await broker.fetch("a", 19)


async def test_a_store_that_is_away_refuses_publishes_fetches_and_new_subscriptions(store: TrialStore) -> None:
    async with broker_on(store) as broker, broker.subscribe("a") as established:
        assert broker.store_away_s() == 0.0
        store.plan.append(persistence.StoreUnavailable("no route"))
        with pytest.raises(StorageUnavailable) as refused:
            await broker.publish("a", b"")
        assert refused.value.retryable
        with pytest.raises(StorageUnavailable):
            async with broker.subscribe("a"):
                raise AssertionError
        assert broker.store_away_s() >= 0.0
        assert await broker.publish("a", b"back") == 1
        assert broker.store_away_s() == 0.0
        assert (await established.receive()).body == b"back"


async def test_a_failing_read_is_told_and_makes_the_store_away(store: TrialStore) -> None:
    async def fail(keys: object) -> list:
        await trio.lowlevel.checkpoint()
        raise persistence.StoreUnavailable("no route")

    store.get = fail  # type: ignore[method-assign]
    async with broker_on(store) as broker:
        with pytest.raises(StorageUnavailable):
            await broker.fetch("a", 1)
        with pytest.raises(StorageUnavailable):
            broker.open_subscription("a")


async def test_the_probe_notices_what_nobody_called(store: TrialStore, autojump_clock: MockClock) -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise persistence.StoreUnavailable("no route")

    async with broker_on(store) as broker:
        await trio.sleep(5)
        assert broker.store_away_s() == 0.0
        store.now = fail  # type: ignore[method-assign]
        await trio.sleep(10)
        assert broker.store_away_s() >= 8
        del store.now
        await trio.sleep(3)
        assert broker.store_away_s() == 0.0


class LockedStore(TrialStore):
    """Answers reads, and refuses appends after a while, as a file that another process has locked does."""

    locked = False

    async def append(self, batch: Sequence[persistence.NewMessage]) -> list[persistence.Outcome]:
        if self.locked:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            raise persistence.StoreUnavailable("database is locked")
        return await super().append(batch)


async def test_a_store_that_refuses_each_append_slowly_is_away_until_it_takes_one(autojump_clock: MockClock) -> None:
    store = LockedStore()

    async def keep_publishing() -> None:
        while True:
            with suppress(StorageUnavailable):
                await broker.publish("a", b"")
            await trio.sleep(0.3)

    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        nursery.start_soon(keep_publishing)
        await trio.sleep(10)
        store.locked = True
        with capture_logs() as logs:
            await trio.sleep(60)
            assert broker.store_away_s() > 54
            store.locked = False
            await trio.sleep(6)
            assert broker.store_away_s() == 0.0
        assert [entry["event"] for entry in logs] == ["store_away", "store_back"]
        nursery.cancel_scope.cancel()


async def test_the_broker_sweeps(store: TrialStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, sweep_interval=1) as broker:
        await store.append([message(expiration_s=1) for _ in range(5000)])
        store.clock_us += 2_000_000
        await trio.sleep(3)
        assert await store.sweep() == persistence.Swept(0, more=False)
        assert await broker.publish("a", b"") == 5001


async def test_a_hanging_commit_is_answered_in_time(store: TrialStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, commit_timeout=3) as broker, broker.subscribe("a") as messages:
        store.hold()
        with pytest.raises(OutcomeUnknown):
            await broker.publish("a", b"late")
        assert trio.current_time() == 3
        store.release()
        assert (await messages.receive()).body == b"late"
