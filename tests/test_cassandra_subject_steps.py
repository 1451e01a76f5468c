"""Purging, deleting and restoring, step by step: whoever crashes, whatever is lost, doing it again completes it."""

from collections.abc import Callable

import pytest
from cassandra_nodes import EVENTS, Nodes, Work
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import Appended, Conflict, ExpiredId, InvalidId, Key, NewMessage, OutcomeUnknown, Record, StoreError
from persistence.cassandra import buckets, purging, reading, writing
from persistence.cassandra.clock import Clock
from persistence.cassandra.purging import delete_subject, purge
from persistence.cassandra.reading import get_message, read_head, read_page
from persistence.cassandra.restoring import restore
from persistence.cassandra.shares import Share
from persistence.cassandra.steps import Batch, Bound, Statement, Steps
from persistence.cassandra.writing import Writer

NOW_US = 1_700_000_000_000_000


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 3)
    monkeypatch.setattr(purging, "AT_ONCE_MAX", 2)


CLOCK = Clock(lambda: NOW_US)


def new_writer() -> Writer:
    return Writer(None, CLOCK, 10.0)


def appending(writer: Writer) -> Steps[object]:
    return writer._append(Share("orders", [NewMessage("orders", b"x", None)]))


def filled(count: int) -> Nodes:
    nodes = Nodes()
    writer = new_writer()
    for _ in range(count):
        nodes.take(appending(writer))
    return nodes


def kept_ids(nodes: Nodes) -> list[int]:
    """What is kept, as pages, points and head agree."""
    page = nodes.take(read_page("orders", 0, 10_000, 2**30, CLOCK))
    kept = [record.id for record in page.records]
    found = [nodes.take(get_message(Key("orders", id_), CLOCK)) for id_ in range(page.last_id + 2)]
    assert found[0] == found[-1] == InvalidId(page.last_id)
    assert [id_ for id_, each in enumerate(found) if isinstance(each, Record)] == kept
    assert found[1:-1].count(ExpiredId(page.last_id)) == page.last_id - len(kept)
    assert nodes.take(read_head("orders", CLOCK)) == (min([*kept, page.last_id + 1]), page.last_id)
    return kept


def crashed_after(steps: int, nodes: Nodes, work: Steps[object]) -> Work[object]:
    """Who is gone after so many steps."""
    crashed = Work(work).begin()
    for _ in range(steps):
        if not crashed.is_done and crashed.asked is not None:
            crashed.happen("answer", nodes)
    return crashed


def arrive(crashed: Work[object], nodes: Nodes) -> None:
    """Let what was asked for last be carried out."""
    if isinstance(crashed.asked, Bound | Batch) or hasattr(crashed.asked, "parts"):
        nodes.do(crashed.asked)


ARRIVES = pytest.mark.parametrize("arrives", ["never", "at once", "late"])
RECORDS = [Record(id_, b"%d" % id_, {}, NOW_US, None) for id_ in (12, 13, 20)]


@ARRIVES
@pytest.mark.parametrize("until_id", [1, 3, 8, 10, 11])
def test_a_purge_is_completed_after_a_crash_between_any_two_steps(until_id: int, arrives: str) -> None:
    for steps in range(100):
        nodes = filled(11)
        crashed = crashed_after(steps, nodes, purge("orders", until_id, CLOCK))
        if crashed.asked is None:
            break
        if arrives == "at once":
            arrive(crashed, nodes)
        kept = kept_ids(nodes)
        assert kept == list(range(12 - len(kept), 12))  # no message without those after it
        assert set(kept) >= set(range(until_id + 1, 12))
        assert nodes.take(purge("orders", until_id, CLOCK)) == 11
        if arrives == "late":
            arrive(crashed, nodes)
        assert kept_ids(nodes) == list(range(until_id + 1, 12))
        assert nodes.take(appending(new_writer())) == [Appended(12, NOW_US)]
        assert kept_ids(nodes) == list(range(until_id + 1, 13))
    assert steps > 3


@ARRIVES
@pytest.mark.parametrize("count", [1, 3, 4, 11, 12])
def test_a_deletion_is_completed_after_a_crash_between_any_two_steps(count: int, arrives: str) -> None:
    for steps in range(100):
        nodes = filled(count)
        crashed = crashed_after(steps, nodes, delete_subject("orders", count, CLOCK))
        if crashed.asked is None:
            break
        if arrives == "at once":
            arrive(crashed, nodes)
        assert nodes.take(delete_subject("orders", count, CLOCK)) is None
        if arrives == "late":
            arrive(crashed, nodes)
        assert kept_ids(nodes) == []
        assert nodes.subjects == []
        assert nodes.take(read_head("orders", CLOCK)) == (count + 1, count)
        writer = new_writer()
        for n in range(1, 5):
            nodes.take(appending(writer))
            assert kept_ids(nodes) == list(range(count + 1, count + 1 + n))
            assert nodes.subjects == ["orders"]
    assert steps > 5


@pytest.mark.parametrize("count", [1, 3, 4, 11, 12])
@pytest.mark.parametrize("remembered", [True, False], ids=["that remembers the head", "that does not"])
def test_a_deletion_beside_an_append_after_any_of_its_steps(count: int, remembered: bool) -> None:
    """By a writer of another process: the message is kept and the subject listed, or it was there before."""
    conflicts = []
    for steps in range(100):
        nodes = Nodes()
        writer = new_writer()
        for _ in range(count):
            nodes.take(appending(writer))
        deletion = crashed_after(steps, nodes, delete_subject("orders", count, CLOCK))
        if deletion.asked is None:
            break
        nodes.take(appending(writer if remembered else new_writer()))
        while deletion.asked is not None:
            deletion.happen("answer", nodes)
        conflicts.append(deletion.result == Conflict(count + 1))
        assert deletion.result in (None, Conflict(count + 1))
        assert kept_ids(nodes) == [*(range(1, count + 1) if conflicts[-1] else ()), count + 1]
        assert nodes.subjects == ["orders"]
        assert nodes.take(delete_subject("orders", count + 1, CLOCK)) is None
        assert nodes.subjects == []
    assert conflicts == sorted(conflicts, reverse=True)
    assert set(conflicts) == {True, False}


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_an_append_beside_a_deletion_after_any_of_its_steps(count: int) -> None:
    for steps in range(100):
        nodes = filled(count)
        append = crashed_after(steps, nodes, appending(new_writer()))
        if append.asked is None:
            break
        assert nodes.take(delete_subject("orders", count, CLOCK)) is None
        assert nodes.subjects == []
        while append.asked is not None:
            append.happen("answer", nodes)
        assert append.result == [Appended(count + 1, NOW_US)]
        assert kept_ids(nodes) == [count + 1]
        assert nodes.subjects == ["orders"]
    assert steps > 1


@ARRIVES
@pytest.mark.parametrize("deleted", [True, False])
def test_a_restore_is_completed_after_a_crash_between_any_two_steps(deleted: bool, arrives: str) -> None:
    for steps in range(100):
        nodes = filled(11)
        if deleted:
            nodes.take(delete_subject("orders", 11, CLOCK))
        crashed = crashed_after(steps, nodes, restore("orders", RECORDS, 25, CLOCK, 60))
        if crashed.asked is None:
            break
        if arrives == "at once":
            arrive(crashed, nodes)
        assert kept_ids(nodes)[-3:] == [12, 13, 20] or kept_ids(nodes)[-1:] in ([], [11])  # all or nothing
        assert nodes.take(restore("orders", RECORDS, 25, CLOCK, 60)) in (0, 3)
        if arrives == "late":
            arrive(crashed, nodes)
        assert kept_ids(nodes) == [*(() if deleted else range(1, 12)), 12, 13, 20]
        assert nodes.take(read_head("orders", CLOCK)).last_id == 25
        assert nodes.subjects == ["orders"]
    assert steps > 2


@pytest.mark.parametrize("lost", ["lose the answer", "lose the request", "delay"])
def test_lost_answers_are_found_out(lost: str) -> None:
    def to_the_end(steps: Steps[object]) -> object:
        work = Work(steps).begin()
        while work.asked is not None:
            work.happen(lost if isinstance(work.asked, Batch) and not work.on_its_way else "answer", nodes)
            if not work.on_its_way and lost != "delay":
                work.on_its_way.append(None)
        return work.result

    nodes = filled(7)
    assert to_the_end(restore("orders", RECORDS, 25, CLOCK, 60)) == 3
    assert to_the_end(purge("orders", 12, CLOCK)) == 25
    assert kept_ids(nodes) == [13, 20]
    assert to_the_end(delete_subject("orders", 25, CLOCK)) is None
    assert kept_ids(nodes) == []


def test_what_was_done_in_part_is_told_as_unknown() -> None:
    for work in (purge("orders", 9, CLOCK), delete_subject("orders", 11, CLOCK)):
        nodes = filled(11)
        crashed = Work(work).begin()
        while not (isinstance(crashed.asked, Bound) and crashed.asked.statement is purging._DROP_UNTIL):
            crashed.happen("answer", nodes)
        crashed.happen("refuse", nodes)
        assert isinstance(crashed.result, OutcomeUnknown)


class Actor:
    """One of several who do things to a subject, one after another."""

    def __init__(self) -> None:
        self.works: list[Work[object]] = []

    def next_steps(self, nodes: Nodes) -> Steps[object]:
        raise NotImplementedError

    @property
    def is_idle(self) -> bool:
        return not self.works or self.works[-1].asked is None

    def go_on(self, event: str, nodes: Nodes) -> None:
        if self.is_idle:
            self.works.append(Work(self.next_steps(nodes)).begin())
        else:
            self.works[-1].happen(event, nodes)


class Appending(Actor):
    def __init__(self) -> None:
        super().__init__()
        self._writer = new_writer()

    def next_steps(self, nodes: Nodes) -> Steps[object]:
        return appending(self._writer)

    def told(self) -> list[int]:
        return [outcome.id for work in self.works for outcome in work.result if isinstance(outcome, Appended)]


class Removing(Actor):
    """Purges and deletes in turns; knows what it asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[int] = []

    def next_steps(self, nodes: Nodes) -> Steps[object]:
        turn = len(self.works)
        last_id = last_id_of(nodes)
        deletes = turn % 3 == 2
        self._asked.append(last_id if deletes else max(0, last_id - 2 - turn % 2))
        return (delete_subject if deletes else purge)("orders", self._asked[-1], CLOCK)

    def removed(self, *, surely: bool) -> int:
        """The id up to which messages were removed, or may have been."""
        others = StoreError | Conflict if surely else Conflict
        done = [
            until_id
            for until_id, work in zip(self._asked, self.works, strict=True)
            if not isinstance(work.result, others) and (work.asked is None or not surely)
        ]
        return max([0, *done])


def last_id_of(nodes: Nodes) -> int:
    return nodes.take(read_head("orders", CLOCK)).last_id


class Looking:
    """Somebody who reads all the while."""

    def __init__(self, nodes: Nodes, removing: list[Removing]) -> None:
        self._nodes = nodes
        self._removing = removing
        self._gone: set[int] = set()

    def look(self) -> None:
        kept = kept_ids(self._nodes)
        assert not self._gone & set(kept), "what was purged came back"
        self._gone |= set(range(1, last_id_of(self._nodes) + 1)) - set(kept)
        assert max(self._gone, default=0) <= max(each.removed(surely=False) for each in self._removing)
        assert min(kept, default=2**63) > max(each.removed(surely=True) for each in self._removing)
        assert not kept or self._nodes.subjects, "a message in a subject that is not listed"


def remove_through(events: list[tuple[int, str]]) -> None:
    """Let two append and two remove while ``events`` happen; then let everything arrive and come to rest."""
    nodes = filled(5)
    all_writers, removing = [Appending(), Appending()], [Removing(), Removing()]
    actors: list[Actor] = [*all_writers, *removing]
    somebody = Looking(nodes, removing)
    for number, event in events:
        late = [work for actor in actors for work in actor.works if work.on_its_way]
        if event != "arrive":
            actors[number].go_on(event, nodes)
        elif late:
            late[number % len(late)].arrive(nodes)
        somebody.look()
    for actor in actors:
        while not actor.is_idle:
            actor.go_on("answer", nodes)
            somebody.look()
        for work in actor.works:
            while work.on_its_way:
                work.arrive(nodes)
                somebody.look()
    told = [id_ for writer in all_writers for id_ in writer.told()]
    assert len(set(told)) == len(told)
    last_id = last_id_of(nodes)
    assert nodes.take(delete_subject("orders", last_id, CLOCK)) is None
    assert nodes.subjects == []
    nodes.take(appending(new_writer()))
    assert nodes.subjects == ["orders"]
    assert kept_ids(nodes) == [last_id + 1]


def try_all_sorts_of_happenings() -> None:
    @settings(max_examples=300, deadline=None, database=None, report_multiple_bugs=False)
    @given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["answer"] * 3 + [*EVENTS, "arrive"])), max_size=120))
    def try_one(events: list[tuple[int, str]]) -> None:
        remove_through(events)

    try_one()


def test_whatever_happens_to_requests_nothing_comes_back_and_nothing_else_goes() -> None:
    try_all_sorts_of_happenings()


class Changed(Statement):
    """A statement whose values are others than they should be."""

    def __init__(self, change: Callable[..., tuple[object, ...]]) -> None:
        self._change = change

    def __call__(self, *values: object) -> Bound:
        return Bound(self, self._change(*values))


@pytest.mark.parametrize("left_out", ["the mark", "the time of listing", "the time of not listing", "the floor"])
def test_that_check_fails_without(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if left_out == "the mark":
        monkeypatch.setattr(buckets.Bucket, "is_listed", property(lambda bucket: bucket.last_at > 0))
    elif left_out == "the time of listing":
        listing = Changed(lambda shard, subject, at: (shard, subject, NOW_US))
        monkeypatch.setattr(buckets, "_ADD_SUBJECT", listing)
    elif left_out == "the time of not listing":
        unlisting = Changed(lambda at, shard, subject: (2 * NOW_US, shard, subject))
        monkeypatch.setattr(purging, "_UNLIST", unlisting)
    else:
        dropping = Changed(lambda subject, base_id, last: (subject, base_id, 0))
        monkeypatch.setattr(purging, "_DROP_CHUNKS", dropping)  # so that nothing but the floor hides them
        bucket_of = reading._bucket
        monkeypatch.setattr(reading, "_bucket", lambda *args: bucket_of(*args)._replace(floor=0))
    with pytest.raises(AssertionError):
        try_all_sorts_of_happenings()
