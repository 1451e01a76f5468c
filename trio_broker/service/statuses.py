"""Which gRPC status each error becomes, with what details. The one place where that is decided.

Owns:      `STATUS_OF`, the details (google.rpc.ErrorInfo, RetryInfo, BadRequest), the RPC layer's own refusals.
Not here:  the errors (trio_broker/errors.py), how a status travels (trio_broker/rpc/status.py).
Threads:   any: pure functions.
"""

from google.protobuf.message import Message
from purerpc import Status, StatusCode

from trio_broker import errors
from trio_broker._proto.broker_pb2 import Failure
from trio_broker._proto.google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from trio_broker._proto.google.rpc.status_pb2 import Status as RichStatus
from trio_broker.errors import BrokerError
from trio_broker.rpc.status import DetailedStatus, Refusals

DOMAIN = "trio-broker"
"""ErrorInfo.domain of every error."""

STATUS_OF: dict[type[BrokerError], StatusCode] = {
    errors.BrokerClosed: StatusCode.UNAVAILABLE,
    errors.Draining: StatusCode.UNAVAILABLE,
    errors.StorageUnavailable: StatusCode.UNAVAILABLE,
    errors.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.SlowConsumer: StatusCode.RESOURCE_EXHAUSTED,
    errors.MessageTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.Conflict: StatusCode.FAILED_PRECONDITION,
    errors.Aborted: StatusCode.ABORTED,
    errors.NotApplied: StatusCode.DEADLINE_EXCEEDED,
    errors.OutcomeUnknown: StatusCode.DEADLINE_EXCEEDED,
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
}
"""By class; a subclass that is not named has its parent's."""


def status_of(error: BrokerError) -> Status:
    """Return the status of an error, with its reason, metadata and what to do as details."""
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(retry)
    if isinstance(error, errors.InvalidArgument) and error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(BadRequest(field_violations=[violation]))
    return DetailedStatus(_code_of(error), str(error), error.reason, details)


def failure_of(error: BrokerError) -> Failure:
    """Return the same for one message among others."""
    code = _code_of(error).value
    failure = Failure(code=code, message=str(error), reason=error.reason, metadata=error.metadata)
    if error.retry_after_s is not None:
        failure.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
    return failure


def _code_of(error: BrokerError) -> StatusCode:
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def with_metadata(status: Status, **metadata: object) -> Status:
    """Return a status that says more in its ErrorInfo; one without details is given some."""
    told = {name: str(value) for name, value in metadata.items()}
    code, text = status.status_code, status.status_message
    if not isinstance(status, DetailedStatus):
        return DetailedStatus(code, text, "", [ErrorInfo(domain=DOMAIN, metadata=told)])
    details: list[Message] = []
    for packed in RichStatus.FromString(status.details).details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            detail = kind()
            if packed.Unpack(detail):
                if isinstance(detail, ErrorInfo):
                    detail.metadata.update(told)
                details.append(detail)
    return DetailedStatus(code, text, status.reason, details)


def connection_aged() -> errors.Draining:
    """Return why what streams ends on a connection that has reached its age. There is nothing to wait for."""
    error = errors.Draining("the connection has reached its age (--connection-max-age): connect again and go on")
    error.retry_after_s = 0.0
    return error


class BrokerRefusals(Refusals):
    """The statuses that the RPC layer gives by itself, with the broker's reasons."""

    def message_too_large(self, size: int, limit: int) -> Status:
        """A message that was not even received."""
        text = f"the request has {size} bytes; at most {limit} are accepted"
        return status_of(errors.MessageTooLarge(text, size=size, limit=limit))

    def overloaded(self, text: str) -> Status:
        """More than is held for one connection."""
        return status_of(errors.Overloaded(text))

    def malformed(self, expected: str) -> Status:
        """A message that does not parse."""
        return status_of(errors.Malformed(f"the request is not a {expected}"))

    def stopping(self) -> Status:
        """The end of the grace period."""
        return status_of(errors.Draining("the broker is stopping"))

    def retired(self) -> Status:
        """The end of the grace period of a connection that has reached its age."""
        return status_of(connection_aged())

    def turned_away(self, limit: int) -> Status:
        """As many clients are connected as may be."""
        error = errors.Overloaded(f"{limit} clients are connected; no more may be (--connections-max)", limit=limit)
        error.retry_after_s = 1.0
        return status_of(error)

    def crowded(self, limit: float) -> Status:
        """As many clients of one address are connected as may be."""
        text = f"{limit:.0f} clients of this address are connected; no more may be (--connections-per-address)"
        error = errors.Overloaded(text, limit=int(limit))
        error.retry_after_s = 1.0
        return status_of(error)

    def internal(self) -> Status:
        """A bug; its text stays in the log."""
        info = ErrorInfo(reason=BrokerError.reason, domain=DOMAIN)
        return DetailedStatus(StatusCode.INTERNAL, "internal error", info.reason, [info])
