"""Live batches of one subject in any order, doubled, overlapping, lost and late, beside what is promised of them."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import NO_HEADERS
from trio_broker.batch import Batch
from trio_broker.merge import HELD_MAX, PATIENCE_S, Lifetimes, Merge
from trio_broker.message import Message


def batch(first_id: int, last_id: int, subject: str = "a") -> Batch:
    return Batch([Message(subject, id_, b"", NO_HEADERS, 0) for id_ in range(first_id, last_id + 1)])


def lifetimes(batch: Batch) -> list[int | None]:
    """Return such that each message can be told by its own."""
    return [message.id for message in batch.messages]


@dataclass
class Trial:
    """A merge, what it offers, and what it owes: the ids that came and were not offered yet, with when they are due."""

    now: float = 100.0
    offered: list[Batch] = field(default_factory=list)
    owed: dict[int, float] = field(default_factory=dict)
    waiting: int = 0
    may_pass_over: bool = False
    offered_id: int = 0
    forget_after: int | None = None
    """Nobody is interested any more once that id was offered."""

    def __post_init__(self) -> None:
        self.merge = Merge(self.offer)
        self.merge.begin("a", 0)

    def offer(self, batch: Batch, its_lifetimes: Lifetimes) -> None:
        assert list(its_lifetimes) == lifetimes(batch)
        assert batch.after_id >= self.offered_id, "in order, each id once"
        assert batch.after_id == self.offered_id or self.may_pass_over, "nothing is given up early"
        self.offered.append(batch)
        self.offered_id = batch.last_id
        for message in batch.messages:
            self.owed.pop(message.id, None)
        if self.forget_after is not None and batch.last_id >= self.forget_after:
            self.merge.forget("a")
            self.merge.begin("a", batch.last_id)
            self.owed.clear()

    def arrive(self, first_id: int, last_id: int) -> None:
        new = batch(first_id, last_id)
        continues = new.after_id <= self.offered_id
        if not continues:
            for id_ in range(first_id, last_id + 1):
                self.owed.setdefault(id_, self.now + PATIENCE_S)
            self.waiting += 1
        self.may_pass_over = self.waiting > HELD_MAX
        self.merge.arrive(new, lifetimes(new), self.now)
        self.may_pass_over = False
        if continues:
            assert self.offered_id >= last_id, "what continues is offered at once"

    def skip(self, last_id: int) -> None:
        self.owed = {id_: due for id_, due in self.owed.items() if id_ > last_id}
        self.offered_id = max(self.offered_id, last_id)
        self.merge.skip("a", last_id)

    def wait(self, thousandths: int) -> None:
        """Let time pass, and do what is due, when it is."""
        until = self.now + thousandths / 1000
        while self.merge.due is not None and self.merge.due <= until:
            self.now = max(self.now, self.merge.due)
            self.may_pass_over = True
            self.merge.give_up(self.now)
            self.may_pass_over = False
            self.check()
        self.now = until

    def check(self) -> None:
        assert self.merge.offered_id("a") == self.offered_id
        assert all(due > self.now for due in self.owed.values()), "nothing waits too long, or is dropped"
        assert (self.merge.due is None) == (not self.owed), "nothing is held without need"


ids = st.integers(1, 30)
spans = st.tuples(ids, st.integers(0, 4)).map(lambda span: (span[0], span[0] + span[1]))
steps = st.lists(
    st.one_of(
        spans.map(lambda span: ("arrive", *span)),
        spans.map(lambda span: ("arrive", *span)),
        ids.map(lambda id_: ("skip", id_)),
        st.integers(1, 15).map(lambda thousandths: ("wait", thousandths)),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=500, deadline=None)
def test_what_is_offered_is_in_order_without_overlap_and_in_time(plan: list[tuple[str, int, int]]) -> None:
    trial = Trial()
    for name, *details in plan:
        getattr(trial, name)(*details)
        trial.check()
    trial.wait(1000)
    assert not trial.owed
    assert trial.merge.due is None


@given(st.permutations([(first_id, first_id + 2) for first_id in range(1, 60, 3)]), st.data())
@settings(max_examples=50, deadline=None)
def test_in_whatever_order_they_come_in_time_all_are_offered_without_a_hole(
    spans: list[tuple[int, int]], data: st.DataObject
) -> None:
    trial = Trial()
    for span in spans:
        for _ in range(data.draw(st.integers(1, 2))):  # some are told by two
            trial.arrive(*span)
            trial.check()
    assert [message.id for each in trial.offered for message in each.messages] == list(range(1, 61))


@given(steps, ids)
@settings(max_examples=500, deadline=None)
def test_a_subject_may_be_forgotten_while_it_is_offered(plan: list[tuple[str, int, int]], forget_after: int) -> None:
    """The last subscriber may leave with any batch: it may be the end of what it asked for."""
    trial = Trial(forget_after=forget_after)
    for name, *details in plan:
        getattr(trial, name)(*details)
        assert (trial.merge.due is None) == (not trial.owed)


def test_more_than_may_wait_are_passed_on_over_the_hole() -> None:
    trial = Trial()
    for first_id in range(2 * HELD_MAX, 0, -1):
        trial.arrive(2 * first_id, 2 * first_id)
    assert [each.last_id for each in trial.offered] == [2 * HELD_MAX]
    assert trial.merge.due is not None


def test_subjects_do_not_wait_for_each_other() -> None:
    offered: list[str] = []
    merge = Merge(lambda batch, _lifetimes: offered.append(batch.subject))
    merge.begin("a", 0)
    merge.begin("b", 0)
    merge.arrive(batch(2, 2, "a"), [None], 0.0)
    merge.arrive(batch(1, 1, "b"), [None], PATIENCE_S / 2)
    merge.arrive(batch(3, 3, "b"), [None], PATIENCE_S / 2)
    assert offered == ["b"]
    assert merge.due == pytest.approx(PATIENCE_S)
    merge.give_up(PATIENCE_S)
    assert offered == ["b", "a"]
    assert merge.due == pytest.approx(1.5 * PATIENCE_S)
    merge.forget("b")
    assert merge.due is None
