"""The statuses of a gRPC call as the broker's errors: what trio_broker/service/statuses.py did, undone.

Owns:      ErrorInfo.reason to class, and what a status without one means.
Not here:  the errors themselves (trio_broker/errors.py).
"""

import base64
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from trio_broker._proto.broker_pb2 import Failure
from trio_broker._proto.google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from trio_broker._proto.google.rpc.status_pb2 import Status
from trio_broker.client.exchange import Trailers
from trio_broker.errors import BrokerError, ConnectionLost, OutcomeUnknown

_NAMES = [
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
]

_SAY_NOTHING: dict[str, type[BrokerError]] = {"UNAVAILABLE": ConnectionLost, "DEADLINE_EXCEEDED": OutcomeUnknown}
"""Statuses that something between the client and the broker makes: without a reason they tell no outcome."""


def raise_for(end: Trailers | BrokerError) -> None:
    """Raise the error that ended a call; do nothing if it ended well."""
    if isinstance(end, BrokerError):
        raise end
    if end.status != 0:
        raise error_of(end)


def error_of(trailers: Trailers) -> BrokerError:
    """Rebuild the broker's error from a status that is not OK.

    The class goes by ErrorInfo.reason. A reason that this client does not know, or a status without one, is a plain
    `BrokerError` with that reason, or with the status' name for reason.
    """
    info, retry_after_s = _details(trailers.details)
    return _error(trailers.status, trailers.message, info.reason, info.metadata, retry_after_s)


def error_of_failure(failure: Failure) -> BrokerError:
    """Rebuild the same of one message among others."""
    retry_after_s = None
    if failure.HasField("retry_delay"):
        retry_after_s = failure.retry_delay.seconds + failure.retry_delay.nanos / 1e9
    return _error(failure.code, failure.message, failure.reason, failure.metadata, retry_after_s)


def _error(
    status: int, message: str, reason: str, metadata: Mapping[str, str], retry_after_s: float | None
) -> BrokerError:
    name = _NAMES[status] if status < len(_NAMES) else f"STATUS_{status}"
    found = _classes().get(reason) if reason else _SAY_NOTHING.get(name)
    error = (found or BrokerError)(message or reason or name)
    error.metadata = dict(metadata)
    if found is None:
        error.reason = reason or name
    if reason and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


def _details(text: str) -> tuple[ErrorInfo, float | None]:
    """Read ``grpc-status-details-bin``; what cannot be read is as if it were not there."""
    info, retry_after_s = ErrorInfo(), None
    try:
        status = Status.FromString(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        for detail in status.details:
            if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                info = ErrorInfo.FromString(detail.value)
            elif detail.type_url.endswith("/google.rpc.RetryInfo"):
                delay = RetryInfo.FromString(detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    except (ValueError, DecodeError):  # ValueError: not base64, or not even ASCII
        return ErrorInfo(), None
    return info, retry_after_s


def _classes() -> dict[str, type[BrokerError]]:
    """Every class of error that has a reason of its own, by reason."""
    classes: dict[str, type[BrokerError]] = {}
    todo = [BrokerError]
    while todo:
        found = todo.pop()
        todo += found.__subclasses__()
        if "reason" in vars(found):
            classes[found.reason] = found
    return classes
