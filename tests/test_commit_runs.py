"""Runs of several messages in the committer's hands."""

import sys

import trio
from commit_kit import Delivered, bodies, committing
from trial_store import POISON, TrialStore, messages
from trio.testing import MockClock, wait_all_tasks_blocked

import persistence
from persistence import Appended, NewMessage
from trio_broker.commit import Committer
from trio_broker.errors import BrokerError, NotApplied, OutcomeUnknown, Overloaded, Rejected, StorageUnavailable
from trio_broker.runs import OVERHEAD_BYTES, Group, cut, size_bytes


def whole(committer: Committer, *all_bodies: bytes, group: int = 0, source: str = "me") -> Group:
    """Hand messages over as one run."""
    new = [each._replace(group=group) for each in messages(*all_bodies)]
    return committer.hand_over_runs([(new, sum(map(size_bytes, new)))], source)


def told(group: Group) -> list[object]:
    (pending,) = group.pendings
    assert pending.outcomes is not None
    return [outcome.id if isinstance(outcome, Appended) else type(outcome) for outcome in pending.outcomes]


async def settle(group: Group) -> list[object]:
    assert await group.settled() == group.pendings
    assert await group.settled() == []
    return told(group)


async def test_a_run_is_one_part_of_a_flush_and_settled_once() -> None:
    store = TrialStore()
    delivered: Delivered = []
    async with committing(store, delivered) as committer:
        first, second = whole(committer, b"1", b"2"), whole(committer, b"3")
        assert committer.queued_messages == 3
        assert [await settle(first), await settle(second)] == [[1, 2], [3]]
    assert store.appended_bodies() == [[b"1", b"2", b"3"]]
    assert bodies(delivered) == [b"1", b"2", b"3"]


async def test_of_a_run_only_the_guilty_fail() -> None:
    async with committing(TrialStore()) as committer:
        group = whole(committer, *[b"x"] * 20, POISON, *[b"x"] * 20, POISON)
        assert await settle(group) == [*range(1, 21), Rejected, *range(21, 41), Rejected]


async def test_an_atomic_run_fails_as_one_and_its_neighbours_do_not() -> None:
    store = TrialStore()
    async with committing(store) as committer:
        before, atomic, after = (
            whole(committer, b"1", b"2"),
            whole(committer, b"3", POISON, b"4", group=1),
            whole(committer, b"5"),
        )
        assert await settle(before) == [1, 2]
        assert await settle(atomic) == [Rejected] * 3
        assert await settle(after) == [3]


async def test_what_a_store_refuses_of_a_run_is_tried_again_without_the_rest() -> None:
    store = TrialStore()
    bad = persistence.BadContent("bad")
    store.plan += [lambda found: [found[0], *[persistence.Failed(bad)] * 2], lambda found: found, bad]
    async with committing(store) as committer:
        assert await settle(whole(committer, b"1", b"2", b"bad")) == [1, 4, Rejected]


async def test_a_run_that_does_not_fit_is_refused_whole() -> None:
    store = TrialStore()
    async with committing(store, queue_messages=3) as committer:
        store.hold()
        flying = whole(committer, b"1")
        await wait_all_tasks_blocked()
        kept = whole(committer, b"2", b"3")
        assert told(whole(committer, b"4", b"5")) == [Overloaded] * 2
        assert kept.pendings[0].withdraw()
        assert told(kept) == [NotApplied] * 2
        assert committer.queued_messages == 0
        store.release()
        assert await settle(flying) == [1]


async def test_of_a_run_that_was_cut_the_untried_half_is_known_not_to_be_appended(autojump_clock: MockClock) -> None:
    store = TrialStore()
    store.plan.append(persistence.BadContent("one of them"))
    async with committing(store, [], commit_timeout=7) as committer:
        store.hold()
        group = whole(committer, b"1", b"2", b"3", b"4")
        await wait_all_tasks_blocked()
        store.release()
        store.hold()  # the first half is under way
        assert await settle(group) == [OutcomeUnknown, OutcomeUnknown, StorageUnavailable, StorageUnavailable]
        store.release()


async def test_a_cancelled_committer_settles_runs_that_it_had_cut() -> None:
    store = TrialStore()
    store.plan.append(persistence.BadContent("one of them"))
    async with trio.open_nursery() as nursery, committing(store) as committer:
        store.hold()
        group = whole(committer, b"1", b"2", b"3", b"4")
        await wait_all_tasks_blocked()
        store.release()
        store.hold()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        store.release()
    assert all(isinstance(each, BrokerError | Appended) for each in group.pendings[0].outcomes or [None])


def test_messages_are_cut_by_number_by_size_and_by_lane() -> None:
    new = [*messages(*[b"x" * 100] * 5), *messages(b"y" * 9_000), *messages(b"z", b"z", subject="b")]
    assert [len(run) for run, _ in cut(new, 3, 1 << 20)] == [3, 3, 2]
    assert [len(run) for run, _ in cut(new, 64, 2 * size_bytes(new[0]))] == [2, 2, 1, 1, 2]
    assert [len(run) for run, _ in cut(new, 64, 1 << 20, lambda subject: subject == "b")] == [6, 2]
    assert all(size == sum(map(size_bytes, run)) for run, size in cut(new, 3, 4_000))
    assert cut([], 3, 100) == []


def test_a_message_counts_for_no_less_than_it_takes() -> None:
    """Also one of many small headers, which take many times their bytes: else a queue of them takes all memory."""
    headers = {f"{number:02}": b"%d" % number for number in range(10, 74)}
    taken = sys.getsizeof(dict(headers)) + sum(sys.getsizeof(each) for pair in headers.items() for each in pair)
    assert size_bytes(NewMessage("a", b"", 0, headers)) >= OVERHEAD_BYTES // 2 + taken
