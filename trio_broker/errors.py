"""The broker's errors, in one tree.

Each class carries what a caller needs to decide: a stable ``reason`` (ErrorInfo.reason on the wire), whether
the same call may simply be tried again, and after how long. `trio_broker.service.statuses` maps them to gRPC.
"""

from collections.abc import Mapping
from typing import Final

FAULTS: Final = frozenset({"INTERNAL", "OUTCOME_UNKNOWN", "OVERLOADED", "STORAGE_FULL", "STORAGE_UNAVAILABLE"})
"""Reasons for which the broker or its store is to blame, and not the client."""


class BrokerError(Exception):
    """Anything the broker refuses or cannot do. ``str(error)`` says what, where and what to do next."""

    reason: str = "INTERNAL"
    retry_after_s: float | None = None
    """Trying again is safe (nothing was applied) and makes sense after so many seconds; None: it does not."""

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata: Mapping[str, str] = {name: str(value) for name, value in metadata.items()}
        """Details for programs, such as the last id; ErrorInfo.metadata on the wire."""

    @property
    def retryable(self) -> bool:
        """Nothing was applied, and the same call may succeed later."""
        return self.retry_after_s is not None


class BrokerClosed(BrokerError):
    """The broker was closed."""

    reason = "CLOSED"
    retry_after_s = 1.0


class Draining(BrokerError):
    """The broker is stopping: it takes no new calls, and open streams end."""

    reason = "DRAINING"
    retry_after_s = 1.0


class StorageUnavailable(BrokerError):
    """The store cannot be reached. Nothing was appended."""

    reason = "STORAGE_UNAVAILABLE"
    retry_after_s = 1.0


class StorageFull(BrokerError):
    """The store has no space left. Nothing was appended; fetches still work."""

    reason = "STORAGE_FULL"


class Overloaded(BrokerError):
    """The publish queue is full, or memory is short. Nothing was appended."""

    reason = "OVERLOADED"
    retry_after_s = 0.1


class NotApplied(BrokerError):
    """Out of time before the message was handed to the store. Nothing was appended."""

    reason = "NOT_APPLIED"


class OutcomeUnknown(BrokerError):
    """Out of time while the store was committing: the message may or may not be appended."""

    reason = "OUTCOME_UNKNOWN"


class ConnectionLost(BrokerError):
    """No answer came: the broker cannot be reached, or the connection or the one call on it broke off.

    Made by the client. It says nothing about the outcome of a publish, unless it is `retryable`: then the call
    never reached the broker.
    """

    reason = "CONNECTION_LOST"


class CannotOpen(BrokerError):
    """The store cannot be opened as asked: a bad URL, a newer schema, a second broker on one file, no rights.

    Raised by `trio_broker.open_broker`, and never by a call. Trying again does not help; the text says what does.
    """

    reason = "CANNOT_OPEN"


class SlowConsumer(BrokerError):
    """The subscriber did not read fast enough; ``metadata["last_delivered_id"]`` says how far it came."""

    reason = "SLOW_CONSUMER"


class InvalidArgument(BrokerError, ValueError):
    """The call can never succeed as it is."""

    field: str = ""
    """The request's field that is wrong, as named on the wire; empty where the field is not to blame."""


class InvalidSubject(InvalidArgument):
    """Not a subject: see `trio_broker.subject.check_subject`."""

    reason = "INVALID_SUBJECT"
    field = "subject"


class InvalidExpiration(InvalidArgument):
    """Negative, beyond what the store can keep, or given together with keep."""

    reason = "INVALID_EXPIRATION"
    field = "expirationSeconds"


class InvalidPosition(InvalidArgument):
    """Not a place in a log where a subscription can start or end."""

    reason = "INVALID_POSITION"


class InvalidHeaders(InvalidArgument):
    """Too many headers, or too large together."""

    reason = "INVALID_HEADERS"
    field = "headers"


class InvalidKey(InvalidArgument):
    """The idempotency key is too long, or no text."""

    reason = "INVALID_KEY"
    field = "idempotency_key"


class InvalidBatch(InvalidArgument):
    """Too many messages at once; ``metadata["limit"]`` says how many may be."""

    reason = "INVALID_BATCH"
    field = "messages"


class InvalidPage(InvalidArgument):
    """Not a page that can be asked for: a negative size, or a token that is none of this call's."""

    reason = "INVALID_PAGE"


class Malformed(InvalidArgument):
    """The request is not a message of its type."""

    reason = "MALFORMED"


class Rejected(InvalidArgument):
    """The store refuses the message for what it holds; the text is the store's. Nothing of it was appended."""

    reason = "REJECTED"


class InvalidId(InvalidArgument):
    """The id was never assigned in this subject."""

    reason = "INVALID_ID"


class ExpiredId(InvalidArgument):
    """The id was assigned, and its message is no longer kept (or never was: expiration 0)."""

    reason = "EXPIRED_ID"


class Conflict(BrokerError):
    """The subject's last id is not the expected one; ``metadata["last_id"]`` says which it is. Nothing was appended."""

    reason = "CONFLICT"


class Aborted(BrokerError):
    """Something is wrong with another message of the same subject in an atomic batch. Nothing of them was appended."""

    reason = "ABORTED"


class MessageTooLarge(BrokerError, ValueError):
    """The body is larger than a kept message may be."""

    reason = "MESSAGE_TOO_LARGE"


def reasons() -> frozenset[str]:
    """Return every reason that a `BrokerError` can have."""
    found = set()
    classes: list[type[BrokerError]] = [BrokerError]
    while classes:
        kind = classes.pop()
        found.add(kind.reason)
        classes += kind.__subclasses__()
    return frozenset(found)
