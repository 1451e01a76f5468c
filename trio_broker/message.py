"""A published message, as subscribers and `Broker.fetch` get it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
        return _EPOCH + timedelta(microseconds=self.published_us)
