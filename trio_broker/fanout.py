"""Hand committed messages to the live subscribers of a subject.

Owns:      who listens to what; one bounded memory channel of batches per subscriber; cutting the slow ones.
Not here:  storage (persistence/), when a batch comes (trio_broker/commit.py), gRPC (trio_broker/service/).
Threads:   the trio thread only; only `Subscription.receive` and `Messages` are checkpoints.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from types import TracebackType
from typing import NamedTuple, Self

import structlog
import trio

from persistence import Appended, NewMessage
from trio_broker.batch import OVERHEAD_BYTES, Backlog, Batch
from trio_broker.config import Config
from trio_broker.deliveries import Deliveries
from trio_broker.errors import BrokerError, SlowConsumer
from trio_broker.message import Message

log = structlog.get_logger()


class Buffered(NamedTuple):
    """What waits for the live subscribers."""

    messages: int
    bytes: int
    fill_ratio: float
    """Of the fullest buffer, from 0 to 1."""


class Fanout:
    """The live subscribers of this process, by subject."""

    def __init__(self, config: Config, backlog_max_bytes: int = sys.maxsize) -> None:
        """``backlog_max_bytes`` bounds what waits for all subscribers; beyond, those farthest behind are cut."""
        self.backlog = Backlog(backlog_max_bytes)
        self.count = 0
        """How many subscriptions are live."""
        self.slow_consumers = 0
        """How many were cut."""
        self.deliveries = Deliveries()
        self._max_messages = config.subscriber_messages
        self._max_bytes = int(config.subscriber_bytes)
        self._by_subject: dict[str, dict[Subscription, None]] = {}  # a dict for a set that keeps its order
        self._ended: dict[Subscription, None] = {}  # those that may still be received from

    def subscribe(self, subject: str) -> "Subscription":
        """Register a subscriber at once. Whoever asks closes it, best by ``with``."""
        subscription = Subscription(
            subject, self._max_messages, self._max_bytes, self._forget, self._let_go, self.deliveries
        )
        self._by_subject.setdefault(subject, {})[subscription] = None
        self.count += 1
        return subscription

    def deliver(self, committed: Iterable[tuple[NewMessage, Appended]]) -> None:
        """Publish what one commit has appended, in commit order: one batch per subject that somebody listens to."""
        if not self._by_subject:
            return
        committed_s = time.perf_counter()
        by_subject: dict[str, list[Message]] = {}
        for (subject, body, _, headers, _, _), (id_, time_us) in committed:
            if subject in self._by_subject:
                by_subject.setdefault(subject, []).append(Message(subject, id_, body, headers, time_us))
        for messages in by_subject.values():
            batch = Batch(messages, committed_s)
            batch.enter(self.backlog)
            if self.backlog.bytes > self.backlog.max_bytes:
                self.cut_farthest_behind(self.backlog.max_bytes // 2)
            self.publish(batch)

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
        """Cut subscribers, and drop what waits for them, until no more than ``enough_bytes`` wait.

        Those for whom most waits go first; one for whom nothing waits is left alone.
        """
        behind = [each for subscriptions in self._by_subject.values() for each in subscriptions]
        for subscription in sorted([*behind, *self._ended], key=_waiting_bytes, reverse=True):
            if self.backlog.bytes <= enough_bytes or not _waiting_bytes(subscription):
                break
            subscription.cut()

    def end_all(self, error: BrokerError) -> None:
        """End every subscription: each drains what is buffered, then finds a copy of ``error``."""
        for subscriptions in tuple(self._by_subject.values()):
            for subscription in tuple(subscriptions):
                subscription.end(copy(error))  # a copy: each is raised in a task of its own

    def _forget(self, subscription: "Subscription") -> None:
        if subscription.error is not None:
            self._ended[subscription] = None
        subscriptions = self._by_subject[subscription.subject]
        del subscriptions[subscription]
        if not subscriptions:
            del self._by_subject[subscription.subject]  # clients choose subjects: keep no trace
        self.count -= 1
        self.slow_consumers += isinstance(subscription.error, SlowConsumer)

    def _let_go(self, subscription: "Subscription") -> None:
        self._ended.pop(subscription, None)


class Subscription:
    """One live subscriber's end: a bounded channel of batches, drained by one reader.

    It holds at most ``subscriber_messages`` and ``subscriber_bytes``, or one batch: an empty buffer takes any.
    A batch beyond that is not taken, and the subscriber is cut: it drains what it has, then finds
    `trio.EndOfChannel` and `SlowConsumer` in `error`.
    """

    __slots__ = (
        "_deliveries",
        "_forget",
        "_let_go",
        "_live",
        "_max_bytes",
        "_max_messages",
        "_receive",
        "_send",
        "buffered_bytes",
        "buffered_messages",
        "dropped",
        "ended",
        "error",
        "last_delivered_id",
        "last_taken_id",
        "sending",
        "subject",
        "wake",
    )

    def __init__(
        self,
        subject: str,
        max_messages: int,
        max_bytes: int,
        forget: "Callable[[Subscription], None]",
        let_go: "Callable[[Subscription], None]",
        deliveries: Deliveries,
    ) -> None:
        self.subject = subject
        self.wake: Callable[[], None] = _nobody_waits
        """Called after each batch and after the end. It runs between the commit and the reply: it does little."""
        self.ended: Callable[[], None] = _nobody_waits
        """Called once, before `wake`, when it ends from the publishers' side."""
        self.dropped: Callable[[], None] = _nobody_waits
        """Called when `sending` is to be dropped: who receives closes it, in the same stretch."""
        self.sending: Batch | None = None
        """What was received and has not left in whole, for who receives to keep: it is counted meanwhile."""
        self.error: BrokerError | None = None
        """Why it ended; None while it lives, and when its own side closed it."""
        self.last_delivered_id = 0
        """The last message that was received; 0: none."""
        self.last_taken_id = 0
        """The last message that was buffered; 0: none."""
        self.buffered_messages = 0
        self.buffered_bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # a batch has a message at least, so the channel's own bound never bites before those above
        self._send, self._receive = trio.open_memory_channel[Batch](max_messages)
        self._forget = forget
        self._let_go = let_go
        self._deliveries = deliveries
        self._live = True

    def offer(self, batch: Batch) -> bool:
        """Take ``batch``, or be cut; say whether it was taken. Never waits."""
        if not self._live:
            return False
        messages = self.buffered_messages + len(batch.messages)
        size_bytes = self.buffered_bytes + batch.size_bytes
        if self.buffered_messages and (messages > self._max_messages or size_bytes > self._max_bytes):
            self.end(self._too_slow())
            return False
        self.buffered_messages = messages
        self.buffered_bytes = size_bytes
        self.last_taken_id = batch.last_id
        self._send.send_nowait(batch)
        try:
            self.wake()
        except Exception:  # as in `_tell`, which would cost a tenth of a delivery
            log.exception("wake_failed", subject=self.subject)
        return True

    def end(self, error: BrokerError) -> None:
        """Take no more, because of ``error``; what is buffered can still be received. Idempotent."""
        if self._live:
            self.error = error
            self._leave()
            self._tell(self.ended)
            self._tell(self.wake)

    def cut(self) -> None:
        """End it at once because memory is short: what is buffered is dropped."""
        waited = f"{self.buffered_messages} messages of {self.buffered_bytes} bytes"
        while self.buffered_messages:
            self.buffered_messages -= len(self._receive.receive_nowait().messages)
        self.buffered_bytes = 0
        error = SlowConsumer(
            f"memory is short, and {waited} waited for the subscriber of {self.subject!r}; "
            f"the last one delivered is {self.last_delivered_id}",
            last_delivered_id=self.last_delivered_id,
        )
        if self._live:
            self.end(error)
        else:
            self.error = error
            self._tell(self.wake)
        if self.sending is not None:
            self._tell(self.dropped)

    def receive_nowait(self) -> Batch:
        """Return the next batch. Whoever asks calls `Deliveries.settle` once it is on its way.

        Raises:
            trio.WouldBlock: nothing is buffered now.
            trio.EndOfChannel: nothing will be any more; `error` says why.
            trio.ClosedResourceError: `close` was called.
        """
        batch = self._receive.receive_nowait()
        self.buffered_messages -= len(batch.messages)  # as in `receive`
        self.buffered_bytes -= batch.size_bytes
        self.last_delivered_id = batch.last_id
        if not batch.takers:
            self._deliveries.took(batch)
        batch.takers += 1
        return batch

    async def receive(self) -> Batch:
        """Return the next batch; wait for it. Raises as `receive_nowait` does, but for `trio.WouldBlock`."""
        batch = await self._receive.receive()
        self.buffered_messages -= len(batch.messages)
        self.buffered_bytes -= batch.size_bytes
        self.last_delivered_id = batch.last_id
        if not batch.takers:
            self._deliveries.took(batch)
        batch.takers += 1
        self._deliveries.settle()
        return batch

    def close(self) -> None:
        """Listen no more, and give back what is buffered. Idempotent."""
        if self._live:
            self._leave()
        self._let_go(self)
        self._receive.close()
        self.sending = None
        self.buffered_messages = self.buffered_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, whom: Callable[[], None]) -> None:
        try:
            whom()
        except Exception:
            log.exception("wake_failed", subject=self.subject)  # one reader's bug must not reach the others

    def _leave(self) -> None:
        self._live = False
        self._forget(self)
        self._send.close()

    def _too_slow(self) -> SlowConsumer:
        # all that was taken is still delivered before the reader sees this
        return SlowConsumer(
            f"the subscriber of {self.subject!r} reads too slowly: {self.buffered_messages} messages of "
            f"{self.buffered_bytes} bytes were waiting (at most {self._max_messages} and {self._max_bytes} may); "
            f"the last one delivered is {self.last_taken_id}",
            last_delivered_id=self.last_taken_id,
        )


class Messages:
    """The messages of a subscription one by one, for `Broker.subscribe`. For one task."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._unread: deque[Message] = deque()

    async def receive(self) -> Message:
        """Return the next message; wait for it. A checkpoint.

        Raises:
            BrokerError: why the subscription ended, once all messages before were returned: `SlowConsumer`,
                `Draining`, `BrokerClosed`.
            trio.ClosedResourceError: the block of `Broker.subscribe` was left.
        """
        if self._unread:
            await trio.lowlevel.checkpoint()
        else:
            self._unread.extend((await self._next_batch()).messages)
        return self._unread.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        return await self.receive()

    async def _next_batch(self) -> Batch:
        try:
            return await self._subscription.receive()
        except trio.EndOfChannel:
            assert self._subscription.error is not None, "only an error ends a subscription from this side"
            raise self._subscription.error from None


def _waiting_bytes(subscription: Subscription) -> int:
    """Return what would be freed, if nobody else held the same."""
    sending = subscription.sending
    waiting = subscription.buffered_bytes + OVERHEAD_BYTES * subscription.buffered_messages
    return waiting if sending is None else waiting + sending.memory_bytes


def _nobody_waits() -> None:
    """Stand in for a `Subscription.wake` that nobody has set."""
