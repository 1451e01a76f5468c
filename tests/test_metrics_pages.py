from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from trio.testing import MockClock

from metrics import CallMetrics, Readiness, build_registry
from metrics.pages import RENDER_INTERVAL_S, Pages, Request

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def ready() -> Readiness:
    return Readiness(ready=True, detail="ready")


def make_pages() -> Pages:
    return Pages(build_registry(CallMetrics(["Publish"], lambda: 7)), ready)


async def test_metrics_are_in_the_text_format_where_nothing_else_is_asked_for() -> None:
    reply = await make_pages().answer(Request("GET", "/metrics"))
    assert (reply.status, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in parse_text(reply.body.decode())}
    assert families["active_subscribers"].samples[0].value == 7
    assert {"method_count", "method_duration", "process_cpu_seconds", "python_gc_collections"} <= families.keys()


async def test_metrics_are_in_openmetrics_where_that_is_accepted() -> None:
    reply = await make_pages().answer(Request("GET", "/metrics", PROMETHEUS_ACCEPT))
    assert reply.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(reply.body.decode())}
    assert families["active_subscribers"].samples[0].value == 7


@pytest.mark.parametrize("version", ["x", "1.x", "2.x", "9.9", "", "1.0.0 x", '"1.0.0"', "9" * 5000])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
async def test_an_odd_version_in_accept_is_no_error(kind: str, version: str) -> None:
    assert (await make_pages().answer(Request("GET", "/metrics", f"{kind};version={version};q=1"))).status == 200


FRAGMENTS = ["application/openmetrics-text", "text/plain", ";", ",", " ", "=", "version=", "escaping=", "1", ".", "x"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join))
async def test_no_accept_header_is_an_error(accept: str) -> None:
    assert (await Pages(CollectorRegistry(), ready).answer(Request("GET", "/metrics", accept))).status == 200


async def test_health_says_ok_while_the_process_lives() -> None:
    reply = await make_pages().answer(Request("GET", "/healthz"))
    assert (reply.status, reply.body) == (200, b"ok\n")


@pytest.mark.parametrize(
    ("readiness", "status", "body"),
    [
        (Readiness(ready=True, detail="ready"), 200, b"ready\n"),
        (Readiness(ready=False, detail="draining"), 503, b"draining\n"),
    ],
)
async def test_readiness_is_asked_for_at_each_request(readiness: Readiness, status: int, body: bytes) -> None:
    pages = Pages(CollectorRegistry(), lambda: readiness)
    reply = await pages.answer(Request("GET", "/readyz?verbose"))
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize("target", ["/", "/metric", "/metrics/", "*", "http://host/metrics", "//metrics"])
async def test_elsewhere_the_reply_names_the_pages(target: str) -> None:
    reply = await make_pages().answer(Request("GET", target))
    assert reply.status == 404
    assert all(path in reply.body.decode() for path in ("/metrics", "/healthz", "/readyz"))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
async def test_other_methods_are_told_which_are_allowed(method: str) -> None:
    reply = await make_pages().answer(Request(method, "/readyz", has_body=True))
    assert (reply.status, reply.allow) == (405, "GET, HEAD")


async def test_a_body_is_refused() -> None:
    assert (await make_pages().answer(Request("GET", "/metrics", has_body=True))).status == 413


class Counted:
    """A collector that counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def collect(self) -> Iterator[Metric]:
        self.count += 1
        yield GaugeMetricFamily("asked", "how often", self.count)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def counting(counted: Counted) -> Pages:
    registry = CollectorRegistry()
    registry.register(counted)
    counted.count = 0
    return Pages(registry, ready)


async def test_all_who_ask_for_metrics_at_about_the_same_time_get_one_rendering(
    counted: Counted, autojump_clock: MockClock
) -> None:
    pages = counting(counted)
    replies: list[bytes] = []

    async def ask() -> None:
        replies.append((await pages.answer(Request("GET", "/metrics"))).body)

    began = trio.current_time()
    await ask()
    assert trio.current_time() == began
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await trio.sleep(RENDER_INTERVAL_S / 2)
        for _ in range(50):
            nursery.start_soon(ask)
    assert counted.count == 2
    assert trio.current_time() == pytest.approx(began + RENDER_INTERVAL_S)
    assert replies[0] != replies[1]
    assert len(set(replies[1:])) == 1


async def test_metrics_are_never_older_than_the_request(counted: Counted, autojump_clock: MockClock) -> None:
    pages = counting(counted)
    for number in range(1, 5):
        body = (await pages.answer(Request("GET", "/metrics"))).body
        assert f"asked {number}.0" in body.decode()


async def test_formats_that_a_client_makes_up_are_neither_kept_nor_rendered_more_often(
    counted: Counted, autojump_clock: MockClock
) -> None:
    pages = counting(counted)
    began = trio.current_time()
    for number in range(100):
        await pages.answer(Request("GET", "/metrics", f"application/openmetrics-text;version=1.{number}"))
    assert trio.current_time() - began == pytest.approx(99 * RENDER_INTERVAL_S)
    assert len(pages._exposition._last) <= 8


async def test_health_does_not_wait_for_metrics(counted: Counted, autojump_clock: MockClock) -> None:
    pages = counting(counted)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pages.answer, Request("GET", "/metrics"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await pages.answer(Request("GET", "/readyz"))).status == 200
        assert trio.current_time() == began
