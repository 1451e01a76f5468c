"""Appending through a bad network, step by step and without one: whatever gets lost, what is told is what happened."""

from dataclasses import dataclass, field

import pytest
from cassandra_nodes import EVENTS, Nodes, Work
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import Appended, BadContent, Failed, NewMessage, OutcomeUnknown, Record, StoreUnavailable
from persistence.cassandra import keys, writing
from persistence.cassandra.clock import Clock
from persistence.cassandra.reading import read_page
from persistence.cassandra.shares import Share
from persistence.cassandra.steps import Batch, OutOfPatience, Pause, Unclear, surely
from persistence.cassandra.writing import Writer

COMMIT_TIMEOUT_S = 10.0


def clock() -> int:
    return 1_700_000_000_000_000


def new_writer() -> Writer:
    return Writer(None, Clock(clock), COMMIT_TIMEOUT_S)


def share(*bodies: bytes, expiration_s: int | None = None) -> Share:
    return Share("orders", [NewMessage("orders", body, expiration_s) for body in bodies])


def read_all(nodes: Nodes) -> list[Record]:
    page = nodes.take(read_page("orders", 0, 10_000, 2**30, Clock(clock)))
    assert page.scanned_to == page.last_id
    return list(page.records)


@dataclass
class Writing:
    """A writer of several, and what it was told."""

    number: int
    writer: Writer = field(default_factory=new_writer)
    work: Work[list[object]] | None = None
    begun: int = 0
    told: dict[bytes, object] = field(default_factory=dict)
    left_behind: list[Work[list[object]]] = field(default_factory=list)

    def go_on(self, event: str, nodes: Nodes) -> None:
        if self.work is None:
            self.begun += 1
            self.bodies = [b"%d.%d.%d" % (self.number, self.begun, n) for n in range(self.begun % 3 + 1)]
            self.work = Work(self.writer._append(share(*self.bodies))).begin()
        else:
            self.work.happen(event, nodes)
        if self.work.is_done:
            assert isinstance(self.work.result, list)
            self.told.update(zip(self.bodies, self.work.result, strict=True))
            self.left_behind.append(self.work)
            self.work = None


def write_through(events: list[tuple[int, str]], nodes: Nodes) -> list[Writing]:
    """Let three writers append to one subject while ``events`` happen; then let everything arrive and come to rest."""
    writers = [Writing(number) for number in range(3)]
    for number, event in events:
        if event == "arrive":
            late = [
                work for writer in writers for work in [*writer.left_behind, writer.work] if work and work.on_its_way
            ]
            if late:
                late[number % len(late)].arrive(nodes)
        else:
            writers[number].go_on(event, nodes)
    for writer in writers:
        while writer.work is not None:
            writer.go_on("answer", nodes)
        for work in writer.left_behind:
            while work.on_its_way:
                work.arrive(nodes)
    return writers


def check(writers: list[Writing], nodes: Nodes) -> None:
    """Gapless, and nothing twice; what was acknowledged is there, at its id; what was said not to be there is not."""
    stored = {record.id: record.body for record in read_all(nodes)}
    assert list(stored) == list(range(1, len(stored) + 1))
    ids = {body: id_ for id_, body in stored.items()}
    assert len(ids) == len(stored)
    for writer in writers:
        for body, outcome in writer.told.items():
            if isinstance(outcome, Appended):
                assert ids.get(body) == outcome.id
            else:
                assert isinstance(outcome, Failed)
                if not isinstance(outcome.error, OutcomeUnknown):
                    assert isinstance(outcome.error, StoreUnavailable)
                    assert body not in ids


happenings = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["answer", *EVENTS, "arrive"])), max_size=120)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 5)


def try_all_sorts_of_happenings(*, check_conditions: bool) -> None:
    @settings(max_examples=1000, deadline=None, database=None, report_multiple_bugs=False)
    @given(happenings)
    def try_one(events: list[tuple[int, str]]) -> None:
        nodes = Nodes(check_conditions=check_conditions)
        check(write_through(events, nodes), nodes)

    try_one()


def test_whatever_happens_to_requests_the_log_is_whole_and_what_is_told_is_true() -> None:
    try_all_sorts_of_happenings(check_conditions=True)


def test_that_check_fails_when_the_condition_is_taken_out_of_the_append() -> None:
    with pytest.raises(AssertionError):
        try_all_sorts_of_happenings(check_conditions=False)


class Appending(Work[list[object]]):
    """One append, step by step."""

    def __init__(self, writer: Writer, *bodies: bytes) -> None:
        super().__init__(writer._append(share(*bodies)))
        self.begin()

    def up_to_the_batch(self, nodes: Nodes) -> "Appending":
        """Go on until the batch that appends has been asked for."""
        while not (isinstance(self.asked, Batch) and self.asked.parts[0].statement is writing._MOVE_HEAD):
            self.happen("answer", nodes)
        return self

    def to_the_end(self, nodes: Nodes) -> list[object]:
        while not self.is_done:
            self.happen("answer", nodes)
        assert isinstance(self.result, list)
        return self.result


def test_a_lost_answer_is_found_out_by_sending_the_same_batch_again() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"1", b"2").up_to_the_batch(nodes)
    first = append.asked
    append.happen("lose the answer", nodes)
    assert isinstance(append.asked, Pause)
    append.happen("answer", nodes)
    assert append.asked is first
    assert append.to_the_end(nodes) == [Appended(1, clock()), Appended(2, clock())]
    assert [record.body for record in read_all(nodes)] == [b"1", b"2"]


def test_a_lost_batch_that_another_writer_overtook_is_appended_after_it() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine").up_to_the_batch(nodes)
    append.happen("delay", nodes)
    assert Appending(new_writer(), b"other").to_the_end(nodes) == [Appended(1, clock())]
    assert append.to_the_end(nodes) == [Appended(2, clock())]
    append.arrive(nodes)
    assert [record.body for record in read_all(nodes)] == [b"other", b"mine"]


def test_a_lost_answer_is_found_out_although_others_went_on_since() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine").up_to_the_batch(nodes)
    append.happen("lose the answer", nodes)
    other = new_writer()
    for n in range(8):  # beyond the end of the bucket
        Appending(other, b"other %d" % n).to_the_end(nodes)
    assert append.to_the_end(nodes) == [Appended(1, clock())]
    assert len(read_all(nodes)) == 9


def test_a_refusal_after_a_lost_answer_proves_nothing() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine").up_to_the_batch(nodes)
    append.happen("lose the answer", nodes)
    append.happen("answer", nodes)
    append.happen("refuse", nodes)
    assert not append.is_done
    assert append.to_the_end(nodes) == [Appended(1, clock())]


def test_a_refusal_at_once_is_told_at_once() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine").up_to_the_batch(nodes)
    append.happen("refuse", nodes)
    (outcome,) = append.result
    assert isinstance(outcome.error, StoreUnavailable)


@pytest.mark.parametrize("lost", ["lose the answer", "lose the request", "delay"])
def test_the_end_of_patience_leaves_what_is_in_doubt_unknown(lost: str) -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine").up_to_the_batch(nodes)
    append.happen(lost, nodes)
    append.happen("give up", nodes)
    (outcome,) = append.result
    assert isinstance(outcome.error, OutcomeUnknown)


def test_the_end_of_patience_before_anything_was_sent_is_no_doubt() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"mine")
    append.happen("give up", nodes)
    (outcome,) = append.result
    assert isinstance(outcome.error, OutOfPatience)
    assert isinstance(outcome.error, StoreUnavailable)


def test_the_first_of_a_bucket_is_not_appended_to_a_bucket_that_has_come_and_gone() -> None:
    """Its state stays when its messages are gone, and what readers find it by."""
    nodes = Nodes()
    Appending(new_writer(), *[b"%d" % n for n in range(5)]).to_the_end(nodes)  # sealed
    stopped = Appending(new_writer(), b"late").up_to_the_batch(nodes)
    other = new_writer()
    for n in range(5, 13):
        Appending(other, b"%d" % n).to_the_end(nodes)
    for partition in [("orders", 0), ("orders", 5)]:
        del nodes.buckets[partition]
        nodes.rows[partition] = {writing.END_ID: {}}
    assert stopped.to_the_end(nodes) == [Appended(14, clock())]
    assert [record.id for record in read_all(nodes)] == [11, 12, 13, 14]


def test_a_bucket_that_somebody_else_began_is_surely_found_before_it_is_appended_to() -> None:
    """Who began it may have been cut off when few nodes knew of it: another one answers next."""
    nodes = Nodes()
    Appending(new_writer(), *[b"%d" % n for n in range(5)]).to_the_end(nodes)  # sealed
    nodes.buckets["orders", 5] = clock()
    append = Appending(new_writer(), b"next")
    append.happen("answer", nodes)
    del nodes.buckets["orders", 5]
    assert append.to_the_end(nodes) == [Appended(6, clock())]
    assert [record.id for record in read_all(nodes)] == [1, 2, 3, 4, 5, 6]


def test_what_is_refused_for_its_content_is_found_by_halves() -> None:
    nodes = Nodes()
    append = Appending(new_writer(), b"1", b"2", b"bad", b"4", b"5")
    while not append.is_done:
        if isinstance(append.asked, Batch) and any(b"bad" in str(part.values).encode() for part in append.asked.parts):
            append._throw(BadContent("not this"))
        else:
            append.happen("answer", nodes)
    assert [getattr(outcome, "id", None) or outcome.why for outcome in append.result] == [1, 2, "not this", 3, 4]
    assert [record.body for record in read_all(nodes)] == [b"1", b"2", b"4", b"5"]


def test_a_share_that_a_node_would_not_take_is_halved_without_asking() -> None:
    nodes = Nodes()
    body = b"x" * (3 * 1024 * 1024)
    append = Appending(new_writer(), body, body, body, b"y" * (writing.SHARE_BYTES_MAX + 1))
    *outcomes, refused = append.to_the_end(nodes)
    assert [outcome.id for outcome in outcomes] == [1, 2, 3]
    assert "bytes are more than" in refused.why


def test_what_may_be_done_twice_is_asked_for_until_there_is_an_answer() -> None:
    steps = surely(keys._ATTEMPT("orders", 0, -1))
    asked = next(steps)
    for _ in range(3):
        assert isinstance(steps.throw(Unclear("no answer")), Pause)
        assert next(steps) is asked
    with pytest.raises(StopIteration) as end:
        steps.send([])
    assert end.value.value == []
