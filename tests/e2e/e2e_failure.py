"""How a call failed, read from what any gRPC client gets.

Owns:      `CallFailed`, and the reading of google.rpc details.
Threads:   any.
"""

from dataclasses import dataclass, field

from trio_broker._proto.google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from trio_broker._proto.google.rpc.status_pb2 import Status

DOMAIN = "trio-broker"


@dataclass
class CallFailed(Exception):
    """The status of a call that was not OK."""

    code: str
    text: str
    reason: str | None = None
    """ErrorInfo's; None if the status came without details: a client made it, or hides them."""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    """The fields that BadRequest names."""
    retry_after_s: float | None = None

    @property
    def told(self) -> tuple[str, str | None]:
        """Code and reason: all that most tests look at."""
        return self.code, self.reason


def call_failed(code: str, text: str, details: bytes | None) -> CallFailed:
    """Make a `CallFailed` of a status and its ``grpc-status-details-bin``, which must agree."""
    failure = CallFailed(code, text)
    if details is None:
        return failure
    status = Status.FromString(details)
    assert status.message == text
    for detail in status.details:
        kind = detail.type_url.removeprefix("type.googleapis.com/google.rpc.")
        if kind == "ErrorInfo":
            info = ErrorInfo.FromString(detail.value)
            assert info.domain == DOMAIN
            failure.reason = info.reason
            failure.metadata = dict(info.metadata)
        elif kind == "BadRequest":
            failure.fields = [each.field for each in BadRequest.FromString(detail.value).field_violations]
        elif kind == "RetryInfo":
            failure.retry_after_s = RetryInfo.FromString(detail.value).retry_delay.ToMilliseconds() / 1000
        else:
            raise AssertionError(f"unexpected detail {detail.type_url}")
    return failure
