"""A published message, as subscribers and `Broker.fetch` get it, and what stands for messages that are missing."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_HEADERS: Mapping[str, bytes] = {}


def time_of(time_us: int) -> datetime:
    """Return a time that is given in microseconds since 1970-01-01 UTC."""
    return EPOCH + timedelta(microseconds=time_us)


def microseconds_of(time: datetime) -> int:
    """Return a time as microseconds since 1970-01-01 UTC; one with a fraction of them as the one before."""
    return (time - EPOCH) // timedelta(microseconds=1)


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
        return time_of(self.published_us)


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


class SubjectInfo(NamedTuple):
    """What is known of a subject."""

    subject: str
    first_id: int
    """The first id whose message is kept; ``last_id + 1``: none is."""
    last_id: int
    """The last id that was ever given to a message; 0: none was."""
    first_published_at: datetime | None
    """Of the message with the first id; None if it is not kept."""
    last_published_at: datetime | None
    subscribers: int
    """Subscriptions at the broker that was asked."""


class SubjectPage(NamedTuple):
    """Some of the subjects, in the order of their UTF-8 bytes."""

    subjects: Sequence[SubjectInfo]
    next_token: str
    """What to ask for the next page with; empty: there is none."""


UNAVAILABLE = "unavailable"
"""No longer kept when the subscriber came to them, or never kept and from before it listened."""
LIVE_BUFFER = "live_buffer"
"""Published while the subscriber was behind, and not in the log: they were for those who listened, or expired since."""
DROPPED_OLDEST = "dropped_oldest"
"""They waited longest in a full buffer."""
GAP_REASONS = (UNAVAILABLE, LIVE_BUFFER, DROPPED_OLDEST)
