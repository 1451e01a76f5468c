from collections.abc import Callable

import pytest
import trio
from commit_kit import Delivered, bodies, committing, outcomes
from structlog.testing import capture_logs
from trial_store import POISON, TrialStore, messages
from trio.testing import MockClock, wait_all_tasks_blocked

import persistence
from persistence import Appended
from trio_broker.commit import Committer
from trio_broker.config import Config
from trio_broker.errors import (
    BrokerError,
    OutcomeUnknown,
    Rejected,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.runs import Pending
from trio_broker.storage import Availability

# failing flushes


async def test_a_flush_that_fails_for_its_content_is_split_until_only_the_guilty_fail() -> None:
    store = TrialStore()
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        all_bodies = [b"%d" % number for number in range(50)]
        all_bodies[7] = all_bodies[31] = POISON
        group = committer.hand_over(messages(*all_bodies), "me")
        found = await outcomes(group)
    innocent = [body for body in all_bodies if body != POISON]
    assert [outcome for outcome in found if outcome is not Rejected] == list(range(1, 49))
    assert [number for number, outcome in enumerate(found) if outcome is Rejected] == [7, 31]
    assert "poison" in str(group.pendings[7].outcome)
    assert [new.body for new in store.applied] == innocent == bodies(delivered)


async def test_all_may_be_guilty() -> None:
    async with committing(TrialStore()) as committer:
        assert await outcomes(committer.hand_over(messages(*[POISON] * 5), "me")) == [Rejected] * 5
        assert await outcomes(committer.hand_over(messages(b"fine"), "me")) == [1]


async def test_a_split_flush_keeps_what_was_committed_before_the_store_was_lost() -> None:
    store = TrialStore()
    store.plan.extend(
        [persistence.BadContent("something in it"), lambda outcomes: outcomes, persistence.StoreUnavailable("gone")]
    )
    async with committing(store) as committer:
        found = await outcomes(committer.hand_over(messages(b"1", b"2", b"3", b"4"), "me"))
    assert found == [1, 2, StorageUnavailable, StorageUnavailable]


async def test_a_message_that_the_store_rejects_fails_alone() -> None:
    store = TrialStore()
    store.plan.append(lambda found: [found[0], persistence.Rejected("not on a Sunday"), found[2]])
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        group = committer.hand_over(messages(b"1", b"2", b"3"), "me")
        assert await outcomes(group) == [1, Rejected, 3]
    assert str(group.pendings[1].outcome) == "not on a Sunday"
    assert bodies(delivered) == [b"1", b"3"]


async def test_of_a_store_that_appends_each_subject_by_itself_some_may_fail() -> None:
    store = TrialStore()
    store.plan.append(lambda found: [found[0], persistence.Failed(persistence.StoreUnavailable("no quorum")), found[2]])
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        group = committer.hand_over(messages(b"1", b"2", b"3"), "me")
        assert await outcomes(group) == [1, StorageUnavailable, 3]
    assert bodies(delivered) == [b"1", b"3"]


async def test_a_store_that_appends_nothing_is_away_although_each_subject_fails_in_its_own_way() -> None:
    store = TrialStore()
    unavailable, unknown = persistence.StoreUnavailable("no quorum"), persistence.OutcomeUnknown("no answer")
    store.plan.append(lambda found: [persistence.Failed(unavailable), persistence.Failed(unknown)])
    availability = Availability()
    async with committing(store, availability=availability) as committer:
        group = committer.hand_over(messages(b"1", b"2"), "me")
        assert await outcomes(group) == [StorageUnavailable, OutcomeUnknown]
        assert availability.away
        await outcomes(committer.hand_over(messages(b"3"), "me"))
        assert not availability.away


async def test_what_a_store_refuses_among_others_is_split_until_only_the_guilty_fail() -> None:
    store = TrialStore()
    bad = persistence.BadContent("bad")
    store.plan += [lambda found: [found[0], *[persistence.Failed(bad)] * 3], lambda found: found, bad, bad]
    async with committing(store, []) as committer:
        group = committer.hand_over(messages(b"1", b"2", b"bad", b"4"), "me")
        assert [found for found in await outcomes(group) if not isinstance(found, int)] == [Rejected]
    assert isinstance(group.pendings[2].outcome, Rejected)
    assert [[new.body for new in batch] for batch in store.appends] == [
        [b"1", b"2", b"bad", b"4"],
        [b"2"],
        [b"bad", b"4"],
        [b"bad"],
        [b"4"],
    ]


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (persistence.StoreUnavailable("no route"), StorageUnavailable),
        (persistence.StoreFull("no space"), StorageFull),
        (persistence.OutcomeUnknown("connection lost"), OutcomeUnknown),
    ],
)
async def test_a_store_that_fails_fails_the_whole_flush_and_the_next_one_is_tried(
    failure: Exception, outcome: type[BrokerError]
) -> None:
    store = TrialStore()
    store.plan.append(failure)
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        assert await outcomes(committer.hand_over(messages(b"1", b"2"), "me")) == [outcome] * 2
        assert await outcomes(committer.hand_over(messages(b"3"), "me")) == [1]
    assert bodies(delivered) == [b"3"]


async def test_a_full_disk_is_logged_when_it_begins_and_when_it_ends() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        with capture_logs() as logs:
            for plan in (None, persistence.StoreFull("disk full"), persistence.StoreFull("disk full"), None):
                if plan is not None:
                    store.plan.append(plan)
                await settled_one(committer)
    assert [(entry["event"], entry.get("why")) for entry in logs] == [
        ("store_full", "disk full"),
        ("store_has_space", None),
    ]


@pytest.mark.parametrize("step", [ZeroDivisionError("a bug"), lambda found: found[:-1]])
async def test_a_bug_in_the_store_is_logged_once_and_the_lane_goes_on(step: Exception | Callable) -> None:
    store = TrialStore()
    store.plan.append(step)
    async with committing(store) as committer:
        with capture_logs() as logs:
            assert await outcomes(committer.hand_over(messages(b"1", b"2"), "me")) == [OutcomeUnknown] * 2
            assert isinstance((await settled_one(committer)).outcome, Appended)
    failures = [entry for entry in logs if entry["event"] == "append_failed"]
    assert [(entry["messages"], entry["exc_info"]) for entry in failures] == [(2, True)]


async def settled_one(committer: Committer) -> Pending:
    (pending,) = await committer.hand_over(messages(b"x"), "me").settled()
    return pending


async def test_a_store_that_hangs_while_committing_is_away_although_it_answers_questions(
    autojump_clock: MockClock,
) -> None:
    store = TrialStore()
    availability = Availability()
    committer = Committer(store, Config(commit_timeout=7), lambda committed: None, availability)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        store.hold()
        committer.hand_over(messages(b"1"), "me")
        await trio.sleep(20)
        availability.answered()
        availability.answered()
        assert availability.away_s() == 13
        store.release()
        await wait_all_tasks_blocked()
        assert not availability.away
        committer.close()


async def test_a_publish_the_store_keeps_too_long_is_answered_and_delivered_later(autojump_clock: MockClock) -> None:
    store = TrialStore()
    delivered: Delivered = []
    async with committing(store, delivered, commit_timeout=7) as committer:
        await trio.sleep(3)  # so that the watch has to look again
        store.hold()
        group = committer.hand_over(messages(b"1", b"2"), "me")
        began = trio.current_time()
        assert await outcomes(group) == [OutcomeUnknown] * 2
        assert trio.current_time() == began + 7
        next_group = committer.hand_over(messages(b"3"), "me")
        await trio.sleep(100)
        assert delivered == []
        assert next_group.pendings[0].outcome is None  # still queued: the lane waits for the store
        store.release()
        assert await outcomes(next_group) == [3]
    assert bodies(delivered) == [b"1", b"2", b"3"]


async def test_of_a_split_flush_that_takes_too_long_what_was_not_tried_is_known_not_to_be_appended(
    autojump_clock: MockClock,
) -> None:
    store = TrialStore()
    store.plan.append(persistence.BadContent("one of them"))
    async with committing(store, [], commit_timeout=7) as committer:
        store.hold()
        group = committer.hand_over(messages(b"1", b"2", b"3", b"4"), "me")
        await wait_all_tasks_blocked()
        store.release()
        store.hold()  # the first half is under way
        assert await outcomes(group) == [OutcomeUnknown, OutcomeUnknown, StorageUnavailable, StorageUnavailable]
        store.release()
        assert await outcomes(committer.hand_over(messages(b"5"), "me")) == [3]
    assert [new.body for new in store.applied] == [b"1", b"2", b"5"]
