"""Deadlines of very many calls at the price of two set operations each.

Owns:      a wheel of buckets, one for each tick of time; a call is in the bucket of the first tick after its deadline.
Not here:  the clock (the caller gives the time), what happens to a call whose time is over (transport.py).
Threads:   none: plain data. Nothing here waits.
"""

from collections.abc import Iterator

from trio_broker.rpc.call import Call

TICK_S = 0.01
"""A call ends at most this much later than its deadline, and never earlier."""
_ROUNDING = 1e-6  # so that n * TICK_S / TICK_S is never a little less than n
LONGEST_S = 366 * 86400.0
"""Longer timeouts are as good as none."""


class Deadlines:
    """The calls that have a deadline, by tick."""

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, set[Call]] = {}
        self._tick = int(now / TICK_S)

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def add(self, call: Call, deadline: float) -> float:
        """Watch a call; return when `due` will yield it. Times are in seconds of the caller's clock."""
        call.deadline = deadline
        tick = max(self._tick, int(deadline / TICK_S)) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {call}
        else:
            bucket.add(call)
        call.bucket = tick
        return tick * TICK_S

    def discard(self, call: Call) -> None:
        """Forget a call that is over."""
        bucket = self._buckets.get(call.bucket)
        if bucket is not None:
            bucket.discard(call)
            if not bucket:
                del self._buckets[call.bucket]

    def next_tick(self) -> float:
        """When to ask for `due` again, in seconds of the caller's clock; only while there are calls."""
        return min(self._buckets) * TICK_S

    def due(self, now: float) -> Iterator[Call]:
        """Forget and yield the calls whose deadline has passed."""
        self._tick = int(now / TICK_S + _ROUNDING)
        for tick in sorted(tick for tick in self._buckets if tick <= self._tick):
            yield from self._buckets.pop(tick, ())
