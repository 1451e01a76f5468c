"""How long a worker thread waits for the database, and what ends its wait early.

Owns:      `Patience`, which every wait on a connection goes through.
Not here:  what becomes of the statement that is no longer waited for (connection.py, writing.py).
Threads:   worker threads.

A connection that stays open and says nothing would be waited on for ever. These waits look up a few times a second,
and so all of them end, and with them closing: nobody has to shut a socket from outside.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from psycopg.abc import PQGen

LOOK_UP_S = 0.1
"""How often a wait looks up."""

R = TypeVar("R")


class OutOfPatience(Exception):
    """The database was waited for long enough."""


class Patience:
    """A bound for everything that is waited for on behalf of one call."""

    def __init__(self, seconds: float, *, check_cancelled: Callable[[], None] | None = None) -> None:
        """Begin now. ``check_cancelled`` raises once nobody wants the result any more."""
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._check_cancelled = check_cancelled

    def left_s(self) -> float:
        """Return how much of it is left; 0.0 at its end."""
        return max(0.0, self._until - time.monotonic())

    def check(self) -> None:
        """Pass while it lasts.

        Raises:
            OutOfPatience: it is over.
            trio.Cancelled: the caller is gone.
        """
        if self._check_cancelled is not None:
            self._check_cancelled()
        if not self.left_s():
            raise OutOfPatience(f"no answer within {self._seconds:.3g} s")

    def pause(self, seconds: float) -> None:
        """Wait, as long as this lasts; see `check`."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(LOOK_UP_S, left_s))

    def watch(self, steps: PQGen[R]) -> PQGen[R]:
        """Take the steps of psycopg that wait for a socket, as long as this lasts; see `check`."""
        try:
            wait = next(steps)
            while True:
                ready = yield wait
                self.check()
                wait = steps.send(ready)
        except StopIteration as end:
            result: R = end.value
            return result
