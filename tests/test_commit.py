from zlib import crc32

import trio
from commit_kit import Delivered, committer_on, committing, outcomes, result
from trial_store import TrialStore, message, messages
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import persistence
from persistence import NewMessage
from trio_broker.commit import Committer
from trio_broker.config import Config
from trio_broker.errors import (
    Overloaded,
)
from trio_broker.runs import HEADER_OVERHEAD_BYTES, OVERHEAD_BYTES, Group
from trio_broker.storage import Availability

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


def refused(group: Group) -> list[bool]:
    return [isinstance(pending.outcome, Overloaded) for pending in group.pendings]


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
        again = committer.hand_over(messages(b"5", b"6"), "third")
        assert [result(pending) for pending in again.pendings] == [type(None), Overloaded]
        store.release()
        await outcomes(flying)
        await outcomes(again)
    assert committer.queued_messages == 0
    assert [body for batch in store.appended_bodies() for body in batch] == [b"in flight", b"2", b"3", b"5"]


async def test_the_queue_takes_as_many_bytes_as_it_may_and_no_more() -> None:
    headers = {"né": b"12"}  # 3 + 2 bytes
    each = OVERHEAD_BYTES + len("ä".encode()) + 100 + 5 + HEADER_OVERHEAD_BYTES
    committer = committer_on(TrialStore(), queue_bytes=2 * each)
    fitting = NewMessage("ä", b"x" * 100, None, headers)
    one_more_byte = fitting._replace(body=b"x" * 101)
    assert refused(committer.hand_over([fitting], "me")) == [False]
    assert refused(committer.hand_over([one_more_byte, fitting, fitting], "other")) == [True, False, True]
    assert (committer.queued_messages, committer.queued_bytes) == (2, 2 * each)


async def test_whoever_keeps_the_queue_full_leaves_room_for_others() -> None:
    committer = committer_on(TrialStore(), queue_messages=800)
    for taken in (400, 0):
        assert refused(committer.hand_over(messages(*[b"x"] * 500), "flood")).count(False) == taken
    assert refused(committer.hand_over(messages(*[b"x"] * 500), "another")).count(False) == 200
    for source in range(20):
        assert refused(committer.hand_over(messages(b"x"), source)) == [False]
    assert "400 of 410400 bytes from this client" in str(
        committer.hand_over(messages(b"x"), "flood").pendings[0].outcome
    )


async def test_sources_that_want_as_much_as_they_can_get_share_the_queue_alike() -> None:
    committer = committer_on(TrialStore(), queue_messages=400)
    for _ in range(150):
        for source in "abc":
            committer.hand_over(messages(b"x"), source)
    assert [committer.held_by(source)[0] for source in "abc"] == [100, 100, 100]


async def test_one_message_may_take_all_that_is_free_of_a_source_that_has_nothing_queued() -> None:
    committer = committer_on(TrialStore(), queue_bytes=10 * OVERHEAD_BYTES)
    large = message("a", b"x" * 8 * OVERHEAD_BYTES)
    assert refused(committer.hand_over([large, message()], "me")) == [False, True]
    assert refused(committer.hand_over([message()], "me")) == [True]
    assert refused(committer.hand_over([message()], "other")) == [True], "a subject too much"


async def test_what_a_source_withdraws_is_not_held_against_it() -> None:
    committer = committer_on(TrialStore(), queue_messages=8)
    group = committer.hand_over(messages(*[b"x"] * 5), "me")
    assert refused(group) == [False] * 4 + [True]
    assert committer.held_by("me")[0] == 4
    assert all(pending.withdraw() for pending in group.pendings[:4])
    assert committer.held_by("me") == (0, 0)
    assert refused(committer.hand_over(messages(*[b"x"] * 5), "me")) == [False] * 4 + [True]


async def test_who_can_wait_need_not_while_others_hold_all_that_such_may_have() -> None:
    committer = committer_on(TrialStore(), queue_messages=100)
    committer.hand_over(messages(*[b"x"] * 50), "flood")
    assert not committer.has_room(1, 0)
    assert not committer.has_room(1, 0, "flood")
    assert committer.has_room(50, 0, "other")
    assert not committer.has_room(51, 0, "other")
