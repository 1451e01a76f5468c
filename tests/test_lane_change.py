"""A subject that begins to be left to another broker, or no longer is: its messages stay in order."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from commit_kit import committing, outcomes
from trial_store import TrialStore, message, messages
from trio.testing import wait_all_tasks_blocked

from persistence import Limits, NewMessage, Outcome
from trio_broker.commit import Committer


class LeavingStore(TrialStore):
    def limits(self) -> Limits:
        return super().limits()._replace(leaves_subjects=True)


class Elsewhere:
    """What is done with messages that are left to another broker: they are appended, when that is let go on."""

    def __init__(self, store: LeavingStore, committer: Committer) -> None:
        self.asked: list[bytes] = []
        self.may_answer = trio.Event()
        self._store = store
        self._committer = committer
        committer.append_left = self._append
        self.leave()

    def leave(self, *subjects: str) -> None:
        """Leave these subjects to others, from now on."""
        self._committer.left_changes()
        self._committer.is_left = lambda subject: subject in subjects

    async def _append(self, batch: list[NewMessage]) -> list[Outcome]:
        self.asked += [new.body for new in batch]
        await self.may_answer.wait()
        return await TrialStore.append(self._store, batch)


@asynccontextmanager
async def leaving() -> AsyncGenerator[tuple[LeavingStore, Committer, Elsewhere]]:
    store = LeavingStore()
    async with committing(store) as committer:
        yield store, committer, Elsewhere(store, committer)


async def test_what_begins_to_be_left_waits_for_what_is_appended_here() -> None:
    async with leaving() as (store, committer, elsewhere):
        store.hold()
        elsewhere.may_answer.set()
        first = committer.hand_over(messages(b"1"), "client")
        await wait_all_tasks_blocked()
        elsewhere.leave("a")
        second = committer.hand_over(messages(b"2"), "client")
        await wait_all_tasks_blocked()
        assert elsewhere.asked == []
        store.release()
        with trio.fail_after(5):
            assert [await outcomes(group) for group in (first, second)] == [[1], [2]]
        assert elsewhere.asked == [b"2"]


async def test_what_is_no_longer_left_stays_behind_what_was() -> None:
    async with leaving() as (_, committer, elsewhere):
        elsewhere.leave("a")
        first = committer.hand_over(messages(b"1"), "client")
        await wait_all_tasks_blocked()
        elsewhere.leave()
        second = committer.hand_over(messages(b"2"), "client")
        other = committer.hand_over([message("b")], "client")
        with trio.fail_after(5):
            assert await outcomes(other) == [1]  # nothing here waits for another broker
            elsewhere.may_answer.set()
            assert [await outcomes(group) for group in (first, second)] == [[1], [2]]
            third = committer.hand_over(messages(b"3"), "client")
            assert await outcomes(third) == [3]
        assert elsewhere.asked == [b"1", b"2"]  # and the third was appended here


async def test_what_was_withdrawn_is_not_waited_for() -> None:
    async with leaving() as (store, committer, elsewhere):
        store.hold()
        elsewhere.may_answer.set()
        committer.hand_over(messages(b"1"), "client")
        await wait_all_tasks_blocked()
        queued = committer.hand_over(messages(b"2"), "client")
        elsewhere.leave("a")
        third = committer.hand_over(messages(b"3"), "client")
        assert queued.pendings[0].withdraw()
        store.release()
        with trio.fail_after(5):
            assert await outcomes(third) == [2]
