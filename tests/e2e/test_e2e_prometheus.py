"""A real Prometheus scrapes a busy broker: the dashboards and the alerts ask for what there is."""

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from busy_clients import SUBJECT, BusyClients, call_wrong_method, fetch_unassigned, publish_and_fetch, read_on, read_one
from e2e_broker import BrokerProcess, eventually
from grafana_boards import Panel, panels
from postgres_server import PostgresServer
from prometheus_server import JOB, PrometheusServer, Series

RULES = Path(__file__).parents[2] / "docker" / "prometheus" / "rules" / "trio-broker.yml"
BROKER = "broker"
SCRAPES = 5
"""In each part of the broker's life; a rate needs two."""
RATE_S = 5
FAILED_SHARE = 0.02
"""Of all publishes and fetches, so many fail while the store is away: TrioBrokerErrorRatio is about more than 1 %."""

NOT_EVERYWHERE = {
    "process: Load of the machine": {
        "trio_broker_cpu_throttled_seconds_total",  # only where a cgroup has a quota
    },
    "delivery: Pages of the log from memory": {
        "trio_broker_cache_hits_total",  # a ratio of nothing while nobody is behind the live stream
    },
    "delivery: Appended by another broker": {
        "trio_broker_forwarded_messages_total",  # only where subjects are left to one broker
        "trio_broker_forwards_refused_messages_total",
    },
}
"""What there need not be here, by panel."""
SELECTOR = re.compile(r"\b((?:trio_broker|method|job:trio_broker)[a-z0-9_:]*|up)(\{[^}]*\})?")


@pytest.fixture(scope="module")
def _life(
    prometheus_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrometheusServer, float, float]]:
    """A Prometheus that has seen a broker under all kinds of calls, with its store, without, and with it again."""
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        PostgresServer() as postgres,
        BrokerProcess(postgres.dsn(), "--metrics-subjects", SUBJECT) as broker,
        PrometheusServer(directory, {BROKER: broker.metrics_address}, [RULES]) as prometheus,
        BusyClients(broker.address) as clients,
    ):
        began = time.time()
        for call in (publish_and_fetch, fetch_unassigned, read_on, read_one, call_wrong_method):
            clients.keep(call)
        _see(prometheus)
        _collect_garbage(broker, clients)
        postgres.stop()
        eventually(lambda: broker.metric("trio_broker_store_up"), 0.0)
        eventually(lambda: _failed_share(prometheus) >= FAILED_SHARE, wanted=True)
        _see(prometheus)
        postgres.start()
        eventually(lambda: broker.metric("trio_broker_store_up"), 1.0)
        _see(prometheus)
        yield prometheus, began, time.time()


@pytest.fixture
def prometheus(_life: tuple[PrometheusServer, float, float]) -> PrometheusServer:
    return _life[0]


@pytest.fixture
def span(_life: tuple[PrometheusServer, float, float]) -> tuple[float, float]:
    """From when to when, in Unix time."""
    return _life[1:]


def _collect_garbage(broker: BrokerProcess, clients: BusyClients) -> None:
    """Give the broker more to remember until the garbage collector looks: calls alone leave nothing for it."""
    before = broker.metric("python_gc_collections_total", generation="0")
    while broker.metric("python_gc_collections_total", generation="0") == before:
        clients.stall()


def _failed_share(prometheus: PrometheusServer) -> float:
    """Return which part of all publishes and fetches failed for want of the store, as far as Prometheus has seen."""
    calls = 'method=~"Publish|Fetch"'
    failed = f'trio_broker_rpc_errors_total{{{calls},reason="STORAGE_UNAVAILABLE"}}'
    found = prometheus.ask(f"sum({failed}) / sum(method_count{{{calls}}})")
    return found[0].values[0][1] if found else 0.0


def _see(prometheus: PrometheusServer) -> None:
    """Wait until the broker has been scraped some more."""
    before = prometheus.scrapes(BROKER)
    eventually(lambda: prometheus.scrapes(BROKER) - before >= SCRAPES, wanted=True)


def has_values(found: list[Series]) -> bool:
    return any(math.isfinite(value) for series in found for _, value in series.values)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: f"{panel.board}: {panel.title}")
def test_every_query_of_a_panel_has_an_answer(
    prometheus: PrometheusServer, span: tuple[float, float], panel: Panel
) -> None:
    missing = NOT_EVERYWHERE.get(f"{panel.board}: {panel.title}", set())
    for query in panel.queries:
        if not any(name in query.expr for name in missing):
            found = prometheus.ask_over(query.filled_in(RATE_S), *span)
            assert has_values(found), query.expr
            for series in found:
                assert "{{" not in query.name_of(series.labels), f"{query.legend} has a label that there is not"
            if panel.columns:
                assert {label for series in found for label in series.labels} == set(panel.columns)


def test_every_rule_is_evaluated(prometheus: PrometheusServer) -> None:
    rules = prometheus.rules()
    assert rules
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_every_rule_is_about_series_that_there_are(prometheus: PrometheusServer) -> None:
    for rule in prometheus.rules():
        selectors = [name + matchers for name, matchers in SELECTOR.findall(rule["query"])]
        assert selectors, rule["name"]
        for selector in selectors:
            if selector.startswith("trio_broker_tls_"):  # this broker serves no TLS: see test_e2e_tls.py
                continue
            assert prometheus.ask(f"last_over_time({selector}[5m])"), f"{rule['name']}: {selector}"
        if rule["type"] == "recording":
            assert has_values(prometheus.ask(rule["name"])), rule["name"]


def test_the_alerts_about_what_happened_are_raised(prometheus: PrometheusServer, span: tuple[float, float]) -> None:
    seen = prometheus.ask_over(f'ALERTS{{job="{JOB}"}}', *span)
    assert {"TrioBrokerStoreDown", "TrioBrokerErrorRatio"} <= {series.labels["alertname"] for series in seen}
