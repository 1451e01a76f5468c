"""What the driver's errors mean: whether something may have been done, and in which words."""

import pytest
from cassandra import (
    ConsistencyLevel,
    InvalidRequest,
    OperationTimedOut,
    ReadTimeout,
    Unauthorized,
    Unavailable,
    WriteTimeout,
    WriteType,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.protocol import ErrorMessage, IsBootstrappingErrorMessage, OverloadedErrorMessage, ServerError

from persistence import BadContent, CannotOpen, StoreFull, StoreUnavailable
from persistence.cassandra.address import read_url
from persistence.cassandra.connection import failure
from persistence.cassandra.opening import refusal
from persistence.cassandra.steps import TooFewReplicas, Unclear

ADDRESS = read_url("cassandra://user:secret@host/broker")
PREFIX = "Cassandra at host:9042/broker: "


def too_few(consistency: int) -> Unavailable:
    return Unavailable("no", consistency=consistency, required_replicas=2, alive_replicas=1)


def cas_timeout() -> WriteTimeout:
    return WriteTimeout("CAS timed out", consistency=ConsistencyLevel.LOCAL_SERIAL, write_type=WriteType.CAS)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (NoHostAvailable("no", {"host": OSError(111, "Connection refused")}), StoreUnavailable, "Connection refused"),
        (NoHostAvailable("no", {}), StoreUnavailable, "no node of the datacenter is connected"),
        (NoHostAvailable("no", ["host"]), StoreUnavailable, "no node of the datacenter is connected"),
        (too_few(ConsistencyLevel.SERIAL), StoreUnavailable, "1 of the 2 replicas that are needed are alive"),
        (too_few(ConsistencyLevel.LOCAL_SERIAL), StoreUnavailable, "1 of the 2 replicas"),
        (too_few(ConsistencyLevel.LOCAL_QUORUM), TooFewReplicas, "1 of the 2 replicas"),
        (Unauthorized("no right"), StoreUnavailable, "no right"),
        (InvalidRequest("unconfigured table log"), StoreUnavailable, "unconfigured table log"),
        (IsBootstrappingErrorMessage(0x1002, "joining", None), StoreUnavailable, "is bootstrapping: joining"),
        (InvalidRequest("... exceeds maximum supported expiration date of 2038"), BadContent, "2038"),
        (InvalidRequest("CQL Message of size 9 bytes exceeds allowed maximum of 8 bytes"), BadContent, "size 9"),
        (InvalidRequest("because disk usage exceeds failure threshold"), StoreFull, "disk usage"),
        (cas_timeout(), Unclear, "CAS timed out"),
        (ReadTimeout("timed out", consistency=ConsistencyLevel.LOCAL_QUORUM), Unclear, "timed out"),
        (OperationTimedOut({}, "host"), Unclear, "a node did not answer in time"),
        (ConnectionShutdown("connection is closed"), Unclear, "connection is closed"),
        (OverloadedErrorMessage(0x1001, "too busy", None), Unclear, "overloaded: too busy"),
        (ServerError(0, "bug", None), Unclear, "Server error: bug"),
        (ErrorMessage(0x1700, "CAS operation result is unknown", None), Unclear, "CAS operation result is unknown"),
    ],
)
def test_what_an_error_means(error: Exception, kind: type[Exception], text: str) -> None:
    meant = failure(error, ADDRESS)
    assert type(meant) is kind
    assert text in str(meant)
    assert "\n" not in str(meant)
    assert "secret" not in str(meant)
    assert isinstance(meant, BadContent) or str(meant).startswith(PREFIX)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("certificate verify failed: unable to get local issuer certificate", "name the authority that signed"),
        ("certificate verify failed: IP address mismatch, certificate is not valid", "write check_hostname=false"),
        ("wrong version number: WRONG_VERSION_NUMBER", "leave ssl and ca out of the URL"),
    ],
)
def test_what_to_do_about_certificates(text: str, advice: str) -> None:
    meant = refusal(NoHostAvailable("no", {"host": OSError(1, f"Last error: {text}")}), ADDRESS)
    assert type(meant) is CannotOpen
    assert text in str(meant)
    assert advice in str(meant)


def test_a_driver_that_says_nothing_of_each_host() -> None:
    assert type(refusal(NoHostAvailable("no", ["host"]), ADDRESS)) is StoreUnavailable


def test_what_is_no_error_of_the_driver_is_a_bug() -> None:
    bug = TypeError("a bug")
    assert failure(bug, ADDRESS) is bug
