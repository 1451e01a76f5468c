"""A subscriber that is served from memory where that has something, and otherwise from the log: as in test_position.py,
with others that append to the same log, purges, and a cache that holds a few batches."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from test_position import PAGE, Log, Trial, policies

from trio_broker.batch import OVERHEAD_BYTES
from trio_broker.cache import KEEPING_BYTES, Cache
from trio_broker.fanout import NEW, Span
from trio_broker.message import UNAVAILABLE, Gap
from trio_broker.position import State
from trio_broker.start import SlowPolicy

CACHE_BYTES = 8 * (KEEPING_BYTES + OVERHEAD_BYTES)

Plan = list[str | list[bool] | tuple[str, list[bool]]]


class CachedTrial(Trial):
    """Each commit that is heard is kept, too, and memory is asked before the log."""

    def __init__(self, span: Span = NEW, slow: SlowPolicy = SlowPolicy.CATCH_UP, log: Log | None = None) -> None:
        super().__init__(span, slow, log)
        self.cache = Cache(CACHE_BYTES, int)
        self.lifetimes: deque[list[int | None]] = deque()

    def append(self, kept: list[bool]) -> None:
        self.log.append(kept)
        self.lifetimes.append([None if keep else 0 for keep in kept])

    def append_elsewhere(self, kept: list[bool]) -> None:
        self.log.append(kept)
        self.log.unheard.pop()

    def hear(self) -> None:
        if self.log.unheard:
            self.cache.keep(self.log.unheard[0], self.lifetimes.popleft(), heard=True)
        super().hear()

    def begin_read(self) -> None:
        if self.wanting and self.read_after is None:
            position = self.subscription.position
            after_id = position.begin_read()
            found = self.cache.read("a", after_id, position.settled_id, max_messages=PAGE, max_bytes=10**6)
            if found is None:
                self.read_after = after_id
            else:
                self.wanting.pop().page(found)

    def expire(self) -> None:
        if self.log.kept:
            self.cache.drop("a", min(self.log.kept))
        super().expire()

    def come_back(self, start_id: int) -> int:
        """Leave, and subscribe again somewhere in the log as it is now, whoever appended to it; return where."""
        self.subscription.close()
        self.wanting.clear()
        self.read_after = self.page = None
        self.got = []
        start_id = min(start_id, self.log.last_id)
        self.cache.drop("a", min(self.log.kept, default=self.log.last_id + 1) - 1)
        self.subscription = self.fanout.subscribe("a", Span(start_id, None, self.log.last_id), report_gaps=True)
        return start_id

    def shrink(self) -> None:
        self.cache.shrink(self.cache.bytes // 2)


steps = st.lists(
    st.one_of(
        st.sampled_from(["hear", "begin_read", "snapshot", "end_read", "take", "take", "drop", "expire", "shrink"]),
        st.lists(st.booleans(), min_size=1, max_size=3),
        st.tuples(st.just("elsewhere"), st.lists(st.booleans(), min_size=1, max_size=2)),
    ),
    max_size=80,
)


def run(trial: CachedTrial, plan: Plan) -> None:
    for step in plan:
        match step:
            case str():
                getattr(trial, step)()
            case ("elsewhere", list(kept)):
                trial.append_elsewhere(kept)
            case list(kept):
                trial.append(kept)  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), steps, policies)
@settings(max_examples=1000, deadline=None)
def test_what_is_in_memory_and_what_is_in_the_log_join_without_gap_or_duplicate(
    before: list[bool], start_id: int, plan: Plan, slow: SlowPolicy
) -> None:
    log = Log()
    log.history(before)
    start_id = min(start_id, log.last_id)
    trial = CachedTrial(Span(start_id, None, log.last_id), slow, log)
    run(trial, plan)
    trial.append([True])  # what others appended before it is heard of now
    trial.settle()
    trial.check(start_id, log.last_id)
    assert trial.subscription.position.state is State.LIVE


@given(steps, st.integers(0, 40), steps)
@settings(max_examples=1000, deadline=None)
def test_who_comes_back_goes_on_where_it_was_and_gets_all_that_was_there(
    before: Plan, start_id: int, plan: Plan
) -> None:
    trial = CachedTrial()
    run(trial, before)
    start_id = trial.come_back(start_id)
    there_id = trial.log.last_id
    run(trial, plan)
    trial.settle()
    assert trial.subscription.position.taken_id >= there_id
    trial.append([True])
    trial.settle()
    trial.check(start_id, trial.log.last_id)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 16), steps)
@settings(max_examples=500, deadline=None)
def test_an_end_is_kept_to(before: list[bool], start_id: int, until_id: int, plan: Plan) -> None:
    log = Log()
    log.history(before)
    start_id = min(start_id, log.last_id)
    trial = CachedTrial(Span(start_id, until_id, log.last_id), SlowPolicy.CATCH_UP, log)
    run(trial, plan)
    trial.append([True])
    trial.settle()
    trial.check(start_id, min(log.last_id, max(start_id, until_id)))


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 15))
@settings(deadline=None)
def test_memory_alone_has_the_same_messages_and_gaps_as_the_log(commits: list[list[bool]], start_id: int) -> None:
    by_memory, by_log = CachedTrial(), Trial()
    for trial in (by_memory, by_log):
        for kept in commits:
            (trial.append if isinstance(trial, CachedTrial) else trial.log.append)(kept)
            trial.hear()
    start_id = by_memory.come_back(start_id)
    by_log.subscription.close()
    by_log.wanting.clear()
    by_log.got = []
    by_log.subscription = by_log.fanout.subscribe("a", Span(start_id, None, by_log.log.last_id), report_gaps=True)
    for trial in (by_memory, by_log):
        trial.settle()
        trial.check(start_id, trial.log.last_id)
    if by_memory.cache.end_after("a", start_id) is not None:
        assert by_memory.cache.hits > 0
        assert by_memory.read_after is None, "no page was read"
    assert by_memory.got == by_log.got
    assert all(item.reason == UNAVAILABLE for item in by_memory.got if isinstance(item, Gap))
