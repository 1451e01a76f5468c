"""Group commit: whatever publishes have gathered become one append to the store.

Owns:      every publish handed to it, from `Committer.hand_over` until it is completed, exactly once; the bounds of
           the queue; what a failing or hanging flush means for each publish in it.
Not here:  what waits, and who hears of it (trio_broker/runs.py); validation and the API (trio_broker/broker.py); whose
           turn it is (trio_broker/fair_queue.py); storage (persistence/); subscribers (trio_broker/fanout.py).
Threads:   the trio thread only.

A lane is one task with at most one flush in flight; a subject is in the same lane for as long as it is left to another
broker, or not (trio_broker/lane_change.py). There are no timers: a
flush is what gathered while the one before it was being committed, or else in one tick of the scheduler. What the
store has not been given can be withdrawn; after that its outcome stands, whether or not anybody still waits for it.
What is queued are runs of messages: cost is paid per run, and all bounds count messages.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from typing import cast
from zlib import crc32

import structlog
import trio

import persistence
from persistence import Appended, Failed, NewMessage, Outcome, Store
from trio_broker.config import Config
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    Draining,
    OutcomeUnknown,
    Overloaded,
    StorageUnavailable,
)
from trio_broker.fair_queue import QUANTUM
from trio_broker.lane import Lane
from trio_broker.lane_change import LaneChange
from trio_broker.outcomes import result_of
from trio_broker.runs import Answer, Group, Pending, Result, Run, cut, size_bytes
from trio_broker.storage import Availability, broker_error

RUN_SHARE = 16
"""A run of messages that need not stay together takes this part of a flush's bytes at most: others get their share."""
ATOMIC_MESSAGES_MAX = 1_000
"""Messages of one subject that an atomic batch may have."""
WAITING_SHARE = 2
"""Those who can wait for room fill this part of the queue at most: others are not refused for their sake."""

Append = Callable[[Sequence[NewMessage]], Awaitable[list[Outcome]]]
"""As `Store.append`."""
Flushing = Callable[[Sequence[Pending]], AbstractContextManager[object]]
"""Told of what is flushed; returns what is around it, such as a span of a trace."""

log = structlog.get_logger()


class Committer:
    """The queue of publishes, and the lanes that bring them to the store. `run` does the work."""

    def __init__(
        self,
        store: Store,
        config: Config,
        deliver: Callable[[list[tuple[NewMessage, Appended]]], object],
        availability: Availability,
        flushing: Flushing = nullcontext,
        doubt: Callable[[Iterable[str]], object] = set,
    ) -> None:
        """Prepare to commit to ``store``.

        ``deliver`` gets what each flush appended, in commit order and before its publishers wake; it neither waits
        nor raises. ``availability`` hears how each flush went. ``flushing`` is entered around each. ``doubt`` is told
        of which subjects it is not known whether something was appended; it neither waits nor raises.
        """
        limits = store.limits()
        self._store = store
        self._deliver = deliver
        self._availability = availability
        self._flushing = flushing
        self._doubt = doubt
        self._max_messages = config.queue_messages
        self._max_bytes = int(config.queue_bytes)
        self._flush_messages = min(config.flush_messages, limits.flush_messages_max)
        self._flush_bytes = min(int(config.flush_bytes), limits.flush_bytes_max)
        self._timeout_s = config.commit_timeout
        self._lanes = [Lane(self._max_messages, self._max_bytes) for _ in range(limits.lanes + limits.leaves_subjects)]
        self._own_lanes = self._lanes[: limits.lanes]
        self._left_lane = self._lanes[-1] if limits.leaves_subjects else None
        self.is_left: Callable[[str], bool] = _never
        """Says whether appending to a subject is left to another broker: those messages have a lane of their own."""
        self.append_left: Append = store.append
        """What that lane does with them."""
        self._change = LaneChange()
        self._landed = trio.lowlevel.ParkingLot()
        self._waiting: dict[Callable[[], None], None] = {}  # a dict for a set that keeps its order
        self._groups = count(1)
        self._refusal: Callable[[], BrokerError] | None = None
        self._closed = False
        self.atomic_messages_max = min(ATOMIC_MESSAGES_MAX, limits.flush_messages_max)
        """Messages that can be appended together or not at all."""
        self.atomic_bytes_max = self._flush_bytes
        """And their size, as `size_bytes` counts it."""

    @property
    def queued_messages(self) -> int:
        """Publishes that the store has not been given yet."""
        return sum(lane.queue.messages for lane in self._lanes)

    @property
    def queued_bytes(self) -> int:
        """Their size."""
        return sum(lane.queue.bytes for lane in self._lanes)

    def is_committing(self, subject: str) -> bool:
        """Say whether the store has been given messages of a subject and has not answered; it looks at all of them."""
        return any(
            message.subject == subject
            for lane in self._lanes
            for run in lane.part
            if run.outcomes is None
            for message in run.messages
        )

    def hand_over(
        self,
        messages: Sequence[NewMessage],
        source: Hashable,
        callers: Sequence[object] = (),
        answer: Answer | None = None,
    ) -> Group:
        """Queue messages that came from one source, such as a connection, each as a run. See `hand_over_runs`."""
        return self.hand_over_runs([((each,), size_bytes(each)) for each in messages], source, callers, answer)

    def hand_over_runs(
        self,
        runs: Sequence[Run],
        source: Hashable,
        callers: Sequence[object] = (),
        answer: Answer | None = None,
        *,
        had_room: bool = False,
    ) -> Group:
        """Queue runs that came from one source, such as those that `cut` returned. Never waits and never raises.

        Messages of one subject are appended in this order. What cannot be queued is settled at once: with `Overloaded`
        beyond the source's share of the room, unless `has_room` said that it fits; with `Draining` or `BrokerClosed`
        when stopping. With ``answer``, nobody waits for the group: ``answer`` is told of each run that is settled, and
        finds its own of ``callers`` in it.
        """
        group = Group(runs, callers, answer)
        room_messages, room_bytes = self._room_for(source)
        for pending in group.pendings:
            if self._refusal is not None:
                pending.fail(self._refusal())
            elif (
                not had_room
                and (room_messages < pending.count or pending.size_bytes > room_bytes)
                and not self._has_place(pending.count, pending.size_bytes, source)
            ):
                pending.fail(self._overloaded(source))
            else:
                room_messages -= pending.count
                room_bytes -= pending.size_bytes
                first = pending.messages[0]
                lane = self._lane_of(first.subject, may_be_left=not first.group)
                pending.enter(lane.queue, source)
                if lane is self._left_lane:
                    self._change.entered_left(pending)
                lane.wake()
        return group

    def cut(self, messages: Sequence[NewMessage]) -> list[Run]:
        """Cut messages that need not stay together into runs, small enough for the queue to be fair between sources."""
        may_be_left = not (messages and messages[0].group)
        lane_of = partial(self._lane_of, may_be_left=may_be_left) if len(self._lanes) > 1 else None
        return cut(messages, min(QUANTUM, self._max_messages), self._flush_bytes // RUN_SHARE, lane_of)

    def left_changes(self) -> None:
        """Other subjects are left to other brokers from now on: `is_left` says so next."""
        if self._left_lane is not None:
            own = (run for lane in self._own_lanes for run in lane.open_runs())
            self._change.begin(own, self._left_lane.open_runs())

    def next_group(self) -> int:
        """Return a number for `NewMessage.group` that no other batch has."""
        return next(self._groups)

    def has_room(self, messages: int, size: int, source: Hashable | None = None) -> bool:
        """Say whether so many messages, so large, may be queued for who can wait: any, if nothing is queued.

        A ``source`` of which nothing is queued need not wait until there is more room than that: beside others who
        have more to say than the store can take, its turn would come late.
        """
        queued = self.queued_messages
        return (
            not queued
            or (
                queued + messages <= self._max_messages // WAITING_SHARE
                and self.queued_bytes + size <= self._max_bytes // WAITING_SHARE
            )
            or (source is not None and self._has_place(messages, size, source))
        )

    def held_by(self, source: Hashable) -> tuple[int, int]:
        """Return how many messages of a source are queued, and their size."""
        if len(self._lanes) == 1:
            return self._lanes[0].queue.held_by(source)
        held = [lane.queue.held_by(source) for lane in self._lanes]
        return sum(messages for messages, _ in held), sum(size for _, size in held)

    def _room_for(self, source: Hashable) -> tuple[int, int]:
        """Return how many messages of a source may be queued now, and how large.

        It never has more than what then stays free: alone half of the queue, and beside others that want as much as
        they can get the same as each of them. So whoever comes finds room.
        """
        messages, size = self.held_by(source)
        free_messages, free_bytes = self._max_messages - self.queued_messages, self._max_bytes - self.queued_bytes
        return (free_messages - messages + 1) // 2, (free_bytes - size + 1) // 2

    def _has_place(self, messages: int, size: int, source: Hashable) -> bool:
        """Say whether a source of which nothing is queued may use what is free for one thing: it may be large."""
        return (
            messages <= self._max_messages - self.queued_messages
            and size <= self._max_bytes - self.queued_bytes
            and not self.held_by(source)[0]
        )

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` once when there may be room again. It neither waits nor raises."""
        self._waiting[tell] = None

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
                for run in lane.drop_untried():
                    run.fail(_closed())
                _complete_open(lane.part, "stopped while the store was committing")
                self._part_over(lane)
                lane.idle.set()

    async def drain(self) -> None:
        """Refuse new publishes with `Draining`; wait until those taken before are committed. A checkpoint."""
        if self._refusal is None:
            self._refusal = _draining
        await trio.lowlevel.checkpoint()
        for lane in self._lanes:
            await lane.idle.wait()

    async def rest(self) -> None:
        """Wait until nothing is queued and nothing in flight, if something is. A checkpoint only then."""
        for lane in self._lanes:
            if not lane.idle.is_set():
                await lane.idle.wait()

    async def settle(self) -> None:
        """Wait until all is answered that the store has been given by now, not what is queued. A checkpoint."""
        for lane, flight in [(lane, lane.flights) for lane in self._lanes]:
            while lane.landed < flight:
                await self._landed.park()
        for _ in range(2):  # answers leave in the tick after they are given, whoever is first in that
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Refuse new publishes, and those that are queued, with `BrokerClosed`; `run` returns after what is in flight.

        Idempotent.
        """
        self._closed = True
        self._refusal = _closed
        for lane in self._lanes:
            while queued := lane.queue.take(lane.queue.messages, lane.queue.bytes):
                for run in queued:
                    run.fail(_closed())
            lane.wake()

    async def _run_lane(self, lane: Lane) -> None:
        while True:
            await lane.work.wait()  # this task runs in the tick after `wake`: all that one tick reads goes together
            while part := await self._next_part(lane):
                if self._waiting:
                    self._tell_of_room()
                with self._flushing(part):
                    await self._flush(lane, part)
                self._part_over(lane)
                await trio.lowlevel.checkpoint_if_cancelled()  # before more is taken: it can say that it was not
            if self._closed:
                return
            lane.rest()
            self._tell_of_room()  # what was queued may all have been withdrawn

    def _part_over(self, lane: Lane) -> None:
        """Let those look again who wait for what is in flight."""
        lane.part_over()
        self._landed.unpark_all()

    async def _next_part(self, lane: Lane) -> list[Pending]:
        if lane is self._left_lane:
            await self._change.own_passed()
        else:
            self._change.own_moved()
        return lane.next_part(self._flush_messages, self._flush_bytes)

    def _tell_of_room(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for tell in waiting:
            try:
                tell()
            except Exception:
                log.exception("answer_failed")  # one caller's bug must not stop the lane

    async def _flush(self, lane: Lane, part: list[Pending]) -> None:
        """Append ``part`` and answer its publishes, or split it. A checkpoint."""
        messages = [message for run in part for message in run.messages]
        try:
            with self._availability.trying():
                outcomes = await (self.append_left if lane is self._left_lane else self._store.append)(messages)
            assert len(outcomes) == len(messages), "one outcome per message"
        except persistence.BadContent as error:
            if not lane.split(part):
                self._fail(part, error)
        except persistence.StoreError as error:
            self._fail(part, error)
        except Exception as error:
            log.exception("append_failed", messages=len(messages))  # a bug in the store must not stop the broker
            self._fail(part, error)
        else:
            self._succeed(lane, part, messages, outcomes)

    def _succeed(self, lane: Lane, part: list[Pending], messages: list[NewMessage], outcomes: list[Outcome]) -> None:
        # subscribers first: who has an id knows that they were offered the message. That nobody waits for the id
        # any more changes nothing: the message is in the log
        pairs = list(zip(messages, outcomes, strict=True))
        if set(map(type, outcomes)) == {Appended}:  # as nearly always
            results = cast("list[Appended]", outcomes)
            self._availability.appended()
            self._deliver(cast("list[tuple[NewMessage, Appended]]", pairs))
            stop = 0
            for run in part:
                start, stop = stop, stop + run.count
                if run.outcomes is None:  # as in `_complete_flown`, for each publish
                    run.complete(results[start:stop])
        else:
            self._succeed_in_part(lane, part, pairs)

    def _succeed_in_part(self, lane: Lane, part: list[Pending], pairs: Sequence[tuple[NewMessage, Outcome]]) -> None:
        appended = [(message, outcome) for message, outcome in pairs if isinstance(outcome, Appended)]
        failures = [outcome.error for _, outcome in pairs if isinstance(outcome, Failed)]
        if appended or not failures:
            self._availability.appended()
        else:
            self._availability.failed(failures[0])
        self._deliver(appended)
        self._doubt(
            message.subject for message, outcome in pairs if isinstance(outcome, Failed) and _is_unknown(outcome.error)
        )
        results = [result_of(message, outcome) for message, outcome in pairs]
        guilty: list[Pending] = []
        stop = 0
        for run in part:
            start, stop = stop, stop + run.count
            mine = results[start:stop]
            if None in mine:
                guilty.append(run.rest(mine))
            else:
                _complete_flown(run, cast("list[Result]", mine))
        # what is less than was flushed is tried alone
        if guilty and not lane.split(guilty, again=sum(run.count for run in guilty) < len(pairs)):
            blamed = next(error for error in failures if isinstance(error, persistence.BadContent))
            _fail_open(guilty, lambda: broker_error(blamed))

    def _fail(self, part: list[Pending], error: Exception) -> None:
        self._availability.failed(error)
        if _is_unknown(error):
            self._doubt(message.subject for run in part for message in run.messages)
        _fail_open(part, lambda: broker_error(error))

    async def _watch(self) -> None:
        """Answer publishes that the store keeps too long. The lane waits on: the store's answer is still to come."""
        while True:
            now = trio.current_time()
            next_due = now + self._timeout_s  # no flight that begins after now is due before
            for lane in self._lanes:
                if lane.part and now < lane.flight_began + self._timeout_s:
                    next_due = min(next_due, lane.flight_began + self._timeout_s)
                elif lane.part:
                    why = f"the store has not committed within {self._timeout_s:g} s"
                    self._availability.lost(why)
                    for run in lane.drop_untried():
                        run.fail(StorageUnavailable(f"{why}; it was not given this message: not appended"))
                    _complete_open(lane.part, why)
                    self._change.own_moved()
                    self._part_over(lane)
            await trio.sleep_until(next_due)

    def _lane_of(self, subject: str, *, may_be_left: bool = True) -> Lane:
        if may_be_left and self._left_lane is not None and (self.is_left(subject) or self._change.stays_left(subject)):
            return self._left_lane
        lanes = self._own_lanes
        return lanes[0] if len(lanes) == 1 else lanes[crc32(subject.encode()) % len(lanes)]

    def _overloaded(self, source: Hashable) -> Overloaded:
        messages, size = self.held_by(source)
        return Overloaded(
            f"the publish queue is full: {self.queued_messages} messages of {self.queued_bytes} bytes wait "
            f"(at most {self._max_messages} and {self._max_bytes} may), {messages} of {size} bytes from this "
            "client (it may have as much as stays free); nothing was appended"
        )


def _never(_subject: str) -> bool:
    """Stand in where there are no other brokers."""
    return False


def _complete_flown(run: Pending, outcomes: Sequence[Result]) -> None:
    """Complete what the store has answered for, unless `Committer._watch` could not wait for it."""
    if run.outcomes is None:
        run.complete(outcomes)


def _complete_open(part: list[Pending], why: str) -> None:
    """Complete what is still open in ``part``; the store may or may not append it."""
    _fail_open(part, lambda: OutcomeUnknown(f"{why}; the message may or may not be appended"))


def _is_unknown(error: Exception) -> bool:
    return isinstance(broker_error(error), OutcomeUnknown)


def _fail_open(part: list[Pending], error: Callable[[], BrokerError]) -> None:
    """Fail what is still open in ``part``, each run with an error of its own: it may be raised."""
    for run in part:
        if run.outcomes is None:
            run.fail(error())


def _draining() -> Draining:
    return Draining("the broker is stopping; nothing was appended")


def _closed() -> BrokerClosed:
    return BrokerClosed("the broker is closed; nothing was appended")
