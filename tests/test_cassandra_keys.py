"""Idempotency keys through a bad network, step by step: each is appended once, whoever crashes, whatever is lost."""

from dataclasses import dataclass, field

import pytest
from cassandra_nodes import EVENTS, Nodes, Work
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import Appended, Duplicate, NewMessage, Outcome, Record
from persistence.cassandra import keys, writing
from persistence.cassandra.clock import Clock
from persistence.cassandra.reading import read_page
from persistence.cassandra.shares import Share
from persistence.cassandra.steps import AtOnce, Batch
from persistence.cassandra.writing import Writer

NOW_US = 1_700_000_000_000_000


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 3)


def clock() -> int:
    return NOW_US


def new_writer() -> Writer:
    return Writer(None, Clock(clock), 10.0)


def append(writer: Writer, *all_keys: str) -> Work[list[Outcome]]:
    messages = [NewMessage("orders", key.encode(), None, idempotency_key=key) for key in all_keys]
    return Work(writer._append(Share("orders", messages))).begin()


def to_the_end(work: Work[list[Outcome]], nodes: Nodes) -> list[Outcome]:
    while not work.is_done:
        work.happen("answer", nodes)
    assert isinstance(work.result, list)
    return work.result


def read_all(nodes: Nodes) -> list[Record]:
    return list(nodes.take(read_page("orders", 0, 10_000, 2**30, Clock(clock))).records)


def crashed_after(steps: int, nodes: Nodes, *all_keys: str) -> Work[list[Outcome]]:
    """A writer that is gone after so many steps."""
    work = append(new_writer(), *all_keys)
    for _ in range(steps):
        if not work.is_done:
            work.happen("answer", nodes)
    return work


def arrive(crashed: Work[list[Outcome]], nodes: Nodes) -> None:
    """Let what a writer asked for last be carried out."""
    crashed.happen("delay", nodes)
    crashed.on_its_way = crashed.on_its_way[:1]
    if crashed.on_its_way:
        crashed.arrive(nodes)


@pytest.mark.parametrize("arrives", ["never", "at once", "late"])
@pytest.mark.parametrize("already", [0, 2, 3], ids=["new subject", "within a bucket", "at the end of a bucket"])
def test_a_retry_after_a_crash_between_any_two_steps_appends_what_was_not(already: int, arrives: str) -> None:
    """What the crashed writer had asked for last arrives never, before the retry or after it."""
    steps = 0
    seen: set[type] = set()
    while True:
        nodes = Nodes()
        to_the_end(append(new_writer(), *[f"before {n}" for n in range(already)]), nodes)
        crashed = crashed_after(steps, nodes, "a", "b")
        if crashed.is_done:
            break
        seen.add(type(crashed.asked))
        if arrives == "at once":
            arrive(crashed, nodes)
        outcomes = to_the_end(append(new_writer(), "b", "a", "c"), nodes)
        if arrives == "late":
            arrive(crashed, nodes)
        bodies = {record.body: record.id for record in read_all(nodes)}
        assert sorted(bodies) == sorted([b"a", b"b", b"c", *(b"before %d" % n for n in range(already))])
        assert len(read_all(nodes)) == len(bodies)
        assert [bodies[key] for key in (b"b", b"a", b"c")] == [outcome[0] for outcome in outcomes]
        assert isinstance(outcomes[2], Appended)
        steps += 1
    assert {AtOnce, Batch} <= seen


def test_a_claim_that_was_not_followed_by_an_append_is_no_duplicate() -> None:
    nodes = Nodes()
    crashed = append(new_writer(), "k")
    while not isinstance(crashed.asked, Batch):
        crashed.happen("answer", nodes)
    assert len(nodes.claims["orders", "k"]) == 1
    assert to_the_end(append(new_writer(), "k"), nodes) == [Appended(1, NOW_US)]
    arrive(crashed, nodes)
    assert [record.body for record in read_all(nodes)] == [b"k"]


def test_who_was_overtaken_by_its_own_key_hears_of_the_other_message() -> None:
    nodes = Nodes()
    overtaken = append(new_writer(), "k", "mine")
    while not isinstance(overtaken.asked, Batch):
        overtaken.happen("answer", nodes)
    to_the_end(append(new_writer(), "first", "k"), nodes)
    outcomes = to_the_end(overtaken, nodes)
    assert [(type(outcome), outcome[0]) for outcome in outcomes] == [(Duplicate, 2), (Appended, 3)]
    assert [record.body for record in read_all(nodes)] == [b"first", b"k", b"mine"]


def test_a_share_without_keys_asks_for_nothing_more() -> None:
    nodes = Nodes()
    writer = new_writer()
    to_the_end(append(writer, "k"), nodes)
    work = Work(writer._append(Share("orders", [NewMessage("orders", b"x", None)]))).begin()
    assert isinstance(work.asked, Batch)
    work.happen("answer", nodes)
    assert work.result == [Appended(2, NOW_US)]


@dataclass
class Writing:
    """A writer that appends two keys after two keys, and goes on with the next two once it is told of the first one."""

    writer: Writer = field(default_factory=new_writer)
    turn: int = 0
    works: list[Work[list[Outcome]]] = field(default_factory=list)
    told: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.works.append(append(self.writer, f"key {self.turn}", f"key {self.turn + 1}"))

    def go_on(self, event: str, nodes: Nodes) -> None:
        work = self.works[-1]
        work.happen(event, nodes)
        if not work.is_done:
            return
        assert isinstance(work.result, list)
        told = [
            (f"key {self.turn + n}", outcome.id)
            for n, outcome in enumerate(work.result)
            if isinstance(outcome, Appended | Duplicate)
        ]
        self.told += told
        self.turn += bool(told)
        self.begin()


def write_through(events: list[tuple[int, str]], nodes: Nodes) -> list[Writing]:
    """Let three writers append the same keys while ``events`` happen; then let everything arrive and come to rest."""
    writers = [Writing() for _ in range(3)]
    for number, event in events:
        late = [work for writer in writers for work in writer.works if work.on_its_way]
        if event != "arrive":
            writers[number].go_on(event, nodes)
        elif late:
            late[number % len(late)].arrive(nodes)
    for writer in writers:
        turn = writer.turn
        while writer.turn == turn:
            writer.go_on("answer", nodes)
        for work in writer.works:
            while work.on_its_way:
                work.arrive(nodes)
    return writers


def try_all_sorts_of_happenings() -> None:
    @settings(max_examples=1000, deadline=None, database=None, report_multiple_bugs=False)
    @given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["answer", *EVENTS, "arrive"])), max_size=120))
    def try_one(events: list[tuple[int, str]]) -> None:
        nodes = Nodes()
        writers = write_through(events, nodes)
        records = read_all(nodes)
        stored = {record.body.decode(): record.id for record in records}
        assert len(stored) == len(records), "a key was appended twice"
        assert all(stored[key] == id_ for writer in writers for key, id_ in writer.told)

    try_one()


def test_whatever_happens_to_requests_each_key_is_appended_once() -> None:
    try_all_sorts_of_happenings()


@pytest.mark.parametrize("left_out", ["the claims", "looking for them"])
def test_that_check_fails_without(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if left_out == "the claims":
        monkeypatch.setattr(keys, "_CLAIM", lambda *values: keys._CLAIMS("unheard", "unheard"))
    else:
        monkeypatch.setattr(keys, "took_effect", lambda *args: _never())
    with pytest.raises(AssertionError):
        try_all_sorts_of_happenings()


def _never() -> object:
    yield from ()
    return False
