"""What is kept of the messages that were delivered last: what is shown of it, what goes first, how it is counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import NO_HEADERS, Page
from trio_broker.batch import OVERHEAD_BYTES, Backlog, Batch
from trio_broker.cache import EXPIRY_MARGIN_US, KEEPING_BYTES, Cache, Recent
from trio_broker.message import Message
from trio_broker.service.encoding import batch_wire, together_wire

FOREVER = 10**6
EACH = OVERHEAD_BYTES + KEEPING_BYTES
"""What a batch of one empty message takes."""


def batch(first_id: int, count: int = 1, subject: str = "a", body: bytes = b"", time_us: int = 0) -> Batch:
    ids = range(first_id, first_id + count)
    return Batch([Message(subject, id_, body, NO_HEADERS, time_us) for id_ in ids], 0.0)


def keep(
    cache: Cache, first_id: int, *lifetimes: int | None, subject: str = "a", heard: bool = True, time_us: int = 0
) -> Batch:
    kept = batch(first_id, len(lifetimes), subject, time_us=time_us)
    cache.keep(kept, list(lifetimes), heard=heard)
    return kept


def read(
    cache: Cache, after_id: int, subject: str = "a", end_id: int = 0, max_messages: int = 100, max_bytes: int = 10**6
) -> Recent | Page | None:
    return cache.read(subject, after_id, end_id, max_messages=max_messages, max_bytes=max_bytes)


def ids_of(found: Recent | Page | None) -> list[int]:
    match found:
        case Recent(batches):
            return [message.id for each in batches for message in each.messages]
        case Page(records):
            return [record.id for record in records]
    raise AssertionError("it has nothing")


def test_what_was_delivered_is_shown_again_as_it_is() -> None:
    cache = Cache(FOREVER, int)
    batches = [keep(cache, 1, None, None), keep(cache, 3, None), keep(cache, 4, None)]
    assert read(cache, 0) == Recent(batches, 4)
    assert read(cache, 1) == Recent(batches, 4)
    assert read(cache, 2) == Recent(batches[1:], 4)
    assert read(cache, 0, subject="b") is None
    assert (cache.hits, cache.end_after("a", 4), cache.end_after("a", 5)) == (3, 4, None)


def test_a_page_is_bounded_but_for_its_first_batch() -> None:
    cache = Cache(FOREVER, int)
    for first_id in (1, 4, 7):
        cache.keep(batch(first_id, 3, body=bytes(100)), [None] * 3, heard=True)
    assert ids_of(read(cache, 0, max_messages=6)) == [1, 2, 3, 4, 5, 6]
    assert ids_of(read(cache, 0, max_messages=5)) == [1, 2, 3]
    assert ids_of(read(cache, 0, max_messages=1, max_bytes=1)) == [1, 2, 3]
    assert ids_of(read(cache, 0, max_bytes=600)) == [1, 2, 3, 4, 5, 6]


def test_nothing_follows_the_last_id_unless_more_is_known_of() -> None:
    cache = Cache(FOREVER, int)
    keep(cache, 1, None)
    assert read(cache, 1, end_id=1) == Recent((), 1)
    assert read(cache, 1, end_id=2) is None
    assert ids_of(read(cache, 0, end_id=2)) == [1]


def test_a_batch_that_does_not_continue_the_run_begins_it_anew() -> None:
    cache = Cache(FOREVER, int)
    keep(cache, 1, None)
    last = keep(cache, 3, None)
    assert read(cache, 0) is None
    assert read(cache, 1) is None
    assert read(cache, 2) == Recent([last], 3)
    assert cache.bytes == EACH


def test_what_was_not_to_be_kept_is_a_hole_and_takes_next_to_no_memory() -> None:
    cache = Cache(FOREVER, int)
    keep(cache, 1, None, 0, None)
    for id_ in range(4, 1000):
        keep(cache, id_, 0)
    assert cache.bytes == EACH + OVERHEAD_BYTES + KEEPING_BYTES
    page = read(cache, 0)
    assert isinstance(page, Page)
    assert (ids_of(page), page.scanned_to, page.last_id) == ([1, 3], 999, 999)
    assert read(cache, 500) == Page([], 999, 999)
    after = keep(cache, 1000, None)
    assert ids_of(read(cache, 1)) == [3, 1000]
    assert read(cache, 999) == Recent([after], 1000)


def test_pages_of_single_messages_are_bounded() -> None:
    cache = Cache(FOREVER, int)
    cache.keep(batch(1, 6, body=bytes(100)), [None, 0, None, None, None, 0], heard=True)
    assert read(cache, 0, max_messages=2) == Page(_records(cache, 1, 3), 3, 6)
    assert read(cache, 0, max_bytes=250) == Page(_records(cache, 1, 3), 3, 6)
    assert read(cache, 0, max_bytes=1) == Page(_records(cache, 1), 2, 6)
    assert read(cache, 4) == Page(_records(cache, 5), 6, 6)


def _records(cache: Cache, *ids: int) -> list[object]:
    page = read(cache, 0)
    assert isinstance(page, Page)
    return [record for record in page.records if record.id in ids]


def test_what_may_have_expired_is_left_to_the_store() -> None:
    now_us = 0
    cache = Cache(FOREVER, lambda: now_us)
    keep(cache, 1, None, 60)
    last = keep(cache, 3, 100, None)
    assert ids_of(read(cache, 0)) == [1, 2, 3, 4]
    now_us = 60_000_000 - EXPIRY_MARGIN_US - 1
    assert ids_of(read(cache, 0)) == [1, 2, 3, 4]
    now_us += 1
    page = read(cache, 0)
    assert isinstance(page, Page)
    assert (ids_of(page), page.scanned_to) == ([1], 1)
    assert read(cache, 1) is None
    assert read(cache, 2) == Recent([last], 4)
    assert cache.hits == 4


def test_the_oldest_over_all_subjects_goes_first_and_empty_subjects_are_forgotten() -> None:
    cache = Cache(3 * EACH, int)
    keep(cache, 1, None)
    keep(cache, 1, None, subject="b")
    keep(cache, 2, None)
    keep(cache, 3, None)
    assert (cache.end_after("a", 0), cache.end_after("a", 1), cache.end_after("b", 0)) == (None, 3, 1)
    keep(cache, 4, None)
    assert set(cache.subjects) == {"a"}
    cache.shrink(EACH)
    assert (cache.end_after("a", 2), cache.end_after("a", 3), cache.bytes) == (None, 4, EACH)
    cache.shrink(0)
    assert (dict(cache.subjects), cache.bytes) == ({}, 0)


def test_a_subject_is_kept_until_what_its_last_listener_got_is_gone() -> None:
    cache = Cache(3 * EACH, int)
    keep(cache, 1, None)
    for id_ in (2, 3, 4):
        keep(cache, id_, None, heard=False)
    assert cache.end_after("a", 1) == 4, "who got the first can go on"
    keep(cache, 5, None, heard=False)
    assert (dict(cache.subjects), cache.bytes) == ({}, 0)


def test_what_is_purged_is_dropped_with_the_batch_that_it_is_in() -> None:
    cache = Cache(FOREVER, int)
    keep(cache, 1, 0, None)
    keep(cache, 3, None, None)
    keep(cache, 5, None)
    cache.drop("a", 1)
    assert cache.end_after("a", 0) == 5, "there is no message up to there"
    cache.drop("a", 3)
    assert (cache.end_after("a", 3), cache.end_after("a", 4), cache.bytes) == (None, 5, EACH)
    cache.drop("a", 5)
    assert dict(cache.subjects) == {}
    cache.drop("b", 1)


def test_what_was_purged_before_its_flush_came_back_is_not_kept() -> None:
    cache = Cache(FOREVER, int)
    keep(cache, 1, None)
    cache.drop("a", 3)
    keep(cache, 2, None)
    assert dict(cache.subjects) == {}
    keep(cache, 3, None, None)
    assert dict(cache.subjects) == {}
    keep(cache, 5, None)
    assert ids_of(read(cache, 4)) == [5]


def test_one_that_is_off_or_too_small_keeps_nothing() -> None:
    for max_bytes in (0, EACH - 1):
        cache = Cache(max_bytes, int)
        keep(cache, 1, None)
        assert (dict(cache.subjects), cache.bytes) == ({}, 0)
    cache = Cache(EACH, int)
    keep(cache, 1, None)
    keep(cache, 2, None, None)
    assert read(cache, 0) is None, "the run has a hole now"


def test_what_is_kept_counts_as_waiting_only_when_it_is_not_kept_any_more() -> None:
    backlog = Backlog(FOREVER)
    cache = Cache(2 * EACH, int)
    held = [batch(id_) for id_ in range(1, 5)]
    for each in held:
        each.enter(backlog)
        cache.keep(each, [None], heard=True)
    assert (backlog.bytes, cache.bytes) == (2 * OVERHEAD_BYTES, 2 * EACH)
    part = held[3].part(3, 4)
    assert part is held[3]
    del each, part
    held.clear()
    assert (backlog.bytes, cache.bytes) == (0, 2 * EACH)
    cache.shrink(0)
    assert (backlog.bytes, cache.bytes) == (0, 0)


# a slow obvious model


@dataclass
class Entry:
    subject: str
    after_id: int
    last_id: int
    kept: dict[int, int]
    """By id, when it expires."""

    @property
    def size_bytes(self) -> int:
        return KEEPING_BYTES + OVERHEAD_BYTES * len(self.kept)


@dataclass
class Model:
    """A store, and a list of what the cache has to have, oldest first."""

    max_bytes: int
    now_us: int = 0
    last_ids: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    log: dict[str, dict[int, int]] = field(default_factory=lambda: {"a": {}, "b": {}})
    heard_ids: dict[str, int] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def run(self, subject: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.subject == subject]

    def append(self, subject: str, lifetimes: Sequence[int | None]) -> Entry:
        after_id = self.last_ids[subject]
        kept = {
            after_id + place: self.now_us + (10**6 if lifetime is None else lifetime) * 1_000_000
            for place, lifetime in enumerate(lifetimes, 1)
            if lifetime != 0
        }
        self.log[subject] |= kept
        self.last_ids[subject] += len(lifetimes)
        return Entry(subject, after_id, self.last_ids[subject], kept)

    def keep(self, new: Entry, *, heard: bool) -> None:
        run = self.run(new.subject)
        if run and run[-1].last_id != new.after_id:
            self.forget(new.subject)
            run = []
        if new.size_bytes > self.max_bytes:
            self.forget(new.subject)
            return
        if heard or not run:
            self.heard_ids[new.subject] = new.last_id if heard else 0
        if run and not run[-1].kept and not new.kept:
            run[-1].last_id = new.last_id
            return
        self.entries.append(new)
        self.shrink(self.max_bytes)

    def shrink(self, max_bytes: int) -> None:
        while sum(entry.size_bytes for entry in self.entries) > max_bytes:
            subject = self.entries.pop(0).subject
            run = self.run(subject)
            if run and run[0].after_id > self.heard_ids[subject]:
                self.forget(subject)

    def forget(self, subject: str) -> None:
        self.entries = [entry for entry in self.entries if entry.subject != subject]

    def purge(self, subject: str, until_id: int) -> None:
        self.log[subject] = {id_: expires for id_, expires in self.log[subject].items() if id_ > until_id}
        bad = [entry for entry in self.run(subject) if any(id_ <= until_id for id_ in entry.kept)]
        if bad:
            self.entries = [e for e in self.entries if e.subject != subject or e.after_id > bad[-1].after_id]

    def ids(self, subject: str, after_id: int, until_id: int) -> list[int]:
        """What a store would return now."""
        log = self.log[subject]
        return [id_ for id_ in sorted(log) if after_id < id_ <= until_id and log[id_] > self.now_us]


subjects = st.sampled_from(["a", "b"])
lifetimes = st.lists(st.sampled_from([None, None, 0, 3, 10]), min_size=1, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), subjects, lifetimes, st.booleans()),
        st.tuples(st.just("append elsewhere"), subjects, lifetimes),
        st.tuples(st.just("purge"), subjects, st.integers(0, 10)),
        st.tuples(st.just("forget"), subjects),
        st.tuples(st.just("shrink"), st.integers(0, 10 * EACH)),
        st.tuples(st.just("wait"), st.integers(0, 4_000_000)),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 12 * EACH))
@settings(max_examples=500, deadline=None)
def test_it_shows_what_the_store_has_and_keeps_what_the_model_keeps(
    plan: list[tuple[str, ...]], max_bytes: int
) -> None:
    model = Model(max_bytes)
    cache = Cache(max_bytes, lambda: model.now_us)
    for step in plan:
        match step:
            case ("commit", str(subject), list(lives), bool(heard)):
                new = model.append(subject, lives)
                keep(cache, new.after_id + 1, *lives, subject=subject, heard=heard, time_us=model.now_us)
                model.keep(new, heard=heard)
            case ("append elsewhere", str(subject), list(lives)):
                model.append(subject, lives)
            case ("purge", str(subject), int(back)):
                until_id = max(0, model.last_ids[subject] - back)
                cache.drop(subject, until_id)
                model.purge(subject, until_id)
            case ("forget", str(subject)):
                cache.forget(subject)
                model.forget(subject)
            case ("shrink", int(size)):
                cache.shrink(size)
                model.shrink(size)
            case ("wait", int(us)):
                model.now_us += us
        assert cache.bytes == sum(entry.size_bytes for entry in model.entries) <= max_bytes
        assert set(cache.subjects) == {entry.subject for entry in model.entries}
        for subject in cache.subjects:
            check_reads(cache, model, subject)


def check_reads(cache: Cache, model: Model, subject: str) -> None:
    run = model.run(subject)
    for after_id in range(model.last_ids[subject] + 1):
        within = run[0].after_id <= after_id <= run[-1].last_id
        assert cache.end_after(subject, after_id) == (run[-1].last_id if within else None)
        found = read(cache, after_id, subject, end_id=model.last_ids[subject], max_messages=3)
        if found is None:
            if within and after_id < run[-1].last_id:  # what comes next may have expired
                soon_us = model.now_us + EXPIRY_MARGIN_US
                kept = {id_: expires for entry in run for id_, expires in entry.kept.items()}
                assert kept[after_id + 1] <= soon_us
            continue
        assert within
        assert found.last_id == run[-1].last_id
        if isinstance(found, Recent):
            scanned_to = found.batches[-1].last_id if found.batches else after_id
        else:
            scanned_to = found.scanned_to
        assert scanned_to > after_id or after_id == model.last_ids[subject]
        assert [id_ for id_ in ids_of(found) if id_ > after_id] == model.ids(subject, after_id, scanned_to)


def test_a_second_encoding_is_counted_here_and_goes_with_its_batch() -> None:
    cache, backlog = Cache(10**6, int), Backlog(10**9)
    batch = Batch([Message("a", 1, bytes(1000), NO_HEADERS, 0)])
    batch.enter(backlog)
    cache.keep(batch, [None], heard=True)
    before = cache.bytes
    batch_wire(batch)
    assert cache.bytes == before, "one is counted from the beginning"
    together_wire(batch)
    assert cache.bytes > before + 1000
    cache.forget("a")
    assert (cache.bytes, backlog.bytes) == (0, batch.memory_bytes)
    del batch
    assert backlog.bytes == 0
