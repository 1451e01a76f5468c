"""Publishes in the committer's hands: what goes to the store together, and who hears of it.

Owns:      `Pending`, a run of messages with its outcomes; `Group`, the runs of one hand-over; how a run is cut.
Not here:  the queue's bounds, flushes and what their failures mean (trio_broker/commit.py).
Threads:   the trio thread only.

A run is one message or several of one source, in order: a publish by itself, a part of a batch, or all messages that an
atomic batch has for one subject. Cost is paid per run. It waits in the queue, is withdrawn and is completed as one.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from persistence import NO_HEADERS, Appended, Duplicate, NewMessage
from persistence.headers import headers_size_bytes
from trio_broker.errors import BrokerError, NotApplied

if TYPE_CHECKING:
    from trio_broker.fair_queue import FairQueue, Line

OVERHEAD_BYTES = 1024
"""What a waiting message takes besides its subject, body and headers; part of its size in every bound here."""
HEADER_OVERHEAD_BYTES = 100
"""The same of a header besides its name and value: two objects and their place in a dict."""

_WITHDRAWN = (NewMessage("", b"", 0, NO_HEADERS),)

log = structlog.get_logger()

Result = Appended | Duplicate | BrokerError
"""What became of one message."""


Run = tuple[Sequence[NewMessage], int]
"""Messages that are to be handed over as one, and their size. (A plain tuple: a publish by itself has one, too.)"""


class Pending:
    """One run in the committer's hands."""

    __slots__ = ("_group", "_queue", "caller", "count", "line", "messages", "outcomes", "queued", "size_bytes")

    def __init__(self, run: Run, group: "Group | _Gathering") -> None:
        self.messages, self.size_bytes = run
        self.count = len(self.messages)
        self.caller: object = None
        """For the use of who handed it over, such as whom to answer."""
        self.outcomes: Sequence[Result] | None = None
        """One for each message; None until it is completed. Never changes after that."""
        self.queued = False
        """It waits in the queue: the store has not been given it."""
        self.line: Line[Pending] | None = None
        self._group: Group | _Gathering | None = group
        self._queue: FairQueue[Pending] | None = None

    @property
    def message(self) -> NewMessage:
        """The first message: the only one of a publish by itself."""
        return self.messages[0]

    @property
    def outcome(self) -> Result | None:
        """That of the first message."""
        return None if self.outcomes is None else self.outcomes[0]

    @property
    def is_atomic(self) -> bool:
        """Its messages succeed or fail together."""
        return self.messages[0].group != 0

    def withdraw(self) -> bool:
        """Take this run back: True if it was still queued, and so never reaches the store.

        Its outcomes are `NotApplied` then, and `Group.settled` does not return it: who withdrew it answers for it.
        False: too late, its outcomes stand or will.
        """
        if not self.queued:
            return False
        assert self._queue is not None
        self._queue.withdraw(self)
        self.messages = _WITHDRAWN  # the queue may keep its entry for long, and not the bodies
        self.outcomes = [NotApplied("withdrawn before the store was given it; nothing was appended")] * self.count
        self._leave_group().withdrew_one()
        return True

    def enter(self, queue: "FairQueue[Pending]", source: Hashable) -> None:
        """Wait in ``queue``."""
        self._queue = queue
        queue.put(self, source)

    def complete(self, outcomes: Sequence[Result]) -> None:
        """Settle it, for good, and tell who waits for its group."""
        assert self.outcomes is None, "a run is completed once"
        assert not self.queued, "a run that may still be withdrawn is not completed"
        self.outcomes = outcomes
        self._leave_group().settle(self)

    def fail(self, error: BrokerError) -> None:
        """Complete all of it with one error."""
        self.complete([error] * self.count)

    def halves(self) -> "list[Pending]":
        """Return what can be appended apart: two halves, or only itself if it is to stay in one piece."""
        if self.count == 1 or self.is_atomic:
            return [self]
        middle = self.count // 2
        gathering = _Gathering(self, [None] * self.count)
        return [gathering.part(range(middle)), gathering.part(range(middle, self.count))]

    def rest(self, outcomes: "Sequence[Result | None]") -> "Pending":
        """Return the part of which the outcomes are not known, to be appended again; all of it if it is atomic."""
        if self.is_atomic or not any(outcomes):
            return self
        return _Gathering(self, outcomes).part([place for place, outcome in enumerate(outcomes) if outcome is None])

    def _leave_group(self) -> "Group | _Gathering":
        """Return the group, and forget it: in a cycle, bodies would stay until the garbage collector finds them."""
        group, self._group = self._group, None
        assert group is not None, "a run leaves its group once"
        return group


class _Gathering:
    """The outcomes of a run that was cut after it had been given to the store: with all of them it is completed."""

    __slots__ = ("_missing", "_outcomes", "_places", "_run")

    def __init__(self, run: Pending, outcomes: "Sequence[Result | None]") -> None:
        self._run = run
        self._outcomes = list(outcomes)
        self._missing = self._outcomes.count(None)
        self._places: dict[Pending, Sequence[int]] = {}

    def part(self, places: Sequence[int]) -> Pending:
        messages = [self._run.messages[place] for place in places]
        part = Pending((messages, self._run.size_bytes), self)
        part.caller = self._run.caller
        self._places[part] = places
        return part

    def settle(self, part: Pending) -> None:
        assert part.outcomes is not None
        for place, outcome in zip(self._places.pop(part), part.outcomes, strict=True):
            self._outcomes[place] = outcome
        self._missing -= part.count
        if not self._missing and self._run.outcomes is None:  # else the store took too long over all of it
            self._run.complete([outcome for outcome in self._outcomes if outcome is not None])

    def withdrew_one(self) -> None:
        raise AssertionError("what the store was given cannot be withdrawn")


Answer = Callable[[Pending], None]
"""Told of a run that is settled, in the committer's own stretch: it neither waits nor hands over more."""


class Group:
    """The runs of one hand-over, which may complete in several flushes.

    Either one task at a time waits for them, or an `Answer` is told of each.
    """

    __slots__ = ("_answer", "_fresh", "_unsettled", "_waiter", "pendings")

    def __init__(self, runs: Sequence[Run], callers: Sequence[object], answer: Answer | None) -> None:
        self.pendings = [Pending(run, self) for run in runs]
        """In the order of the runs."""
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


def size_bytes(message: NewMessage) -> int:
    """Return what a message that waits counts for in every bound."""
    subject, body, _, headers, key, _, _ = message
    size = OVERHEAD_BYTES + len(body) + (len(subject) if subject.isascii() else len(subject.encode()))
    if headers:
        size += headers_size_bytes(headers) + HEADER_OVERHEAD_BYTES * len(headers)
    if key:
        size += len(key.encode())
    return size


def cut(
    messages: Sequence[NewMessage],
    max_messages: int,
    max_bytes: int,
    lane_of: Callable[[str], object] | None = None,
) -> list[Run]:
    """Cut messages into runs of at most so many and so large together; a larger message is one by itself.

    With ``lane_of``, which says where a subject belongs, each run is of one lane.
    """
    runs: list[Run] = []
    begin = total = 0
    lane: object = None
    its_lane: object = None
    subject_bytes = 0
    subject = None
    for place, message in enumerate(messages):
        if message[0] != subject:
            subject = message.subject
            subject_bytes = OVERHEAD_BYTES + len(subject.encode())
            its_lane = lane_of(subject) if lane_of else None
        _, body, _, headers, key, _, _ = message
        size = size_bytes(message) if headers or key else subject_bytes + len(body)
        if total + size > max_bytes or place - begin == max_messages or its_lane is not lane:
            if place > begin:
                runs.append((messages[begin:place], total))
            begin, total, lane = place, 0, its_lane
        total += size
    if begin < len(messages):
        runs.append((messages[begin:], total))
    return runs
