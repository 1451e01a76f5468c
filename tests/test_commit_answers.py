"""Publishes that the committer answers itself, instead of a task that waits for their group."""

from commit_kit import committing, result
from structlog.testing import capture_logs
from trial_store import TrialStore, message, messages
from trio.testing import wait_all_tasks_blocked

from trio_broker.errors import Overloaded
from trio_broker.runs import Pending


async def test_each_is_answered_once_with_its_own_caller() -> None:
    answered: list[tuple[object, object]] = []
    store = TrialStore()
    async with committing(store, flush_messages=2) as committer:
        committer.hand_over(
            messages(b"1", b"2", b"3"), "me", "abc", lambda pending: answered.append((pending.caller, result(pending)))
        )
        assert answered == []
        await wait_all_tasks_blocked()
    assert answered == [("a", 1), ("b", 2), ("c", 3)]


async def test_what_cannot_be_queued_is_answered_before_hand_over_returns() -> None:
    answered: list[tuple[object, object]] = []
    async with committing(TrialStore(), queue_messages=1) as committer:
        committer.hand_over(
            messages(b"1", b"2"), "me", "ab", lambda pending: answered.append((pending.caller, result(pending)))
        )
        assert answered == [("b", Overloaded)]
        await wait_all_tasks_blocked()
    assert answered == [("b", Overloaded), ("a", 1)]


async def test_who_withdraws_a_publish_answers_for_it() -> None:
    answered: list[Pending] = []
    async with committing(TrialStore()) as committer:
        group = committer.hand_over(messages(b"1", b"2"), "me", "ab", answered.append)
        assert group.pendings[0].withdraw()
        await wait_all_tasks_blocked()
    assert answered == [group.pendings[1]]


async def test_an_answer_that_fails_is_logged_and_the_others_are_given() -> None:
    answered: list[object] = []

    def answer(pending: Pending) -> None:
        if pending.caller == "a":
            raise ValueError("a bug")
        answered.append(pending.caller)

    async with committing(TrialStore()) as committer:
        with capture_logs() as logs:
            committer.hand_over(messages(b"1", b"2"), "me", "ab", answer)
            committer.hand_over([message()], "you", "c", answer)
            await wait_all_tasks_blocked()
    assert answered == ["b", "c"]
    assert [entry["event"] for entry in logs] == ["answer_failed"]
