"""Appends that are left to another replica: what becomes of messages that it took in part, or said nothing of."""

from collections.abc import Callable

import pytest
import trio
from trial_store import TrialStore

from persistence import Appended, Failed, NewMessage, Outcome, StoreUnavailable
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.errors import ConnectionLost
from trio_broker.replicas.forwarding import Forwarding
from trio_broker.storage import NotAnswered

Answer = Callable[[], pb.AppendResponse]


class Neighbour:
    """A link to a replica that every subject is left to, and that gives one answer."""

    connected = True

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ask(self, _path: str, _request: bytes, _timeout_s: float) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._answer().SerializeToString()

    def lose(self, _why: str) -> None:
        self.connected = False


async def append(store: TrialStore, answer: Answer, *batch: NewMessage) -> list[Outcome]:
    neighbour = Neighbour(answer)
    forwarding = Forwarding(
        "",
        store.append,
        lambda: {"other": neighbour},  # type: ignore[dict-item]
        lambda _to: pb.Greeting(),
    )
    forwarding._owners = {"a": "other"}
    forwarding._heard = ("other",)
    return await forwarding.append(batch)


def message(body: bytes, key: str = "") -> NewMessage:
    return NewMessage("a", body, None, {}, key)


def silent() -> pb.AppendResponse:
    raise ConnectionLost("cut")


UNAVAILABLE = pb.AppendResult(unavailable="full")
APPENDED = pb.AppendResult(appended=pb.AppendedAt(id=7, time_us=1))
UNKNOWN = pb.AppendResult(unknown="lost")


@pytest.mark.parametrize("later", [APPENDED, UNKNOWN], ids=["appended", "unknown"])
async def test_what_was_not_appended_before_something_that_was_is_not_appended_after_it(later: pb.AppendResult) -> None:
    store = TrialStore()
    answer = pb.AppendResponse(results=[UNAVAILABLE, later, UNAVAILABLE])
    first, _, last = await append(store, lambda: answer, message(b"1"), message(b"2"), message(b"3"))
    assert isinstance(first, Failed)
    assert isinstance(first.error, StoreUnavailable)
    assert isinstance(last, Appended)
    assert store.appended_bodies() == [[b"3"]]


async def test_without_an_answer_what_has_a_key_is_tried_here_and_the_rest_is_not_known() -> None:
    store = TrialStore()
    first, second = await append(store, silent, message(b"1", "key"), message(b"2"))
    assert isinstance(first, Appended)
    assert isinstance(second, Failed)
    assert isinstance(second.error, NotAnswered)
    assert store.appended_bodies() == [[b"1"]]


async def test_what_may_have_been_appended_elsewhere_is_not_known_where_it_cannot_be_tried_here() -> None:
    store = TrialStore()
    store.plan.append(StoreUnavailable("away"))
    (outcome,) = await append(store, silent, message(b"1", "key"))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, NotAnswered)


async def test_a_bug_of_the_store_leaves_what_the_other_one_said() -> None:
    store = TrialStore()
    store.plan.append(ZeroDivisionError("a bug"))
    answer = pb.AppendResponse(results=[APPENDED, UNAVAILABLE])
    first, second = await append(store, lambda: answer, message(b"1"), message(b"2"))
    assert first == Appended(7, 1)
    assert isinstance(second, Failed)
    assert type(second.error).__name__ == "OutcomeUnknown"
