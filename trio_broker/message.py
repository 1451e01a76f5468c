"""A published message, as subscribers and `Broker.fetch` get it, and what stands for messages that are missing."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_HEADERS: Mapping[str, bytes] = {}


class Message(NamedTuple):
    """One message of a subject's log. Immutable."""

    subject: str
    id: int
    """Unique within the subject, from 1, increasing in commit order."""
    body: bytes
    headers: Mapping[str, bytes]
    published_us: int
    """When it was appended, by the store's clock: microseconds since 1970-01-01 UTC.

    Never decreases within a subject.
    """

    @property
    def published_at(self) -> datetime:
        """When it was appended, by the store's clock, in UTC."""
        return EPOCH + timedelta(microseconds=self.published_us)


class MessagePage(NamedTuple):
    """What is kept of a part of a subject's log, as far as one answer goes; from one snapshot."""

    messages: Sequence[Message]
    scanned_to: int
    """Every message that is kept up to this id is in this page or before it: the next page begins after it."""
    last_id: int
    """The subject's last id: the end was reached when ``scanned_to`` is not below it."""


class Draft(NamedTuple):
    """A message that is to be published."""

    subject: str
    body: bytes
    expiration: int | None = 0
    """Seconds to keep it; 0: only for those who are subscribed now; None: until it is deleted."""
    headers: Mapping[str, bytes] = NO_HEADERS
    idempotency_key: str = ""
    expected_last_id: int | None = None


class Gap(NamedTuple):
    """Ids of a subject that a subscriber does not get, in their place in the stream."""

    subject: str
    first_id: int
    last_id: int
    """Inclusive."""
    reason: str
    """One of `UNAVAILABLE`, `LIVE_BUFFER`, `DROPPED_OLDEST`."""


UNAVAILABLE = "unavailable"
"""No longer kept when the subscriber came to them, or never kept and from before it listened."""
LIVE_BUFFER = "live_buffer"
"""Published while the subscriber was behind, and not in the log: they were for those who listened, or expired since."""
DROPPED_OLDEST = "dropped_oldest"
"""They waited longest in a full buffer."""
GAP_REASONS = (UNAVAILABLE, LIVE_BUFFER, DROPPED_OLDEST)
