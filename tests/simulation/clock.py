"""Simulated time: it stands still while a task can run, and jumps to the next deadline when none can.

As trio's `MockClock` with ``autojump_threshold=0``, for what has neither threads nor sockets: that one looks for input
each time before it jumps, and is most of what an idle broker costs.
"""

import math

import trio


class JumpingClock(trio.abc.Clock):
    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump: trio asks only when no task can run. Without any deadline it waits for its own pipe, to end."""
        if deadline == math.inf:
            return deadline
        self._now = max(self._now, deadline)
        return 0.0
