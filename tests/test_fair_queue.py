import gc
import weakref
from collections import defaultdict
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from trio_broker.fair_queue import ENOUGH, QUANTUM, FairQueue, Line


class Entry:
    def __init__(self, size_bytes: int = 1, name: object = None) -> None:
        self.size_bytes = size_bytes
        self.count = 1
        self.name = name
        self.queued = False
        self.line: Line[Entry] | None = None


def queue_of(**lines: int) -> FairQueue[Entry]:
    """Make a queue with so many entries from each source; an entry is named by its source and its number there."""
    queue: FairQueue[Entry] = FairQueue(50_000, 1 << 26)
    for source, length in lines.items():
        for number in range(length):
            queue.put(Entry(name=(source, number)), source)
    return queue


def sources(taken: list[Entry]) -> list[object]:
    return [entry.name[0] for entry in taken]


def test_one_source_is_served_first_come_first_served() -> None:
    taken = queue_of(a=200).take(150, 1000)
    assert [entry.name for entry in taken] == [("a", number) for number in range(150)]


def test_sources_take_turns_of_a_quantum() -> None:
    taken = queue_of(a=150, b=70, c=3).take(1000, 1000)
    expected = "a" * QUANTUM + "b" * QUANTUM + "ccc" + "a" * QUANTUM + "b" * 6 + "a" * 22
    assert "".join(sources(taken)) == expected


def test_a_lone_entry_beside_a_flood_is_in_the_next_flush() -> None:
    queue = queue_of(flood=10_000)
    queue.take(1024, 1 << 20)
    queue.put(Entry(name=("lone", 0)), "lone")
    assert sources(queue.take(1024, 1 << 20)).index("lone") <= QUANTUM


def test_a_flush_that_several_share_ends_with_the_round_that_makes_it_enough() -> None:
    queue = queue_of(a=1000, b=1000, lone=1)
    assert len(queue.take(1024, 1 << 20)) == 1 + 2 * QUANTUM + 2 * QUANTUM >= ENOUGH
    assert len(queue_of(a=1000).take(1024, 1 << 20)) == 1000, "a source that is alone keeps nobody waiting"


def test_a_flush_smaller_than_a_quantum_still_gives_everybody_a_turn() -> None:
    queue = queue_of(flood=1000, lone=1)
    assert sources(queue.take(10, 1000)) == ["flood"] * 10
    assert sources(queue.take(10, 1000))[0] == "lone"


def test_bytes_are_counted_before_an_entry_is_added() -> None:
    queue: FairQueue[Entry] = FairQueue(10, 1000)
    for size in (4, 6, 1):
        queue.put(Entry(size), "a")
    assert [entry.size_bytes for entry in queue.take(10, 10)] == [4, 6]
    assert [entry.size_bytes for entry in queue.take(10, 10)] == [1]


def test_an_entry_larger_than_a_flush_goes_alone() -> None:
    queue: FairQueue[Entry] = FairQueue(10, 1000)
    for size in (50, 1):
        queue.put(Entry(size), "a")
    assert [entry.size_bytes for entry in queue.take(10, 10)] == [50]
    assert [entry.size_bytes for entry in queue.take(10, 10)] == [1]


def test_what_does_not_fit_goes_first_in_the_next_flush() -> None:
    queue: FairQueue[Entry] = FairQueue(1000, 1000)
    queue.put(Entry(2, ("small", 0)), "small")
    queue.put(Entry(10, ("large", 0)), "large")
    queue.put(Entry(2, ("other", 0)), "other")
    assert sources(queue.take(100, 10)) == ["small"]
    queue.put(Entry(2, ("small", 1)), "small")
    assert sources(queue.take(100, 10)) == ["large"]
    assert sources(queue.take(100, 10)) == ["other", "small"]


def test_a_withdrawn_entry_is_never_taken_nor_counted() -> None:
    queue: FairQueue[Entry] = FairQueue(10, 1000)
    entries = [Entry(5) for _ in range(4)]
    for entry in entries:
        queue.put(entry, "a")
    queue.withdraw(entries[0])
    queue.withdraw(entries[2])
    assert (queue.messages, queue.bytes) == (2, 10)
    assert not entries[0].queued
    assert queue.take(10, 1000) == [entries[1], entries[3]]
    assert (queue.messages, queue.bytes) == (0, 0)
    assert queue.take(10, 1000) == []


def test_what_was_withdrawn_is_let_go_while_nothing_is_taken() -> None:
    for size, bound_messages, bound_bytes in ((1, 10, 1_000_000), (100, 1_000_000, 1000)):
        queue: FairQueue[Entry] = FairQueue(bound_messages, bound_bytes)
        queue.put(kept := Entry(1), "kept")
        held: weakref.WeakSet[Entry] = weakref.WeakSet()
        for number in range(1000):
            entry = Entry(size)
            held.add(entry)
            queue.put(entry, number % 7)
            queue.withdraw(entry)
            del entry
        gc.collect()
        assert len(held) <= 10
        assert queue.take(10, 1_000_000) == [kept]
        assert queue.take(10, 1_000_000) == []


put = st.tuples(st.just("put"), st.integers(0, 3), st.integers(1, 20))
withdraw = st.tuples(st.just("withdraw"), st.integers(0, 50), st.just(0))
take = st.tuples(st.just("take"), st.integers(1, 9), st.integers(1, 40))


@given(st.lists(put | put | withdraw | take, max_size=60), st.integers(1, 5), st.integers(1, 50))
def test_whatever_happens_each_entry_leaves_once_in_the_order_of_its_source_within_the_bounds(
    script: list[tuple[str, int, int]], max_messages: int, max_bytes: int
) -> None:
    queue: FairQueue[Entry] = FairQueue(max_messages, max_bytes)
    waiting: defaultdict[int, list[Entry]] = defaultdict(list)
    names = count()

    def check_take(limit: int, limit_bytes: int) -> None:
        taken = queue.take(limit, limit_bytes)
        assert bool(taken) == any(waiting.values())
        assert len(taken) <= limit
        assert len(taken) <= 1 or sum(entry.size_bytes for entry in taken) <= limit_bytes
        for entry in taken:
            assert not entry.queued
            assert waiting[entry.name[0]].pop(0) is entry

    for step, first, second in script:
        match step:
            case "put":
                entry = Entry(second, (first, next(names)))
                waiting[first].append(entry)
                queue.put(entry, first)
            case "withdraw":
                everything = [entry for line in waiting.values() for entry in line]
                if everything:
                    entry = everything[first % len(everything)]
                    waiting[entry.name[0]].remove(entry)
                    queue.withdraw(entry)
            case "take":
                check_take(first, second)
        left = [entry for line in waiting.values() for entry in line]
        assert (queue.messages, queue.bytes) == (len(left), sum(entry.size_bytes for entry in left))
        for source in range(4):
            mine = [entry.size_bytes for entry in waiting[source]]
            assert queue.held_by(source) == (len(mine), sum(mine))
        assert all(entry.queued for entry in left)
    for _ in range(queue.messages):
        check_take(9, 40)
    assert queue.messages == 0


def test_entries_count_by_their_messages() -> None:
    queue: FairQueue[Entry] = FairQueue(50_000, 1 << 26)
    for source in "ab":
        for number in range(4):
            entry = Entry(name=(source, number))
            entry.count = 40
            queue.put(entry, source)
    assert queue.messages == 320
    assert sources(queue.take(100, 1000)) == ["a", "b"], "one each is a turn; a third does not fit"
    assert queue.messages == 240
    assert sources(queue.take(10, 1000)) == ["a"], "the first may be larger alone"


def test_an_entry_that_is_larger_than_a_quantum_is_a_turn_by_itself() -> None:
    queue = queue_of(lone=2)
    for number in range(2):
        entry = Entry(name=("atomic", number))
        entry.count = 1_000
        queue.put(entry, "atomic")
    assert sources(queue.take(1024, 1000)) == ["lone", "lone", "atomic"]
    assert sources(queue.take(1024, 1000)) == ["atomic"]
