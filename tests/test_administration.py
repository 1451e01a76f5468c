"""What operators ask of a broker, on a store that a test drives."""

from collections.abc import Callable

import pytest
import trio
from broker_kit import Call, broker_on
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trial_store import TrialStore, message
from trio.testing import wait_all_tasks_blocked

from persistence import Conflict as StoreConflict
from persistence import Head, StoreFull, StoreUnavailable
from trio_broker import errors
from trio_broker.administration import DELETE_ATTEMPTS, Administration
from trio_broker.broker import Broker
from trio_broker.subject import is_prefix


class BusyStore(TrialStore):
    """Somebody appends whenever a subject is to be deleted; or the answer is lost; or no answer comes."""

    def __init__(self, *, appends: int = 0) -> None:
        super().__init__()
        self.appends_left = appends
        self.fault: Exception | None = None
        self.heads_hang = False

    async def head(self, subject: str) -> Head:
        if self.heads_hang:
            await trio.sleep_forever()
        return await super().head(subject)

    async def purge(self, subject: str, until_id: int) -> int:
        last_id = await super().purge(subject, until_id)
        if self.fault is not None:
            raise self.fault
        return last_id

    async def delete_subject(self, subject: str, last_id: int) -> StoreConflict | None:
        if self.appends_left:
            self.appends_left -= 1
            await self.append([message(subject)])
        conflict = await super().delete_subject(subject, last_id)
        if self.fault is not None:
            raise self.fault
        return conflict


def telling(broker: Broker, store: TrialStore, dropped: list[tuple[str, int]]) -> Administration:
    """Return one whose cache is the test's."""
    return Administration(
        store,
        broker.fanout,
        broker._reading.guarded,
        broker.refusal,
        lambda subject, until_id: dropped.append((subject, until_id)),
    )


names = st.text(st.sampled_from("a.!\ue000\ud7ff\U0010ffff\xa1\x21"), min_size=1, max_size=4)


@given(subjects=st.sets(names, max_size=12), prefix=st.one_of(st.just(""), names), size=st.integers(1, 5))
def test_pages_are_all_that_begin_with_a_prefix_in_the_order_of_their_bytes(
    subjects: set[str], prefix: str, size: int
) -> None:
    async def scenario() -> list[str]:
        store = TrialStore()
        await store.append([message(subject) for subject in subjects])
        listed: list[str] = []
        after = ""
        async with broker_on(store) as broker:
            while True:
                page = await broker.administration.list(prefix, size=size, after=after)
                assert len(page.subjects) == size or not page.next_token
                listed += [info.subject for info in page.subjects]
                after = page.next_token
                if not after:
                    return listed

    assert trio.run(scenario) == sorted((name for name in subjects if name.startswith(prefix)), key=str.encode)


@pytest.mark.parametrize("prefix", ["\x00", "a\x01", "a b", "*", "\ud800", "a\n"])
async def test_nothing_begins_with_what_no_subject_holds_and_the_store_is_not_asked(prefix: str) -> None:
    assert not is_prefix(prefix)
    async with broker_on(TrialStore()) as broker:
        broker.administration._store = None  # type: ignore[assignment]
        assert await broker.administration.list(prefix) == ([], "")


async def test_a_subject_that_is_published_to_meanwhile_is_deleted_after_some_attempts() -> None:
    store = BusyStore(appends=DELETE_ATTEMPTS - 1)
    async with broker_on(store) as broker:
        deleted = await broker.administration.delete("a")
        assert (deleted.first_id, deleted.last_id) == (DELETE_ATTEMPTS, DELETE_ATTEMPTS - 1)
        assert await store.subjects() == []


async def test_a_subject_that_is_published_to_all_the_time_is_not_deleted() -> None:
    store = BusyStore(appends=DELETE_ATTEMPTS)
    async with broker_on(store) as broker:
        with pytest.raises(errors.Conflict, match="published to all the time") as conflict:
            await broker.administration.delete("a")
        assert conflict.value.metadata == {"last_id": str(DELETE_ATTEMPTS)}
        assert await store.subjects() == ["a"]


async def test_what_comes_after_the_expected_last_id_is_not_deleted() -> None:
    store = BusyStore(appends=1)
    async with broker_on(store) as broker:
        with pytest.raises(errors.Conflict, match="the last id of 'a' is 1, not 0: nothing was deleted"):
            await broker.administration.delete("a", 0)
        for never in (-1, 2**70):
            with pytest.raises(errors.Conflict, match="is 1, not"):
                await broker.administration.delete("a", never)
        assert await store.subjects() == ["a"]


async def test_the_cache_is_told_of_what_was_dropped_or_may_have_been_and_of_nothing_else() -> None:
    store, dropped = BusyStore(), list[tuple[str, int]]()
    await store.append([message("a") for _ in range(5)])
    async with broker_on(store) as broker:
        administration = telling(broker, store, dropped)
        await administration.purge("a", 2)
        assert dropped.pop() == ("a", 2)
        with pytest.raises(errors.InvalidId):
            await administration.purge("a", 6)
        with pytest.raises(errors.Conflict):
            await administration.delete("a", 4)
        assert dropped == []
        store.fault = StoreUnavailable("the reply was lost")
        with pytest.raises(errors.StorageUnavailable):
            await administration.purge("a")
        with pytest.raises(errors.StorageUnavailable):
            await administration.delete("a")
        assert dropped == [("a", 5), ("a", 5)]


async def test_a_full_store_that_cannot_drop_anything_is_not_called_away() -> None:
    store = BusyStore()
    await store.append([message("a")])
    async with broker_on(store) as broker:
        administration = telling(broker, store, [])
        store.fault = StoreFull("disk is full")
        with pytest.raises(errors.StorageFull):
            await administration.purge("a")
        with pytest.raises(errors.StorageFull):
            await administration.delete("a")
        assert not broker.store_away_s()


async def test_who_dropped_what_is_logged() -> None:
    store = TrialStore()
    await store.append([message("a") for _ in range(3)])
    async with broker_on(store) as broker:
        with capture_logs() as logged:
            await broker.administration.purge("a", 2, asked_by="10.0.0.1:5")
            await broker.administration.delete("a", asked_by="10.0.0.1:6")
    assert [line for line in logged if line["event"].startswith("subject_")] == [
        {"event": "subject_purged", "log_level": "info", "subject": "a", "until_id": 2, "peer": "10.0.0.1:5"},
        {"event": "subject_deleted", "log_level": "info", "subject": "a", "until_id": 3, "peer": "10.0.0.1:6"},
    ]


CALLS: dict[str, Callable[[Administration], Callable[..., object]]] = {
    "list": lambda administration: administration.list,
    "info": lambda administration: lambda: administration.info("a"),
    "purge": lambda administration: lambda: administration.purge("a"),
    "delete": lambda administration: lambda: administration.delete("a"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_calls_that_wait_for_the_store_end_when_the_broker_does(name: str, nursery: trio.Nursery) -> None:
    store = BusyStore()
    await store.append([message("a")])
    store.heads_hang = True
    async with broker_on(store) as broker:
        call = Call(nursery, CALLS[name](broker.administration))  # type: ignore[arg-type]
        await wait_all_tasks_blocked()
        await broker.close()
        await wait_all_tasks_blocked()
        assert call.ended is errors.BrokerClosed


async def test_a_broker_that_drains_changes_nothing_and_still_tells() -> None:
    store = TrialStore()
    await store.append([message("a")])
    async with broker_on(store) as broker:
        await broker.drain()
        for change in (broker.administration.purge, broker.administration.delete):
            with pytest.raises(errors.Draining):
                await change("a")
        assert (await broker.administration.info("a")).first_id == 1
