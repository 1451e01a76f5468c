"""A lane: what waits for one task that appends, and what it has given the store.

Owns:      `Lane`: its queue, and a flight that is appended in parts.
Not here:  the task, and who hears of what was appended (trio_broker/commit.py); which lane a subject is in,
           and when that changes (trio_broker/lane_change.py).
Threads:   the trio thread only.
"""

from collections.abc import Iterator

import trio

from trio_broker.fair_queue import FairQueue
from trio_broker.runs import Pending


class Lane:
    """What one lane's task works on. Of ``work`` and ``idle`` one is set, and nobody waits for the other in vain."""

    __slots__ = ("_parts", "flight_began", "flights", "idle", "landed", "part", "queue", "work")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.queue: FairQueue[Pending] = FairQueue(max_messages, max_bytes)
        self.part: list[Pending] = []
        """What the store has been given; what came before it of the same flight is completed, or is in `_parts`."""
        self.flight_began = 0.0
        self.flights = self.landed = 0
        """How many have begun; how many of those, the first ones, have all their answers."""
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
        if self._parts:
            self.part = self._parts.pop()
        else:
            self.part = self.queue.take(max_messages, max_bytes)
            self.flight_began = trio.current_time()
            self.flights += bool(self.part)
        return self.part

    def part_over(self) -> None:
        """What was to be appended has its answers, or is to be appended in halves."""
        if not self._parts:
            self.landed = self.flights

    def open_runs(self) -> Iterator[Pending]:
        """Return what is in flight or queued, in order."""
        for part in (self.part, *reversed(self._parts)):
            yield from (run for run in part if run.outcomes is None)
        yield from self.queue

    def drop_untried(self) -> list[Pending]:
        """Return what of a flight that was split is not being appended now, and will not be, and has no answer yet."""
        untried = [run for part in self._parts for run in part if run.outcomes is None]
        self._parts.clear()
        return untried

    def split(self, part: list[Pending], *, again: bool = False) -> bool:
        """Append ``part`` in halves, next and in order: its content is to blame, and its neighbours are innocent.

        False: it is in one piece, and stays so. With ``again`` that one is tried once more.
        """
        runs = part if len(part) > 1 else part[0].halves()
        if len(runs) == 1 and not again:
            return False
        middle = len(runs) // 2
        self._parts += [half for half in (runs[middle:], runs[:middle]) if half]
        return True
