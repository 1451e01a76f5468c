"""Where a subscription begins and ends in a subject's log, and what becomes of one that reads too slowly.

Owns:      the values that say so, for `trio_broker.broker.Broker` and for the Python client alike.
Not here:  what they are on the wire (trio_broker/service/, trio_broker/client/), how a subscription gets there
           (trio_broker/position.py).
Threads:   any: plain values.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class New:
    """Begin with what is published from now on."""


@dataclass(frozen=True, slots=True)
class Earliest:
    """Begin with the first message that is kept."""


@dataclass(frozen=True, slots=True)
class Last:
    """Begin with the last ``count`` ids, as far as they are kept."""

    count: int


@dataclass(frozen=True, slots=True)
class After:
    """Begin after an id: resume where a subscription ended. What is not kept of it is a gap. 0: from the first id."""

    id: int


@dataclass(frozen=True, slots=True)
class At:
    """Begin with the first kept message of that time, by the store's clock. One to come: from now on."""

    time: datetime
    """With a time zone."""


Start = New | Earliest | Last | After | At


@dataclass(frozen=True, slots=True)
class AtEnd:
    """End after the last message that there is when the call is made."""


Until = int | AtEnd
"""Where a subscription ends: after that id, which may be still to come, or at the end as of now."""


class SlowPolicy(IntEnum):
    """What becomes of a subscription whose buffer is full. The numbers are those on the wire."""

    CATCH_UP = 0
    """It leaves the live stream, reads the log from where it is, and joins again."""
    DROP_OLDEST = 1
    """What has waited longest makes room."""
    FAIL = 2
    """It ends with `SlowConsumer`."""
