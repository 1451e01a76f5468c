"""Hand committed messages to the live subscribers of a subject.

Owns:      who listens to what, here and at other brokers; cutting those farthest behind when too much waits.
Not here:  the order of what comes from several brokers (trio_broker/merge.py); what a subscriber has in its buffer
           (trio_broker/subscription.py); which batch is next for it (trio_broker/position.py); when a batch comes
           (trio_broker/commit.py); storage (persistence/).
Threads:   the trio thread only; no function here is a checkpoint.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import trio

from persistence import Appended, NewMessage
from trio_broker.batch import Backlog, Batch
from trio_broker.cache import Cache
from trio_broker.config import Config
from trio_broker.deliveries import Deliveries
from trio_broker.errors import BrokerError, SlowConsumer
from trio_broker.merge import Lifetimes, Merge
from trio_broker.message import GAP_REASONS, Gap, Message
from trio_broker.position import Position
from trio_broker.start import SlowPolicy
from trio_broker.subscription import Subscription


class Buffered(NamedTuple):
    """What waits for the live subscribers."""

    messages: int
    bytes: int
    fill_ratio: float
    """Of the fullest buffer, from 0 to 1."""


class Span(NamedTuple):
    """The part of a subject's log that a subscription is of."""

    after_id: int | None = None
    """None: it begins with what is published from now on."""
    until_id: int | None = None
    """None: it has no end."""
    end_id: int = 0
    """The subject's last id, as far as it is known."""
    live: bool = False
    """It begins at that end: the log has nothing to read."""


NEW = Span()

COMMIT, TAIL, WAKEUP, POLL = PATHS = ("commit", "tail", "wakeup", "poll")
"""How a broker learns of messages: its own commits, other brokers' streams, the store's wake-ups, asking the store."""


class Tail(Protocol):
    """Another broker that listens to some subjects."""

    def offer(self, batch: Batch, lifetimes: Lifetimes) -> None:
        """Pass on what this broker has committed. It neither waits nor raises."""


class Fanout:
    """The live subscribers of this process, by subject."""

    def __init__(
        self,
        config: Config,
        backlog_max_bytes: int = sys.maxsize,
        want_page: Callable[[Subscription], None] | None = None,
        cache: Cache | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """``backlog_max_bytes`` bounds what waits for all subscribers; beyond, those farthest behind are cut.

        ``want_page`` is called for a subscription that has nothing more to give until it gets a page of the log.
        ``cache`` gets what is delivered; None: nobody keeps it. ``shared``: other brokers append to the same log.
        """
        self.backlog = Backlog(backlog_max_bytes)
        self.count = 0
        """How many subscriptions are live."""
        self.slow_consumers = 0
        """How many were cut."""
        self.lags = 0
        """How often one left the live stream to catch up later."""
        self.gaps = dict.fromkeys(GAP_REASONS, 0)
        """By reason."""
        self.learned: Counter[str] = Counter(dict.fromkeys(PATHS, 0))
        """How many messages of subjects of interest were heard of first, by path."""
        self.tails: dict[str, dict[Tail, None]] = {}
        """Other brokers that listen, by subject. (A dict for a set that keeps its order.)"""
        self.on_interest: list[Callable[[str], None]] = []
        """Each is told of a subject that somebody here begins to be interested in, or nobody is any more."""
        self.holes = trio.lowlevel.ParkingLot()
        """Whoever parks here is woken when a batch has to wait for its turn."""
        self.merge = Merge(self._offer) if shared else None
        self._expected: Counter[str] = Counter()
        self.want_page = want_page or _nobody_reads
        self._cache = cache or Cache(0, int)
        self.deliveries = Deliveries()
        self._max_messages = config.subscriber_messages
        self._max_bytes = int(config.subscriber_bytes)
        self._by_subject: dict[str, dict[Subscription, None]] = {}  # a dict for a set that keeps its order
        self._ended: dict[Subscription, None] = {}  # those that may still be received from

    def subscribe(
        self,
        subject: str,
        span: Span = NEW,
        slow: SlowPolicy = SlowPolicy.CATCH_UP,
        *,
        report_gaps: bool = False,
    ) -> Subscription:
        """Register a subscriber at once. Whoever asks closes it, best by ``with``."""
        position = Position(
            subject,
            after_id=span.after_id,
            until_id=span.until_id,
            end_id=span.end_id,
            live=span.live,
            report_gaps=report_gaps,
            max_messages=self._max_messages,
            max_bytes=self._max_bytes,
        )
        subscription = Subscription(self, position, slow, self._max_messages, self._max_bytes, report_gaps=report_gaps)
        subscriptions = self._by_subject.setdefault(subject, {})
        subscriptions[subscription] = None
        self.count += 1
        if self.merge is not None and span.after_id is not None:
            self.merge.begin(subject, span.end_id)
        if len(subscriptions) == 1:
            self._tell_of_interest(subject)
        if position.finished:
            subscription.finish()
        return subscription

    def deliver(self, committed: Iterable[tuple[NewMessage, Appended]], *, told: Collection[str] = ()) -> None:
        """Publish what one commit has appended, in commit order: one batch per subject that somebody listens to.

        Of a subject that the cache has something of it gets one, too. ``told``: of these subjects another broker did
        the commit for this one, and has told the others. It may have been several commits, with other publishers'
        messages between them.
        """
        listened, cached, tails, expected = self._by_subject, self._cache.subjects, self.tails, self._expected
        if not listened and not cached and not tails and not expected:
            return
        committed_s = time.perf_counter()
        by_subject: dict[str, tuple[list[Message], list[int | None]]] = {}
        for (subject, body, expiration_s, headers, *_), (id_, time_us) in committed:
            if subject in listened or subject in cached or subject in tails or subject in expected:
                messages, lifetimes = by_subject.get(subject) or by_subject.setdefault(subject, ([], []))
                messages.append(Message(subject, id_, body, headers, time_us))
                lifetimes.append(expiration_s)
        for subject, (messages, lifetimes) in by_subject.items():
            if messages[-1].id - messages[0].id == len(messages) - 1:  # as always but for what another broker appended
                self._deliver_batch(subject, messages, lifetimes, committed_s, is_told=subject in told)
                continue
            for some, of_some in _consecutive(messages, lifetimes):
                self._deliver_batch(subject, some, of_some, committed_s, is_told=subject in told)

    def _deliver_batch(
        self,
        subject: str,
        messages: Sequence[Message],
        lifetimes: Lifetimes,
        committed_s: float,
        *,
        is_told: bool,
    ) -> None:
        batch = Batch(messages, committed_s)
        batch.enter(self.backlog)
        if not is_told:
            for tail in self.tails.get(subject, ()):
                tail.offer(batch, lifetimes)
        if subject in self._by_subject or subject in self._cache.subjects or subject in self._expected:
            self.arrive(batch, lifetimes, COMMIT)

    def arrive(self, batch: Batch, lifetimes: Lifetimes, path: str) -> None:
        """Publish a batch that counts as waiting, when its turn has come."""
        if self.merge is None or not self.is_interesting(batch.subject):  # nobody waits: at most the cache keeps it
            if path == COMMIT:
                self._offer(batch, lifetimes)
            return
        if batch.last_id > self.merge.offered_id(batch.subject):
            self.learned[path] += batch.count
        self.merge.arrive(batch, lifetimes, trio.current_time())
        if self.merge.due is not None:
            self.holes.unpark_all()

    def _offer(self, batch: Batch, lifetimes: Lifetimes) -> None:
        self._cache.keep(batch, lifetimes, heard=batch.subject in self._by_subject)
        self._make_room()
        self.publish(batch)

    def hear(self, subject: str, last_id: int, path: str) -> None:
        """Learn that the log of a subject goes up to ``last_id``: what of that does not come is read."""
        if self.merge is None or not self.is_interesting(subject) or last_id <= self.merge.offered_id(subject):
            return
        self.merge.begin(subject, last_id - 1)  # of what is not known nobody wants more than the last
        self.learned[path] += last_id - self.merge.offered_id(subject)
        for subscription in tuple(self._by_subject.get(subject, ())):
            subscription.hear(last_id)
        self.merge.skip(subject, last_id)

    def offered_id(self, subject: str) -> int:
        """Return up to which id a subject was offered here, as far as it is known."""
        return 0 if self.merge is None else self.merge.offered_id(subject)

    def interesting(self) -> Collection[str]:
        """Return the subjects that somebody here is interested in, always in the same order."""
        return dict.fromkeys((*self._by_subject, *self._expected)).keys()

    def is_interesting(self, subject: str) -> bool:
        """Say whether somebody here is interested in a subject."""
        return subject in self._by_subject or subject in self._expected

    @contextmanager
    def expecting(self, subject: str) -> Generator[None]:
        """Be interested in a subject for the length of the block, as a subscriber who is to come."""
        self._expected[subject] += 1
        if self._expected[subject] == 1 and subject not in self._by_subject:
            self._tell_of_interest(subject)
        try:
            yield
        finally:
            self._expected[subject] -= 1
            if not self._expected[subject]:
                del self._expected[subject]
                self._lose_interest(subject)

    def _lose_interest(self, subject: str) -> None:
        if not self.is_interesting(subject):
            if self.merge is not None:
                self.merge.forget(subject)
            self._tell_of_interest(subject)

    def _tell_of_interest(self, subject: str) -> None:
        for tell in self.on_interest:
            tell(subject)

    def enter(self, batch: Batch) -> None:
        """Count a new batch as waiting; if that is too much, make room."""
        batch.enter(self.backlog)
        self._make_room()

    def _make_room(self) -> None:
        if self.backlog.bytes > self.backlog.max_bytes:
            self.cut_farthest_behind(self.backlog.max_bytes // 2)

    def publish(self, batch: Batch) -> int:
        """Offer ``batch`` to each subscriber of its subject; return how many took it."""
        taken = 0
        for subscription in tuple(self._by_subject.get(batch.subject, ())):  # a copy: offering may cut one
            taken += subscription.offer(batch)
        return taken

    def buffered(self) -> Buffered:
        """Say what waits for live subscribers; it looks at each of them."""
        subscriptions = [each for subscriptions in self._by_subject.values() for each in subscriptions]
        messages = [each.buffered_messages for each in subscriptions]
        size_bytes = [each.buffered_bytes for each in subscriptions]
        fullest = max(max(messages, default=0) / self._max_messages, max(size_bytes, default=0) / self._max_bytes)
        return Buffered(sum(messages), sum(size_bytes), min(1.0, fullest))

    def subscribers_of(self, subject: str) -> int:
        """Return how many subscriptions of a subject are live."""
        return len(self._by_subject.get(subject, ()))

    def cut_farthest_behind(self, enough_bytes: int) -> None:
        """Drop what waits for subscribers, and cut them, until no more than ``enough_bytes`` wait.

        Those for whom most waits go first; one for whom nothing waits is left alone. Who can get it again, or do
        without it, is not cut, unless all that did not help.
        """
        behind = [each for subscriptions in self._by_subject.values() for each in subscriptions]
        for relieve in (Subscription.drop, Subscription.cut):
            for subscription in sorted([*behind, *self._ended], key=attrgetter("waiting_bytes"), reverse=True):
                if self.backlog.bytes <= enough_bytes or not subscription.waiting_bytes:
                    break
                relieve(subscription)

    def end_all(self, error: BrokerError) -> None:
        """End every subscription: each drains what is buffered, then finds a copy of ``error``."""
        for subscriptions in tuple(self._by_subject.values()):
            for subscription in tuple(subscriptions):
                subscription.end(copy(error))  # a copy: each is raised in a task of its own

    def count_gaps(self, gaps: Iterable[Gap]) -> None:
        """Count what a subscriber does not get."""
        for gap in gaps:
            self.gaps[gap.reason] += 1

    def forget(self, subscription: Subscription) -> None:
        """Offer it nothing any more."""
        self._ended[subscription] = None
        subscriptions = self._by_subject[subscription.subject]
        del subscriptions[subscription]
        if not subscriptions:
            del self._by_subject[subscription.subject]  # clients choose subjects: keep no trace
            self._lose_interest(subscription.subject)
        self.count -= 1
        self.slow_consumers += isinstance(subscription.error, SlowConsumer)

    def let_go(self, subscription: Subscription) -> None:
        """Nobody will receive from it any more."""
        self._ended.pop(subscription, None)


def _nobody_reads(_subscription: Subscription) -> None:
    """Stand in for a `Fanout.want_page` where there is no log."""


def _consecutive(messages: Sequence[Message], lifetimes: Lifetimes) -> Iterator[tuple[list[Message], list[int | None]]]:
    """Cut messages where ids are missing, in the order of ids."""
    both = sorted(zip(messages, lifetimes, strict=True), key=lambda each: each[0].id)
    for _, some in groupby(enumerate(both), key=lambda each: each[1][0].id - each[0]):
        found = [pair for _, pair in some]
        yield [message for message, _ in found], [lifetime for _, lifetime in found]
