"""Hand committed messages to the live subscribers of a subject.

Owns:      who listens to what; cutting those farthest behind when too much waits.
Not here:  what a subscriber has in its buffer (trio_broker/subscription.py); which batch is next for it
           (trio_broker/position.py); when a batch comes (trio_broker/commit.py); storage (persistence/).
Threads:   the trio thread only; no function here is a checkpoint.
"""

import sys
import time
from collections.abc import Callable, Iterable
from copy import copy
from operator import attrgetter
from typing import NamedTuple

from persistence import Appended, NewMessage
from trio_broker.batch import Backlog, Batch
from trio_broker.cache import Cache
from trio_broker.config import Config
from trio_broker.deliveries import Deliveries
from trio_broker.errors import BrokerError, SlowConsumer
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


NEW = Span()


class Fanout:
    """The live subscribers of this process, by subject."""

    def __init__(
        self,
        config: Config,
        backlog_max_bytes: int = sys.maxsize,
        want_page: Callable[[Subscription], None] | None = None,
        cache: Cache | None = None,
    ) -> None:
        """``backlog_max_bytes`` bounds what waits for all subscribers; beyond, those farthest behind are cut.

        ``want_page`` is called for a subscription that has nothing more to give until it gets a page of the log.
        ``cache`` gets what is delivered; None: nobody keeps it.
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
            report_gaps=report_gaps,
            max_messages=self._max_messages,
            max_bytes=self._max_bytes,
        )
        subscription = Subscription(self, position, slow, self._max_messages, self._max_bytes, report_gaps=report_gaps)
        self._by_subject.setdefault(subject, {})[subscription] = None
        self.count += 1
        if position.finished:
            subscription.finish()
        return subscription

    def deliver(self, committed: Iterable[tuple[NewMessage, Appended]]) -> None:
        """Publish what one commit has appended, in commit order: one batch per subject that somebody listens to.

        Of a subject that the cache has something of it gets one, too.
        """
        listened, cached = self._by_subject, self._cache.subjects
        if not listened and not cached:
            return
        committed_s = time.perf_counter()
        by_subject: dict[str, tuple[list[Message], list[int | None]]] = {}
        for (subject, body, expiration_s, headers, *_), (id_, time_us) in committed:
            if subject in listened or subject in cached:
                messages, lifetimes = by_subject.get(subject) or by_subject.setdefault(subject, ([], []))
                messages.append(Message(subject, id_, body, headers, time_us))
                lifetimes.append(expiration_s)
        for subject, (messages, lifetimes) in by_subject.items():
            batch = Batch(messages, committed_s)
            batch.enter(self.backlog)
            self._cache.keep(batch, lifetimes, heard=subject in listened)
            self._make_room()
            self.publish(batch)

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
        self.count -= 1
        self.slow_consumers += isinstance(subscription.error, SlowConsumer)

    def let_go(self, subscription: Subscription) -> None:
        """Nobody will receive from it any more."""
        self._ended.pop(subscription, None)


def _nobody_reads(_subscription: Subscription) -> None:
    """Stand in for a `Fanout.want_page` where there is no log."""
