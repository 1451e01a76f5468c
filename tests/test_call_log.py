"""The line that a failed or slow call leaves in the log: how loud, and what it says."""

import io
import json
from types import SimpleNamespace

import pytest
from purerpc import Status, StatusCode
from structlog.testing import capture_logs

from trio_broker import errors
from trio_broker.call_log import WHY_MAX, CallLog
from trio_broker.line_budget import LINES, LineBudget
from trio_broker.logs import configure_logging
from trio_broker.rpc.identity import Identity
from trio_broker.rpc.request import Request
from trio_broker.rpc.status import OK
from trio_broker.service.statuses import status_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01")


SOMEONE = Identity("CN=orders", (), ("spiffe://example.org/orders",), (), "ab12")


def ended(
    status: Status | None, *echo: tuple[str, str], identity: Identity | None = None, **method: object
) -> SimpleNamespace:
    """As much of a call as the log looks at."""
    unary = {"path": "/broker.Broker/Fetch", "request_streams": False, "response_streams": False}
    return SimpleNamespace(
        status=status,
        method=SimpleNamespace(**{**unary, **method}),
        request=Request(
            None, "", "http", None, "", None, None, None, compresses=False, metadata=(), echo=echo, route=None
        ),
        app=SimpleNamespace(peer="10.0.0.7:4711"),
        identity=identity,
        request_id=lambda: dict(echo).get("x-request-id", "made-1"),
    )


def logged(call: SimpleNamespace, seconds: float = 0.25) -> list[dict[str, object]]:
    with capture_logs() as logs:
        CallLog(1.0, LineBudget()).over(call, seconds)
    return list(logs)


def test_a_failed_call_is_told_with_all_that_finds_its_cause() -> None:
    status = status_of(errors.Overloaded("the publish queue is full"))
    (line,) = logged(ended(status, ("x-request-id", "order-17"), TRACEPARENT))
    assert line == {
        "event": "call_failed",
        "log_level": "warning",
        "method": "broker.Broker/Fetch",
        "status": "RESOURCE_EXHAUSTED",
        "reason": "OVERLOADED",
        "why": "the publish queue is full",
        "seconds": 0.25,
        "peer": "10.0.0.7:4711",
        "request_id": "order-17",
        "trace_id": TRACE_ID,
    }


def test_a_client_with_a_certificate_is_named() -> None:
    (line,) = logged(ended(Status(StatusCode.INTERNAL, ""), identity=SOMEONE))
    assert line["client"] == "spiffe://example.org/orders"


def test_a_request_id_is_made_for_a_failure_without_one() -> None:
    (line,) = logged(ended(Status(StatusCode.INTERNAL, "")))
    assert line["request_id"] == "made-1"
    assert "reason" not in line


def test_a_call_of_no_known_method() -> None:
    call = ended(Status(StatusCode.UNIMPLEMENTED, "unknown method /x/\x1b[31m" + "y" * 1000))
    call.method = None
    (line,) = logged(call)
    assert line["method"] == "unknown"
    assert str(line["why"]).startswith("unknown method /x/\\x1b[31my")
    assert len(str(line["why"])) == WHY_MAX + 3


@pytest.mark.parametrize(
    ("status", "level"),
    [
        (Status(StatusCode.INTERNAL, ""), "warning"),
        (Status(StatusCode.UNKNOWN, ""), "warning"),
        (status_of(errors.StorageUnavailable("")), "warning"),
        (status_of(errors.StorageFull("")), "warning"),
        (status_of(errors.Overloaded("")), "warning"),
        (status_of(errors.OutcomeUnknown("")), "warning"),
        (status_of(errors.Draining("")), "info"),
        (status_of(errors.SlowConsumer("")), "info"),
        (status_of(errors.NotApplied("")), "info"),
        (status_of(errors.InvalidSubject("")), "info"),
        (status_of(errors.MessageTooLarge("")), "info"),
        (Status(StatusCode.UNIMPLEMENTED, ""), "info"),
        (status_of(errors.InvalidId("")), "debug"),
        (status_of(errors.ExpiredId("")), "debug"),
        (None, "debug"),
    ],
)
def test_what_the_broker_is_to_blame_for_is_a_warning(status: Status | None, level: str) -> None:
    (line,) = logged(ended(status))
    assert line["log_level"] == level


def test_what_a_client_ended_is_called_so() -> None:
    (line,) = logged(ended(None, TRACEPARENT))
    assert line == {
        "event": "call_cancelled",
        "log_level": "debug",
        "method": "broker.Broker/Fetch",
        "seconds": 0.25,
        "peer": "10.0.0.7:4711",
        "trace_id": TRACE_ID,
    }


def test_beyond_the_budget_no_line_is_even_made(log_stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = configure_logging("json", "info", log_stream)
    call_log = CallLog(1.0, budget)
    call = ended(status_of(errors.InvalidSubject("no subject")))
    for _ in range(LINES):
        call_log.over(call, 0.25)
    with monkeypatch.context() as patch:
        patch.delattr(call.app, "peer")  # a line would tell
        for _ in range(5):
            call_log.over(call, 0.25)
    budget.renew()
    lines = [json.loads(line) for line in log_stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["call_failed"] * LINES + ["lines_left_out"]
    assert (lines[-1]["method"], lines[-1]["reason"], lines[-1]["lines"]) == (
        *("broker.Broker/Fetch", "INVALID_SUBJECT", 5),
    )


def test_a_slow_call_is_told_and_a_long_stream_is_not() -> None:
    assert logged(ended(OK), 0.999) == []
    (line,) = logged(ended(OK, ("x-request-id", "order-17")), 1.0)
    assert line == {
        "event": "call_slow",
        "log_level": "info",
        "method": "broker.Broker/Fetch",
        "seconds": 1.0,
        "peer": "10.0.0.7:4711",
        "request_id": "order-17",
    }
    assert logged(ended(OK, response_streams=True), 3600) == []
    assert logged(ended(OK, request_streams=True), 3600) == []
