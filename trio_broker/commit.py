"""Group commit: whatever publishes have gathered become one append to the store.

Owns:      every publish handed to it, from `Committer.hand_over` until it is completed, exactly once; the bounds of
           the queue; what a failing or hanging flush means for each publish in it.
Not here:  validation and the API (trio_broker/broker.py); whose turn it is (trio_broker/fair_queue.py); storage
           (persistence/); subscribers (trio_broker/fanout.py).
Threads:   the trio thread only.

A lane is one task with at most one flush in flight; a subject is always in the same lane. There are no timers: a
flush is what gathered while the one before it was being committed, or else in one tick of the scheduler. What the
store has not been given can be withdrawn; after that its outcome stands, whether or not anybody still waits for it.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from zlib import crc32

import structlog
import trio

import persistence
from persistence import NO_HEADERS, Appended, Duplicate, Failed, NewMessage, Outcome, Store
from persistence.headers import headers_size_bytes
from trio_broker.config import Config
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    Conflict,
    Draining,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StorageUnavailable,
)
from trio_broker.fair_queue import FairQueue
from trio_broker.storage import Availability, broker_error

OVERHEAD_BYTES = 1024
"""What a waiting publish takes besides its subject, body and headers; part of its size in every bound here."""

_WITHDRAWN = NewMessage("", b"", 0, NO_HEADERS)

log = structlog.get_logger()


class Pending:
    """One publish in the committer's hands."""

    __slots__ = ("_group", "_queue", "caller", "message", "outcome", "queued", "size_bytes")

    def __init__(self, message: NewMessage, group: "Group") -> None:
        self.message = message
        self.caller: object = None
        """For the use of who handed it over, such as whom to answer."""
        self.outcome: Appended | Duplicate | BrokerError | None = None
        """None until it is completed; never changes after that."""
        self.size_bytes = _size_bytes(message)
        self.queued = False
        """It waits in the queue: the store has not been given it."""
        self._group: Group | None = group
        self._queue: FairQueue[Pending] | None = None

    def withdraw(self) -> bool:
        """Take this publish back: True if it was still queued, and so never reaches the store.

        Its outcome is `NotApplied` then, and `Group.settled` does not return it: who withdrew it answers for it.
        False: too late, its outcome stands or will.
        """
        if not self.queued:
            return False
        assert self._queue is not None
        self._queue.withdraw(self)
        self.message = _WITHDRAWN  # the queue may keep its entry for long, and not the body
        self.outcome = NotApplied("withdrawn before the store was given it; nothing was appended")
        self._leave_group().withdrew_one()
        return True

    def enter(self, queue: "FairQueue[Pending]", source: Hashable) -> None:
        """Wait in ``queue``."""
        self._queue = queue
        queue.put(self, source)

    def complete(self, outcome: Appended | Duplicate | BrokerError) -> None:
        """Settle it, for good, and tell who waits for its group."""
        assert self.outcome is None, "a publish is completed once"
        assert not self.queued, "a publish that may still be withdrawn is not completed"
        self.outcome = outcome
        self._leave_group().settle(self)

    def _leave_group(self) -> "Group":
        """Return the group, and forget it: in a cycle, bodies would stay until the garbage collector finds them."""
        group, self._group = self._group, None
        assert group is not None, "a publish leaves its group once"
        return group


Answer = Callable[[Pending], None]
"""Told of a publish that is settled, in the committer's own stretch: it neither waits nor hands over more."""


Flushing = Callable[[Sequence[Pending]], AbstractContextManager[object]]
"""Told of what is flushed; returns what is around it, such as a span of a trace."""


class Group:
    """The publishes of one hand-over, which may complete in several flushes.

    Either one task at a time waits for them, or an `Answer` is told of each.
    """

    __slots__ = ("_answer", "_fresh", "_unsettled", "_waiter", "pendings")

    def __init__(self, messages: Sequence[NewMessage], callers: Sequence[object], answer: Answer | None) -> None:
        self.pendings = [Pending(message, self) for message in messages]
        """In the order of the messages."""
        for pending, caller in zip(self.pendings, callers, strict=False):
            pending.caller = caller
        self._answer = answer
        self._unsettled = len(self.pendings)
        self._fresh: list[Pending] = []
        self._waiter: trio.Event | None = None

    async def settled(self) -> list[Pending]:
        """Wait until more are completed; return those, in the order of completion; ``[]`` after the last.

        A checkpoint. Cancelling it withdraws nothing and loses nothing: the next call returns what this one had.
        """
        assert self._waiter is None, "one task waits for a group"
        if self._fresh or not self._unsettled:
            await trio.lowlevel.checkpoint()
        else:
            self._waiter = trio.Event()
            try:
                await self._waiter.wait()
            finally:
                self._waiter = None
        fresh, self._fresh = self._fresh, []
        return fresh

    def settle(self, pending: Pending) -> None:
        self._unsettled -= 1
        if self._answer is not None:
            try:
                self._answer(pending)
            except Exception:
                log.exception("answer_failed")  # one caller's bug must not reach the others of its flush
            return
        self._fresh.append(pending)
        if self._waiter is not None:
            self._waiter.set()

    def withdrew_one(self) -> None:
        self._unsettled -= 1
        if not self._unsettled and self._waiter is not None:
            self._waiter.set()


class Committer:
    """The queue of publishes, and the lanes that bring them to the store. `run` does the work."""

    def __init__(
        self,
        store: Store,
        config: Config,
        deliver: Callable[[list[tuple[NewMessage, Appended]]], object],
        availability: Availability,
        flushing: Flushing = nullcontext,
    ) -> None:
        """Prepare to commit to ``store``.

        ``deliver`` gets what each flush appended, in commit order and before its publishers wake; it neither waits
        nor raises. ``availability`` hears how each flush went. ``flushing`` is entered around each.
        """
        limits = store.limits()
        self._store = store
        self._deliver = deliver
        self._availability = availability
        self._flushing = flushing
        self._max_messages = config.queue_messages
        self._max_bytes = int(config.queue_bytes)
        self._flush_messages = min(config.flush_messages, limits.flush_messages_max)
        self._flush_bytes = min(int(config.flush_bytes), limits.flush_bytes_max)
        self._timeout_s = config.commit_timeout
        self._lanes = [_Lane(self._max_messages, self._max_bytes) for _ in range(limits.lanes)]
        self._refusal: Callable[[], BrokerError] | None = None
        self._closed = False

    @property
    def queued_messages(self) -> int:
        """Publishes that the store has not been given yet."""
        return sum(lane.queue.messages for lane in self._lanes)

    @property
    def queued_bytes(self) -> int:
        """Their size."""
        return sum(lane.queue.bytes for lane in self._lanes)

    def hand_over(
        self,
        messages: Sequence[NewMessage],
        source: Hashable,
        callers: Sequence[object] = (),
        answer: Answer | None = None,
    ) -> Group:
        """Queue messages that came from one source, such as a connection. Never waits and never raises.

        Those of one subject are appended in this order. What cannot be queued is settled at once: with `Overloaded`
        beyond the bounds, with `Draining` or `BrokerClosed` when stopping. With ``answer``, nobody waits for the
        group: ``answer`` is told of each publish that is settled, and finds its own of ``callers`` in it.
        """
        group = Group(messages, callers, answer)
        room_messages = self._max_messages - self.queued_messages
        room_bytes = self._max_bytes - self.queued_bytes
        for pending in group.pendings:
            if self._refusal is not None:
                pending.complete(self._refusal())
            elif room_messages < 1 or pending.size_bytes > room_bytes:
                pending.complete(self._overloaded())
            else:
                room_messages -= 1
                room_bytes -= pending.size_bytes
                lane = self._lane_of(pending.message.subject)
                pending.enter(lane.queue, source)
                lane.wake()
        return group

    async def run(self) -> None:
        """Commit what is handed over, until `close`. Every publish is completed when this returns.

        If cancelled instead, what is in flight gets the outcome that the store returns, or else `OutcomeUnknown`.
        """
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._watch)
                async with trio.open_nursery() as lanes:
                    for lane in self._lanes:
                        lanes.start_soon(self._run_lane, lane)
                watching.cancel_scope.cancel()
        finally:
            self.close()
            for lane in self._lanes:
                _complete_open(lane.flight, "stopped while the store was committing")
                lane.idle.set()

    async def drain(self) -> None:
        """Refuse new publishes with `Draining`; wait until those taken before are committed. A checkpoint."""
        if self._refusal is None:
            self._refusal = _draining
        await trio.lowlevel.checkpoint()
        for lane in self._lanes:
            await lane.idle.wait()

    def close(self) -> None:
        """Refuse new publishes, and those that are queued, with `BrokerClosed`; `run` returns after what is in flight.

        Idempotent.
        """
        self._closed = True
        self._refusal = _closed
        for lane in self._lanes:
            for pending in lane.queue.take(lane.queue.messages, lane.queue.bytes):
                pending.complete(_closed())
            lane.wake()

    async def _run_lane(self, lane: "_Lane") -> None:
        while True:
            await lane.work.wait()  # this task runs in the tick after `wake`: all that one tick reads goes together
            while part := lane.next_part(self._flush_messages, self._flush_bytes):
                with self._flushing(part):
                    await self._flush(lane, part)
                await trio.lowlevel.checkpoint_if_cancelled()  # before more is taken: it can say that it was not
            if self._closed:
                return
            lane.rest()

    async def _flush(self, lane: "_Lane", part: list[Pending]) -> None:
        """Append ``part`` and answer its publishes, or split it. A checkpoint."""
        try:
            with self._availability.trying():
                outcomes = await self._store.append([pending.message for pending in part])
            assert len(outcomes) == len(part), "one outcome per message"
        except persistence.BadContent as error:
            if len(part) > 1:
                lane.split(part)
            else:
                self._fail(part, error)
        except persistence.StoreError as error:
            self._fail(part, error)
        except Exception as error:
            log.exception("append_failed", messages=len(part))  # a bug in the store must not stop the broker
            self._fail(part, error)
        else:
            self._succeed(lane, part, outcomes)

    def _succeed(self, lane: "_Lane", part: list[Pending], outcomes: list[Outcome]) -> None:
        appended = [
            (pending.message, outcome)
            for pending, outcome in zip(part, outcomes, strict=True)
            if isinstance(outcome, Appended)
        ]
        failure = next((outcome.error for outcome in outcomes if isinstance(outcome, Failed)), None)
        if failure is None or appended:
            self._availability.appended()
        else:
            self._availability.failed(failure)
        # subscribers first: who has an id knows that they were offered the message. That nobody waits for the id
        # any more changes nothing: the message is in the log
        self._deliver(appended)
        guilty = []
        for pending, outcome in zip(part, outcomes, strict=True):
            match outcome:
                case Appended() | Duplicate():
                    _complete_flown(pending, outcome)
                case persistence.Conflict(last_id):
                    _complete_flown(pending, _conflict(pending.message, last_id))
                case persistence.Rejected(why):
                    _complete_flown(pending, Rejected(why))
                case Failed(persistence.BadContent()) if len(part) > 1:
                    guilty.append(pending)
                case Failed(error):
                    _complete_flown(pending, broker_error(error))
        if guilty:
            lane.split(guilty)

    def _fail(self, part: list[Pending], error: Exception) -> None:
        self._availability.failed(error)
        for pending in part:
            _complete_flown(pending, broker_error(error))

    async def _watch(self) -> None:
        """Answer publishes that the store keeps too long. The lane waits on: the store's answer is still to come."""
        while True:
            now = trio.current_time()
            next_due = now + self._timeout_s  # no flight that begins after now is due before
            for lane in self._lanes:
                if lane.flight and now < lane.flight_began + self._timeout_s:
                    next_due = min(next_due, lane.flight_began + self._timeout_s)
                elif lane.flight:
                    why = f"the store has not committed within {self._timeout_s:g} s"
                    self._availability.lost(why)
                    for pending in lane.drop_untried():
                        pending.complete(StorageUnavailable(f"{why}; it was not given this message: not appended"))
                    _complete_open(lane.flight, why)
            await trio.sleep_until(next_due)

    def _lane_of(self, subject: str) -> "_Lane":
        if len(self._lanes) == 1:
            return self._lanes[0]
        return self._lanes[crc32(subject.encode()) % len(self._lanes)]

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"the publish queue is full: {self.queued_messages} messages of {self.queued_bytes} bytes wait "
            f"(at most {self._max_messages} and {self._max_bytes} may); nothing was appended"
        )


class _Lane:
    """What one lane's task works on. Of ``work`` and ``idle`` one is set, and nobody waits for the other in vain."""

    __slots__ = ("_parts", "flight", "flight_began", "idle", "queue", "work")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.queue: FairQueue[Pending] = FairQueue(max_messages, max_bytes)
        self.flight: list[Pending] = []
        self.flight_began = 0.0
        self.idle = trio.Event()
        self._parts: list[list[Pending]] = []  # of the flight, still to be appended; the next one is last
        self.rest()

    def rest(self) -> None:
        """Nothing is queued or in flight."""
        self.work = trio.Event()
        self.idle.set()

    def wake(self) -> None:
        """Something was queued, or the lane is to end."""
        if not self.work.is_set():
            self.work.set()
            self.idle = trio.Event()

    def next_part(self, max_messages: int, max_bytes: int) -> list[Pending]:
        """Return what is to be appended next: the rest of a flight that was split, or a new flight; ``[]``: nothing."""
        if not self._parts:
            self.flight = self.queue.take(max_messages, max_bytes)
            self.flight_began = trio.current_time()
            return self.flight
        return self._parts.pop()

    def drop_untried(self) -> list[Pending]:
        """Return what of a flight that was split is not being appended now, and will not be, and has no answer yet."""
        untried = [pending for part in self._parts for pending in part if pending.outcome is None]
        self._parts.clear()
        return untried

    def split(self, part: list[Pending]) -> None:
        """Append ``part`` in halves, next and in order: its content is to blame, and its neighbours are innocent."""
        middle = len(part) // 2
        self._parts += [half for half in (part[middle:], part[:middle]) if half]


def _complete_flown(pending: Pending, outcome: Appended | Duplicate | BrokerError) -> None:
    """Complete what the store has answered for, unless `Committer._watch` could not wait for it."""
    if pending.outcome is None:
        pending.complete(outcome)
    else:
        assert isinstance(pending.outcome, OutcomeUnknown)


def _complete_open(flight: list[Pending], why: str) -> None:
    """Complete what is still open in ``flight``; the store may or may not append it."""
    for pending in flight:
        if pending.outcome is None:
            pending.complete(OutcomeUnknown(f"{why}; the message may or may not be appended"))


def _conflict(message: NewMessage, last_id: int) -> Conflict:
    expected = message.expected_last_id
    return Conflict(
        f"the last id of {message.subject!r} is {last_id}, and not {expected}; nothing was appended", last_id=last_id
    )


def _draining() -> Draining:
    return Draining("the broker is stopping; nothing was appended")


def _closed() -> BrokerClosed:
    return BrokerClosed("the broker is closed; nothing was appended")


def _size_bytes(message: NewMessage) -> int:
    size = OVERHEAD_BYTES + len(message.subject.encode()) + len(message.body)
    if message.headers:
        size += headers_size_bytes(message.headers)
    if message.idempotency_key:
        size += len(message.idempotency_key.encode())
    return size
