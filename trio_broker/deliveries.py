"""What subscribers have taken, told together once per tick.

Owns:      which batches were taken since it was last told, and how long after their commit.
Not here:  who takes them (trio_broker/fanout.py), what is made of it (metrics/messages.py).
Threads:   the trio thread only; no function here is a checkpoint.

A batch notes itself how often it was taken: a delivery to one more subscriber costs an addition. All else is done for
each batch once it has been written to the sockets, and so its lag ends there.
"""

import time
from collections.abc import Callable

from trio_broker.batch import Batch

Delivered = Callable[[Batch, int, float | None], None]
"""Told of a batch, how many subscribers took it, and the seconds since its commit; None: it was read from the log."""


class Deliveries:
    """The batches that subscribers have taken. Whoever lets them take calls `settle` soon after."""

    def __init__(self) -> None:
        self.on_delivered: Delivered = _nobody_asks
        self._taken: list[Batch] = []

    def took(self, batch: Batch) -> None:
        """Note that a batch was taken for the first time since `settle`, which sets its ``takers`` back."""
        self._taken.append(batch)

    def settle(self) -> None:
        """Tell of what was taken since the last time."""
        if self._taken:
            now_s = time.perf_counter()
            taken, self._taken = self._taken, []
            for batch in taken:
                takers, batch.takers = batch.takers, 0
                committed_s = batch.committed_s
                self.on_delivered(batch, takers, None if committed_s is None else now_s - committed_s)


def _nobody_asks(_batch: Batch, _takers: int, _lag_s: float | None) -> None:
    """Stand in for an `on_delivered` that nobody has set."""
