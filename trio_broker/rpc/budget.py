"""How many bytes of one kind all connections of a server hold together.

Owns:      `Budget`, and `Budgets`, those that a server's connections share.
Not here:  who holds what (call.py, connection.py, outbound.py), what is done when one stays full (server.py).
Threads:   none: plain counting. Nothing here waits.

Counting is exact: who holds bytes adds them, and takes them off when it lets go. A bound that was sampled would come
too late: between two looks at the process's memory a thousand peers can send gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trio_broker.rpc.limits import Limits


def _nobody_listens() -> None:
    """Stand in for an `on_refused` that nobody has set."""


class Budget:
    """A count of bytes, and its bound."""

    __slots__ = ("held_bytes", "max_bytes", "on_refused")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.on_refused: Callable[[], object] = _nobody_listens
        """Called each time that somebody is refused for want of room."""

    def has_room(self, more: int) -> bool:
        """Say whether ``more`` bytes fit; if not, tell `on_refused`."""
        if self.held_bytes + more <= self.max_bytes:
            return True
        self.on_refused()
        return False

    @property
    def tight(self) -> bool:
        """More than half of it is held."""
        return self.held_bytes > self.max_bytes >> 1


class Budgets(NamedTuple):
    """What all connections of one server share."""

    inbound: Budget
    """Requests that have not arrived in whole, and messages that nobody has taken yet."""
    outbound: Budget
    """Replies that wait for a peer's windows, and whatever waits for its socket. What sources give, they count."""

    @classmethod
    def of(cls, limits: Limits) -> Budgets:
        """Make empty ones."""
        return cls(Budget(limits.inbound_total_bytes), Budget(limits.outbound_total_bytes))


UNCOUNTED = Budget(0)
"""For bytes that somebody else counts: it is never asked for room."""
