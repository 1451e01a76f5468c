"""Quantiles of what was observed in the last minute, in bounded memory.

Owns:      `SlidingQuantiles`: the buckets, the window, the rank.
Not here:  a clock (the caller says what time it is), labels and exposition (metrics/calls.py).
Threads:   the trio thread only; no function here is a checkpoint.

Buckets. Bucket i counts the values in [LOWEST * G**i, LOWEST * G**(i+1)) and stands for one value,
2 * G / (1 + G) times its lower bound. At either end of the bucket that is off by (G - 1) / (G + 1) of the value
observed: 0.99 % for G = 1.02, and less in between. Logarithms give the index, so an observation is one addition
in a plain list, whatever was observed before.

Window. Time is cut in slots; each slot has its own buckets, and the oldest is dropped when a new one begins.
An observation therefore counts for at least ``WINDOW_S - SLOT_S`` and at most ``WINDOW_S`` seconds.

Rank. The q-quantile of n values is the ceil(q * n)-th smallest, and never below the first ("nearest rank"):
a value that was observed, not one interpolated between two.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import ceil, log, nan
from typing import Final

WINDOW_S: Final = 60.0
SLOTS: Final = 5
SLOT_S: Final = WINDOW_S / SLOTS

LOWEST: Final = 1e-6
"""Smaller values count as this one: a microsecond, where values are seconds."""
HIGHEST: Final = 1e4
"""Larger values count as this one: not quite three hours, where values are seconds."""

_GAMMA: Final = 1.02
_PER_LOG: Final = 1 / log(_GAMMA)
_OFFSET: Final = -log(LOWEST) * _PER_LOG
_BUCKETS: Final = ceil(log(HIGHEST / LOWEST) * _PER_LOG)
_MIDDLE: Final = 2 * _GAMMA / (1 + _GAMMA)


def _bucket(value: float) -> int:
    if LOWEST < value < HIGHEST:
        return int(log(value) * _PER_LOG + _OFFSET)
    return 0 if value <= LOWEST else _BUCKETS - 1


class SlidingQuantiles:
    """The distribution of the positive numbers observed in the last minute: about 50 KiB, whatever is observed.

    Every ``now`` is in seconds, from one clock that never goes back.
    """

    __slots__ = ("_current", "_slot", "_slot_ends", "_slots")

    def __init__(self, now: float) -> None:
        self._slots = [[0] * _BUCKETS for _ in range(SLOTS)]
        self._begin(int(now // SLOT_S))

    def observe(self, value: float, now: float) -> None:
        """Count one value."""
        if now >= self._slot_ends:
            self._rotate(now)
        self._current[_bucket(value)] += 1

    def quantiles(self, fractions: Sequence[float], now: float) -> list[float]:
        """Return the quantile at each fraction (0 to 1), within 1 % of the exact one; NaN when the window is empty."""
        if now >= self._slot_ends:
            self._rotate(now)
        up_to = list(accumulate(map(sum, zip(*self._slots, strict=True))))
        total = up_to[-1]
        if not total:
            return [nan] * len(fractions)
        buckets = (bisect_left(up_to, max(1, ceil(fraction * total))) for fraction in fractions)
        return [LOWEST * _GAMMA**bucket * _MIDDLE for bucket in buckets]

    def _rotate(self, now: float) -> None:
        slot = int(now // SLOT_S)
        for begun in range(max(self._slot, slot - SLOTS) + 1, slot + 1):
            self._slots[begun % SLOTS] = [0] * _BUCKETS
        self._begin(slot)

    def _begin(self, slot: int) -> None:
        self._slot = slot
        self._slot_ends = (slot + 1) * SLOT_S
        self._current = self._slots[slot % SLOTS]
