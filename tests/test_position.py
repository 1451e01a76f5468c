"""One subscriber on one log, in every order of commits, offers, reads, expiries and overflows, beside an obvious model:
its stream is the ids from its start on, one after the other, each a message or in a gap that says it is not there."""

from collections import deque
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from persistence import NO_HEADERS, Page, Record
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.fanout import NEW, Fanout, Span
from trio_broker.message import DROPPED_OLDEST, LIVE_BUFFER, UNAVAILABLE, Gap, Message
from trio_broker.position import State
from trio_broker.start import SlowPolicy
from trio_broker.subscription import Subscription

BUFFER = 4
PAGE = 3


@dataclass
class Log:
    """A subject's log, and what of it was not offered to the live subscribers yet."""

    last_id: int = 0
    kept: set[int] = field(default_factory=set)
    unheard: deque[Batch] = field(default_factory=deque)

    def append(self, kept: list[bool]) -> None:
        ids = range(self.last_id + 1, self.last_id + len(kept) + 1)
        self.last_id += len(kept)
        self.kept |= {id_ for id_, keep in zip(ids, kept, strict=True) if keep}
        if ids:
            self.unheard.append(Batch([Message("a", id_, b"", NO_HEADERS, 0) for id_ in ids], 0.0))

    def history(self, kept: list[bool]) -> None:
        """Append what nobody here hears of."""
        self.append(kept)
        self.unheard.clear()

    def page(self, after_id: int) -> Page:
        ids = sorted(id_ for id_ in self.kept if id_ > after_id)
        more = len(ids) > PAGE
        records = [Record(id_, b"", NO_HEADERS, 0, None) for id_ in ids[:PAGE]]
        return Page(records, records[-1].id if more else max(after_id, self.last_id), self.last_id)


class Trial:
    """A log, a fan-out, one subscriber that reports gaps, and a reader of pages that takes its time."""

    def __init__(self, span: Span = NEW, slow: SlowPolicy = SlowPolicy.CATCH_UP, log: Log | None = None) -> None:
        self.log = log or Log()
        self.wanting: list[Subscription] = []
        self.fanout = Fanout(Config(subscriber_messages=BUFFER), want_page=self.wanting.append)
        self.subscription = self.fanout.subscribe("a", span, slow, report_gaps=True)
        self.read_after: int | None = None
        self.page: Page | None = None
        self.got: list[Message | Gap] = []

    def hear(self) -> None:
        """Offer the next commit."""
        if self.log.unheard:
            self.fanout.publish(self.log.unheard.popleft())

    def learn(self) -> None:
        """Learn how far the log goes; what was to be offered of that comes too late."""
        self.log.unheard.clear()
        self.subscription.hear(self.log.last_id)

    def begin_read(self) -> None:
        if self.wanting and self.read_after is None:
            self.read_after = self.subscription.position.begin_read()

    def snapshot(self) -> None:
        if self.read_after is not None and self.page is None:
            self.page = self.log.page(self.read_after)

    def end_read(self) -> None:
        if self.page is not None:
            page, self.page, self.read_after = self.page, None, None
            self.wanting.pop().page(page)

    def take(self) -> None:
        """Read one batch, or ask for more."""
        if self.subscription.buffered_messages:
            self.got += self.subscription.receive_nowait().items()
        else:
            self.subscription.pull()

    def drop(self) -> None:
        """Memory is short."""
        if self.subscription.live:
            self.subscription.drop()

    def expire(self) -> None:
        """What was kept first is kept no longer."""
        if self.log.kept:
            self.log.kept.remove(min(self.log.kept))

    def settle(self) -> None:
        """Let everything happen that is due."""
        while self.log.unheard:
            self.hear()
        for _ in range(60):
            self.begin_read()
            self.snapshot()
            self.end_read()
            self.take()

    def check(self, start_id: int, end_id: int) -> None:
        """All ids from the start on came in order: as messages, or in gaps that are true."""
        next_id = start_id + 1
        for item in self.got:
            if isinstance(item, Gap):
                assert item.first_id == next_id
                if item.reason != DROPPED_OLDEST:
                    assert self.log.kept.isdisjoint(range(item.first_id, item.last_id + 1))
                next_id = item.last_id + 1
            else:
                assert item.id == next_id
                next_id += 1
        assert next_id == end_id + 1


steps = st.lists(
    st.one_of(
        st.sampled_from(["hear", "learn", "begin_read", "snapshot", "end_read", "take", "drop", "expire"]),
        st.lists(st.booleans(), min_size=1, max_size=3),
    ),
    max_size=60,
)
policies = st.sampled_from([SlowPolicy.CATCH_UP, SlowPolicy.DROP_OLDEST])


without_learning = steps.map(lambda plan: [step for step in plan if step != "learn"])


def run(trial: Trial, plan: list[str | list[bool]]) -> None:
    for step in plan:
        if isinstance(step, str):
            getattr(trial, step)()
        else:
            trial.log.append(step)


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), steps, policies)
@settings(max_examples=500, deadline=None)
def test_a_replay_joins_the_live_stream_without_gap_or_duplicate(
    before: list[bool], start_id: int, plan: list[str | list[bool]], slow: SlowPolicy
) -> None:
    log = Log()
    log.history(before)
    start_id = min(start_id, log.last_id)
    trial = Trial(Span(start_id, None, log.last_id), slow, log)
    run(trial, plan)
    trial.settle()
    trial.check(start_id, log.last_id)
    assert trial.subscription.position.state is State.LIVE


@given(without_learning, policies)
@settings(max_examples=500, deadline=None)
def test_from_now_on_is_without_gap_or_duplicate_too(plan: list[str | list[bool]], slow: SlowPolicy) -> None:
    trial = Trial(slow=slow)
    run(trial, plan)
    trial.settle()
    trial.check(0, trial.log.last_id)
    assert trial.subscription.position.state is State.LIVE


@given(st.lists(st.booleans(), max_size=8), steps, policies)
@settings(max_examples=500, deadline=None)
def test_who_begins_live_where_the_log_ends_needs_no_page_for_that(
    before: list[bool], plan: list[str | list[bool]], slow: SlowPolicy
) -> None:
    log = Log()
    log.history(before)
    start_id = log.last_id
    trial = Trial(Span(start_id, None, start_id, live=True), slow, log)
    trial.take()
    assert not trial.wanting
    run(trial, plan)
    trial.settle()
    trial.check(start_id, log.last_id)
    assert trial.subscription.position.state is State.LIVE


@given(st.lists(st.booleans(), max_size=8), st.integers(0, 8), st.integers(0, 16), steps)
@settings(max_examples=500, deadline=None)
def test_an_end_is_kept_to(before: list[bool], start_id: int, until_id: int, plan: list[str | list[bool]]) -> None:
    log = Log()
    log.history(before)
    start_id = min(start_id, log.last_id)
    trial = Trial(Span(start_id, until_id, log.last_id), SlowPolicy.CATCH_UP, log)
    run(trial, plan)
    trial.settle()
    if log.last_id >= until_id:
        trial.check(start_id, max(start_id, until_id))
        assert (trial.subscription.live, trial.subscription.error) == (False, None)
    else:
        trial.check(start_id, log.last_id)
        assert trial.subscription.live


@given(
    st.lists(st.booleans(), max_size=2),
    st.lists(
        st.sampled_from(["hear", "begin_read", "snapshot", "end_read", "take", [False], [True]]),
        max_size=40,
    ),
)
@settings(max_examples=500, deadline=None)
def test_who_fits_in_its_buffer_gets_also_what_is_not_kept(before: list[bool], plan: list[str | list[bool]]) -> None:
    """A page that was read after a commit and before its offer must not take the offer's place."""
    log = Log()
    log.history(before)
    trial = Trial(Span(0, None, log.last_id), log=log)
    commits = 0
    for step in plan:
        if not isinstance(step, list):
            run(trial, [step])
        elif commits < BUFFER - 2:
            run(trial, [step])
            commits += 1
    trial.settle()
    trial.check(0, log.last_id)
    assert trial.fanout.lags == 0
    assert [item for item in trial.got if isinstance(item, Gap) and item.last_id > len(before)] == []


def test_who_keeps_up_never_wants_a_page() -> None:
    trial = Trial()
    for _ in range(100):
        trial.log.append([True, False])
        trial.hear()
        trial.take()
        trial.take()
    assert not trial.wanting
    trial.check(0, 200)


def test_what_was_buffered_when_it_was_full_is_delivered_and_not_read_again() -> None:
    trial = Trial()
    for _ in range(3):
        trial.log.append([False, False])
        trial.hear()
    assert trial.subscription.position.state is State.LAGGING
    trial.settle()
    assert [item.id for item in trial.got if isinstance(item, Message)] == [1, 2, 3, 4]
    assert trial.got[-1] == Gap("a", 5, 6, LIVE_BUFFER)
    assert trial.fanout.gaps == {UNAVAILABLE: 0, LIVE_BUFFER: 1, DROPPED_OLDEST: 0}
    assert trial.fanout.lags == 1


def test_what_is_lost_after_a_replay_was_of_the_live_stream() -> None:
    trial = Trial(Span(0, None, 0))
    trial.settle()
    assert trial.subscription.position.state is State.LIVE
    for _ in range(3):
        trial.log.append([False, False])
        trial.hear()
    trial.settle()
    assert trial.got[-1] == Gap("a", 5, 6, LIVE_BUFFER)


def test_what_is_not_kept_any_more_is_a_gap_from_the_start_position_on() -> None:
    log = Log()
    log.history([True, False, False, True])
    trial = Trial(Span(1, None, 4), log=log)
    trial.take()
    trial.settle()
    assert trial.got == [Gap("a", 2, 3, UNAVAILABLE), Message("a", 4, b"", NO_HEADERS, 0)]


def test_a_hole_in_the_live_stream_is_filled_from_the_log() -> None:
    trial = Trial()
    trial.log.append([True])
    trial.hear()
    trial.log.history([True, True])  # committed by another process
    trial.log.append([False])
    trial.hear()
    assert trial.subscription.position.state is State.JOINING
    trial.settle()
    trial.check(0, 4)
    assert not [item for item in trial.got if isinstance(item, Gap)]


def test_who_drops_the_oldest_has_the_newest_behind_one_gap() -> None:
    trial = Trial(slow=SlowPolicy.DROP_OLDEST)
    for _ in range(50):
        trial.log.append([True])
        trial.hear()
    trial.settle()
    trial.check(0, 50)
    gap, *messages = trial.got
    assert isinstance(gap, Gap)
    assert (gap.first_id, gap.reason) == (1, DROPPED_OLDEST)
    assert 1 <= len(messages) < BUFFER
    assert trial.fanout.lags == 0


def test_a_gap_of_what_was_dropped_is_told_also_if_memory_is_short_again() -> None:
    trial = Trial(slow=SlowPolicy.DROP_OLDEST)
    trial.log.append([True, True])
    trial.hear()
    trial.drop()
    trial.log.history([True])  # committed by another process: the next one leaves a hole
    trial.log.append([True])
    trial.hear()
    trial.drop()
    trial.settle()
    trial.check(0, 4)
    assert trial.got[0] == Gap("a", 1, 2, DROPPED_OLDEST)


def test_far_from_the_end_nothing_is_collected_of_the_live_stream() -> None:
    log = Log()
    log.history([True] * 50)
    trial = Trial(Span(0, None, 50), log=log)
    trial.take()
    trial.begin_read()
    assert trial.subscription.position.state is State.REPLAYING
    log.append([True])
    trial.hear()
    assert trial.subscription.position.collected_messages == 0
    trial.settle()
    trial.check(0, 51)


def test_an_end_that_is_reached_ends_the_channel_without_an_error() -> None:
    trial = Trial(Span(0, 2, 0))
    trial.log.append([True, True, True])
    trial.settle()
    trial.check(0, 2)
    with pytest.raises(trio.EndOfChannel):
        trial.subscription.receive_nowait()
    assert trial.fanout.count == 0
