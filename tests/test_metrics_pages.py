import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from metrics import CallMetrics, Readiness, build_registry
from metrics.pages import Pages, Request

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def ready() -> Readiness:
    return Readiness(ready=True, detail="ready")


def make_pages() -> Pages:
    return Pages(build_registry(CallMetrics(["Publish"], lambda: 7)), ready)


def test_metrics_are_in_the_text_format_where_nothing_else_is_asked_for() -> None:
    reply = make_pages().answer(Request("GET", "/metrics"))
    assert (reply.status, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in parse_text(reply.body.decode())}
    assert families["active_subscribers"].samples[0].value == 7
    assert {"method_count", "method_duration", "process_cpu_seconds", "python_gc_collections"} <= families.keys()


def test_metrics_are_in_openmetrics_where_that_is_accepted() -> None:
    reply = make_pages().answer(Request("GET", "/metrics", PROMETHEUS_ACCEPT))
    assert reply.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(reply.body.decode())}
    assert families["active_subscribers"].samples[0].value == 7


@pytest.mark.parametrize("version", ["x", "1.x", "2.x", "9.9", "", "1.0.0 x", '"1.0.0"', "9" * 5000])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_an_odd_version_in_accept_is_no_error(kind: str, version: str) -> None:
    assert make_pages().answer(Request("GET", "/metrics", f"{kind};version={version};q=1")).status == 200


FRAGMENTS = ["application/openmetrics-text", "text/plain", ";", ",", " ", "=", "version=", "escaping=", "1", ".", "x"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join))
def test_no_accept_header_is_an_error(accept: str) -> None:
    assert Pages(CollectorRegistry(), ready).answer(Request("GET", "/metrics", accept)).status == 200


def test_health_says_ok_while_the_process_lives() -> None:
    reply = make_pages().answer(Request("GET", "/healthz"))
    assert (reply.status, reply.body) == (200, b"ok\n")


@pytest.mark.parametrize(
    ("readiness", "status", "body"),
    [
        (Readiness(ready=True, detail="ready"), 200, b"ready\n"),
        (Readiness(ready=False, detail="draining"), 503, b"draining\n"),
    ],
)
def test_readiness_is_asked_for_at_each_request(readiness: Readiness, status: int, body: bytes) -> None:
    pages = Pages(CollectorRegistry(), lambda: readiness)
    reply = pages.answer(Request("GET", "/readyz?verbose"))
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize("target", ["/", "/metric", "/metrics/", "*", "http://host/metrics", "//metrics"])
def test_elsewhere_the_reply_names_the_pages(target: str) -> None:
    reply = make_pages().answer(Request("GET", target))
    assert reply.status == 404
    assert all(path in reply.body.decode() for path in ("/metrics", "/healthz", "/readyz"))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods_are_told_which_are_allowed(method: str) -> None:
    reply = make_pages().answer(Request(method, "/readyz", has_body=True))
    assert (reply.status, reply.allow) == (405, "GET, HEAD")


def test_a_body_is_refused() -> None:
    assert make_pages().answer(Request("GET", "/metrics", has_body=True)).status == 413
