import trio
from commit_kit import Delivered, bodies, committer_on, committing, outcomes, result
from trial_store import TrialStore, messages
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import persistence
from persistence import NewMessage
from trio_broker.errors import (
    BrokerClosed,
    Draining,
    NotApplied,
    OutcomeUnknown,
)
from trio_broker.runs import Pending

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
        assert group.pendings[1].message.body == b"", "its place in the queue does not keep the body"
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
