from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from zlib import crc32

import pytest
import trio
from structlog.testing import capture_logs
from trial_store import POISON, TrialStore, message, messages
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import persistence
from persistence import Appended, NewMessage
from trio_broker.commit import OVERHEAD_BYTES, Committer, Group, Pending
from trio_broker.config import Config
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    Draining,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.storage import Availability

Delivered = list[tuple[NewMessage, Appended]]


def committer_on(store: TrialStore, delivered: Delivered | None = None, **settings: object) -> Committer:
    deliver = (lambda committed: None) if delivered is None else delivered.extend
    return Committer(store, Config(**settings), deliver, Availability())


@asynccontextmanager
async def committing(
    store: TrialStore, delivered: Delivered | None = None, **settings: object
) -> AsyncGenerator[Committer]:
    committer = committer_on(store, delivered, **settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        yield committer
        committer.close()


async def outcomes(group: Group) -> list[object]:
    """Wait until all of a group is settled; return ids, and classes of errors, in the order of the messages."""
    while await group.settled():
        pass
    return [result(pending) for pending in group.pendings]


def result(pending: Pending) -> object:
    return pending.outcome.id if isinstance(pending.outcome, Appended) else type(pending.outcome)


def bodies(delivered: Delivered) -> list[bytes]:
    return [new.body for new, _ in delivered]


# flushes


async def test_a_lone_publish_waits_for_no_timer(autojump_clock: MockClock) -> None:
    async with committing(TrialStore()) as committer:
        began = trio.current_time()
        assert await outcomes(committer.hand_over([message()], "me")) == [1]
        assert trio.current_time() == began


async def test_what_one_tick_gathers_is_one_append() -> None:
    store = TrialStore()
    async with committing(store) as committer, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(outcomes, committer.hand_over([message()], number))
    assert [len(batch) for batch in store.appends] == [100]
    assert (committer.flushes, committer.flushed_messages) == (1, 100)


async def test_what_gathers_during_an_append_is_the_next_one() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        groups = [committer.hand_over(messages(b"1"), "me")]
        await wait_all_tasks_blocked()
        for body in (b"2", b"3"):
            groups.append(committer.hand_over(messages(body), "me"))
            await wait_all_tasks_blocked()
        store.release()
        assert [await outcomes(group) for group in groups] == [[1], [2], [3]]
    assert store.appended_bodies() == [[b"1"], [b"2", b"3"]]


async def test_a_flush_is_capped_in_messages_and_a_group_is_answered_in_steps() -> None:
    store = TrialStore()
    async with committing(store, flush_messages=2) as committer:
        group = committer.hand_over(messages(b"1", b"2", b"3", b"4", b"5"), "me")
        steps = []
        while settled := await group.settled():
            steps.append([result(pending) for pending in settled])
    assert [len(batch) for batch in store.appends] == [2, 2, 1]
    assert [id_ for step in steps for id_ in step] == [1, 2, 3, 4, 5]
    assert len(steps) > 1


async def test_a_flush_is_capped_in_bytes_but_has_one_message_at_least() -> None:
    store = TrialStore()
    size = OVERHEAD_BYTES + 1 + 10  # overhead, the subject "a", the body
    async with committing(store, flush_bytes=2 * size) as committer:
        group = committer.hand_over(messages(*[b"0123456789"] * 3, b"x" * 1000, b"y"), "me")
        assert await outcomes(group) == [1, 2, 3, 4, 5]
    assert [len(batch) for batch in store.appends] == [2, 1, 1, 1]


async def test_the_stores_own_limits_hold_too() -> None:
    class Narrow(TrialStore):
        def limits(self) -> persistence.Limits:
            return super().limits()._replace(flush_messages_max=3)

    store = Narrow()
    async with committing(store, flush_messages=1000) as committer:
        await outcomes(committer.hand_over(messages(*[b""] * 7), "me"))
    assert [len(batch) for batch in store.appends] == [3, 3, 1]


async def test_a_lone_caller_beside_a_flood_is_in_the_next_flush() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        committer.hand_over(messages(*[b"flood"] * 10_000), "flood")
        await wait_all_tasks_blocked()
        lone = committer.hand_over(messages(b"lone"), "lone")
        store.release()
        await lone.settled()
        assert b"lone" in store.appended_bodies()[1]
        assert lone.pendings[0].outcome is not None


async def test_each_subject_has_one_lane_and_keeps_its_order() -> None:
    subjects = ["a", "b", "c", "d", "e"]
    assert len({crc32(subject.encode()) % 2 for subject in subjects}) == 2
    store = TrialStore(lanes=2)
    delivered: Delivered = []
    async with committing(store, delivered, flush_messages=7) as committer:
        store.hold()
        mixed = [message(subject, b"%d" % number) for number in range(40) for subject in subjects]
        group = committer.hand_over(mixed, "me")
        await wait_all_tasks_blocked()
        assert len(store.appends) == 2  # both lanes are at work
        store.release()
        await outcomes(group)
    for batch in store.appends:
        assert len({crc32(new.subject.encode()) % 2 for new in batch}) == 1
    for subject in subjects:
        mine = [(int(new.body), appended.id) for new, appended in delivered if new.subject == subject]
        assert mine == [(number, number + 1) for number in range(40)]


async def test_publishers_wake_after_delivery() -> None:
    store = TrialStore()
    groups: list[Group] = []
    seen: list[object] = []

    def deliver(committed: Delivered) -> None:
        seen.extend(pending.outcome for group in groups for pending in group.pendings)

    committer = Committer(store, Config(), deliver, Availability())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        groups.append(committer.hand_over(messages(b"1", b"2"), "me"))
        assert await outcomes(groups[0]) == [1, 2]
        committer.close()
    assert seen == [None, None]


async def test_messages_that_are_not_kept_are_delivered_in_order_with_the_others() -> None:
    delivered: Delivered = []
    async with committing(TrialStore(), delivered) as committer:
        mixed = [message(body=b"kept"), message(body=b"gone", expiration_s=0), message(body=b"kept")]
        assert await outcomes(committer.hand_over(mixed, "me")) == [1, 2, 3]
    assert [(new.body, appended.id) for new, appended in delivered] == [(b"kept", 1), (b"gone", 2), (b"kept", 3)]


# groups


async def test_an_empty_group_is_settled() -> None:
    async with committing(TrialStore()) as committer:
        with assert_checkpoints():
            assert await committer.hand_over([], "me").settled() == []


async def test_settled_is_a_checkpoint_also_when_it_need_not_wait() -> None:
    async with committing(TrialStore(), queue_messages=1) as committer:
        group = committer.hand_over(messages(b"1", b"refused"), "me")
        with assert_checkpoints():
            assert [result(pending) for pending in await group.settled()] == [Overloaded]
        with assert_checkpoints():
            assert [result(pending) for pending in await group.settled()] == [1]
        with assert_checkpoints():
            assert await group.settled() == []


async def test_cancelling_the_wait_for_a_group_loses_nothing() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        group = committer.hand_over(messages(b"1"), "me")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.settled)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        store.release()
        await wait_all_tasks_blocked()
        scope.cancel()
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await group.settled()  # something is settled already, and stays
        assert cancelled.cancelled_caught
        assert await group.settled() == group.pendings
        assert await group.settled() == []


# withdrawal


async def test_what_is_withdrawn_in_time_never_reaches_the_store_and_leaves_no_gap() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        first = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        group = committer.hand_over(messages(b"2", b"withdrawn", b"3"), "me")
        before = committer.queued_bytes
        assert group.pendings[1].withdraw()
        assert isinstance(group.pendings[1].outcome, NotApplied)
        assert committer.queued_messages == 2
        assert committer.queued_bytes == before - group.pendings[1].size_bytes
        assert not group.pendings[1].withdraw()
        store.release()
        await outcomes(first)
        assert await group.settled() == [group.pendings[0], group.pendings[2]]
        assert await group.settled() == []
    assert [result(group.pendings[number]) for number in (0, 2)] == [2, 3]
    assert store.appended_bodies() == [[b"1"], [b"2", b"3"]]


async def test_withdrawing_the_last_of_a_group_ends_the_wait_for_it() -> None:
    committer = committer_on(TrialStore())  # which does not run
    group = committer.hand_over(messages(b"1", b"2"), "me")
    settled: list[list[Pending]] = []

    async def wait() -> None:
        settled.append(await group.settled())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        group.pendings[0].withdraw()
        await wait_all_tasks_blocked()
        assert settled == []
        group.pendings[1].withdraw()
    assert settled == [[]]


async def test_a_lane_that_finds_only_withdrawn_publishes_appends_nothing() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        committer.hand_over(messages(b"1"), "me").pendings[0].withdraw()
        await wait_all_tasks_blocked()
        assert store.appends == []
        await committer.drain()


async def test_what_is_in_flight_cannot_be_withdrawn_and_is_delivered() -> None:
    store = TrialStore()
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        store.hold()
        group = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        assert not group.pendings[0].withdraw()
        store.release()
        assert await outcomes(group) == [1]
        assert not group.pendings[0].withdraw()
    assert bodies(delivered) == [b"1"]


# bounds


async def test_the_queue_takes_as_many_messages_as_it_may_and_no_more() -> None:
    store = TrialStore()
    async with committing(store, queue_messages=3) as committer:
        store.hold()
        flying = committer.hand_over(messages(b"in flight"), "me")
        await wait_all_tasks_blocked()
        waiting = committer.hand_over(messages(b"1", b"2"), "me")
        group = committer.hand_over(messages(b"3", b"4"), "other")
        assert committer.queued_messages == 3
        assert [result(pending) for pending in group.pendings] == [type(None), Overloaded]
        assert "at most 3 and" in str(group.pendings[1].outcome)
        assert waiting.pendings[0].withdraw()
        again = committer.hand_over(messages(b"5", b"6"), "other")
        assert [result(pending) for pending in again.pendings] == [type(None), Overloaded]
        store.release()
        await outcomes(flying)
        await outcomes(again)
    assert committer.queued_messages == 0
    assert [body for batch in store.appended_bodies() for body in batch] == [b"in flight", b"2", b"3", b"5"]


async def test_the_queue_takes_as_many_bytes_as_it_may_and_no_more() -> None:
    headers = {"né": b"12"}  # 3 + 2 bytes
    each = OVERHEAD_BYTES + len("ä".encode()) + 100 + 5
    committer = committer_on(TrialStore(), queue_bytes=2 * each)
    fitting = NewMessage("ä", b"x" * 100, None, headers)
    one_more_byte = fitting._replace(body=b"x" * 101)
    group = committer.hand_over([fitting, one_more_byte, fitting, fitting], "me")
    assert [result(pending) for pending in group.pendings] == [type(None), Overloaded, type(None), Overloaded]
    assert (committer.queued_messages, committer.queued_bytes) == (2, 2 * each)


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
    assert committer.flushed_messages == 48


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


# stopping


async def test_draining_refuses_what_is_new_and_finishes_what_was_taken() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        flying = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2"), "me")
        drained = []

        async def drain() -> None:
            await committer.drain()
            drained.append([result(group.pendings[0]) for group in (flying, queued)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            assert drained == []
            assert await outcomes(committer.hand_over(messages(b"late"), "me")) == [Draining]
            store.release()
        assert drained == [[1, 2]] * 2
        with assert_checkpoints():
            await committer.drain()


async def test_a_cancelled_drain_leaves_the_work_going_on() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        group = committer.hand_over(messages(b"1"), "me")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.drain)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        store.release()
        assert await outcomes(group) == [1]


async def test_closing_refuses_the_queue_and_waits_for_the_flight() -> None:
    store = TrialStore()
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        store.hold()
        flying = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2", b"3"), "me")
        committer.close()
        committer.close()
        assert await outcomes(queued) == [BrokerClosed] * 2
        assert await outcomes(committer.hand_over(messages(b"late"), "me")) == [BrokerClosed]
        assert flying.pendings[0].outcome is None
        store.release()
    assert result(flying.pendings[0]) == 1
    assert bodies(delivered) == [b"1"]


async def test_closing_while_draining_lets_the_drain_end() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        store.hold()
        flying = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2"), "me")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.drain)
            await wait_all_tasks_blocked()
            committer.close()
            store.release()
        assert [await outcomes(group) for group in (flying, queued)] == [[1], [BrokerClosed]]


async def test_a_committer_that_is_cancelled_still_tells_what_the_store_answered() -> None:
    store = TrialStore()
    delivered: Delivered = []
    committer = committer_on(store, delivered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        store.hold()
        flying = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2"), "me")
        nursery.cancel_scope.cancel()
        store.release()
    assert [result(group.pendings[0]) for group in (flying, queued)] == [1, BrokerClosed]
    assert bodies(delivered) == [b"1"]
    assert await outcomes(committer.hand_over(messages(b"late"), "me")) == [BrokerClosed]
    await committer.drain()  # there is nothing to wait for


async def test_a_committer_that_is_cancelled_says_so_where_the_store_gave_no_answer() -> None:
    class Fickle(TrialStore):
        async def append(self, batch: list[NewMessage]) -> list[persistence.Outcome]:  # type: ignore[override]
            await trio.sleep_forever()
            raise AssertionError

    committer = committer_on(Fickle())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        flying = committer.hand_over(messages(b"1"), "me")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2"), "me")
        nursery.cancel_scope.cancel()
    assert [result(group.pendings[0]) for group in (flying, queued)] == [OutcomeUnknown, BrokerClosed]


async def test_what_was_handed_over_before_the_committer_runs_is_committed() -> None:
    committer = committer_on(TrialStore())
    group = committer.hand_over(messages(b"early"), "me")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        assert await outcomes(group) == [1]
        committer.close()
