"""The store's clock: the nodes', read from time to time, and in between counted on by this process.

Owns:      `Clock`; how a node is asked.
Not here:  when it is asked (store.py, opening.py).
Threads:   any.

It does not follow this machine's clock when that is set. Nodes whose clocks differ serve brokers that differ by as
much; the times of a subject never decrease all the same.

A node reads its clock at some moment between question and answer. The store's clock is moved only when no such moment
would explain what the node said: otherwise it would follow how quickly nodes happen to answer.
"""

import time
from collections.abc import Callable
from uuid import UUID

from persistence.cassandra.steps import Statement, Steps, surely

ADJUST_INTERVAL_S = 60.0
NODE_TICK_US = 1_000
"""A node tells its time in whole milliseconds."""

# A row of ours, at the consistency of every read: whoever answers can serve.
_NOW = Statement("SELECT now() AS now FROM {keyspace}.store WHERE id = 0")

_UUID_EPOCH_US = 12_219_292_800_000_000
"""The time in a UUID counts from 1582-10-15 UTC, in tenths of a microsecond."""


class Clock:
    """Tells the time in microseconds since 1970-01-01 UTC."""

    def __init__(self, instead: Callable[[], int] | None) -> None:
        """``instead``: for tests, what tells the time."""
        self._instead = instead
        self._offset_us: int | None = None
        self._adjusted_at = -ADJUST_INTERVAL_S

    def now_us(self) -> int:
        return self._instead() if self._instead else _monotonic_us() + (self._offset_us or 0)

    def ask(self) -> Steps[int]:
        """Ask a node for its time, and go by it; return the time then."""
        asked_us = _monotonic_us()
        rows = yield from surely(_NOW())
        answered_us = _monotonic_us()
        if rows and time.monotonic() >= self._adjusted_at + ADJUST_INTERVAL_S:
            now: UUID = rows[0]["now"]
            node_us = now.time // 10 - _UUID_EPOCH_US
            least_us, most_us = node_us - answered_us, node_us - asked_us + NODE_TICK_US
            if self._offset_us is None:
                self._offset_us = (least_us + most_us) // 2
            self._offset_us = min(max(self._offset_us, least_us), most_us)
            self._adjusted_at = time.monotonic()
        return self.now_us()


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
