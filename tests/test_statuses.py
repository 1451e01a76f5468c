"""Every error leaves as one status with its reason, and what to do."""

import pytest
from purerpc import StatusCode

from trio_broker import errors
from trio_broker._proto.google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from trio_broker._proto.google.rpc.status_pb2 import Status as RichStatus
from trio_broker.rpc.status import DetailedStatus
from trio_broker.service.statuses import BrokerRefusals, status_of


def subclasses(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]


NEVER_SERVED = (errors.ConnectionLost, errors.CannotOpen)  # no server, or none yet
SERVED = [kind for kind in subclasses(errors.BrokerError) if kind not in NEVER_SERVED]


def details(status: object) -> dict[type, object]:
    assert isinstance(status, DetailedStatus)
    rich = RichStatus.FromString(status.details)
    assert (rich.code, rich.message) == (status.int_value, status.status_message)
    found = {}
    for detail in rich.details:
        for kind in (ErrorInfo, RetryInfo, BadRequest):
            message = kind()
            if detail.Unpack(message):
                found[kind] = message
    assert len(found) == len(rich.details)
    return found


@pytest.mark.parametrize("kind", SERVED)
def test_every_error_has_a_status_and_its_reason(kind: type[errors.BrokerError]) -> None:
    found = details(status_of(kind("what went wrong", last_id=7)))
    info = found[ErrorInfo]
    assert (info.reason, info.domain, dict(info.metadata)) == (kind.reason, "trio-broker", {"last_id": "7"})
    assert (RetryInfo in found) == (kind.retry_after_s is not None)


@pytest.mark.parametrize("kind", SERVED)
def test_unavailable_means_that_a_retry_is_safe(kind: type[errors.BrokerError]) -> None:
    unavailable = status_of(kind("text")).status_code is StatusCode.UNAVAILABLE
    assert unavailable <= (kind.retry_after_s is not None)
    assert unavailable == (kind in (errors.BrokerClosed, errors.Draining, errors.StorageUnavailable))


def test_a_wrong_field_is_named() -> None:
    violation = details(status_of(errors.InvalidSubject("an empty token")))[BadRequest].field_violations[0]
    assert (violation.field, violation.description) == ("subject", "an empty token")


def test_the_rpc_layers_own_refusals_carry_reasons() -> None:
    refusals = BrokerRefusals()
    for status, code, reason in (
        (refusals.message_too_large(9, 8), StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
        (refusals.malformed("broker.FetchRequest"), StatusCode.INVALID_ARGUMENT, "MALFORMED"),
        (refusals.stopping(), StatusCode.UNAVAILABLE, "DRAINING"),
        (refusals.internal(), StatusCode.INTERNAL, "INTERNAL"),
    ):
        assert status.status_code is code
        assert details(status)[ErrorInfo].reason == reason
