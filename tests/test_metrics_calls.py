from math import isnan

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from metrics import CallMetrics
from metrics.calls import STATUSES

METHODS = ["Publish", "Subscribe", "Fetch"]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def scrape(calls: CallMetrics) -> Samples:
    """What a Prometheus server reads: every sample by name and labels, parsed back from the text."""
    registry = CollectorRegistry()
    registry.register(calls)
    samples: Samples = {}
    for family in parse_text(generate_latest(registry).decode()):
        for sample in family.samples:
            samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def count(samples: Samples, method: str, status: str) -> float | None:
    return samples.get(("method_count", (("method", method), ("status", status))))


def duration(samples: Samples, method: str, quantile: str) -> float:
    return samples["method_duration", (("method", method), ("quantile", quantile))]


def total(samples: Samples, name: str, method: str) -> float:
    return samples[f"method_duration_{name}", (("method", method),)]


def test_known_methods_are_there_at_zero_before_the_first_call() -> None:
    samples = scrape(CallMetrics(METHODS, lambda: 0))
    for method in METHODS:
        assert count(samples, method, "OK") == 0
        assert (total(samples, "count", method), total(samples, "sum", method)) == (0, 0)
        assert all(isnan(duration(samples, method, quantile)) for quantile in ("0.5", "0.95", "0.99"))
    assert samples["active_subscribers", ()] == 0
    assert sum(name.startswith("method_") for name, _ in samples) == len(METHODS) * 6


def test_a_call_counts_by_method_and_status_and_its_duration_in_seconds() -> None:
    calls = CallMetrics(METHODS, lambda: 0)
    for milliseconds in range(1, 101):
        calls.ended("Publish", "OK", milliseconds / 1000)
    calls.ended("Publish", "INVALID_ARGUMENT", 0.002)
    samples = scrape(calls)
    assert count(samples, "Publish", "OK") == 100
    assert count(samples, "Publish", "INVALID_ARGUMENT") == 1
    assert count(samples, "Fetch", "OK") == 0
    assert total(samples, "count", "Publish") == 101
    assert total(samples, "sum", "Publish") == pytest.approx(5.052)
    quantiles = [duration(samples, "Publish", quantile) for quantile in ("0.5", "0.95", "0.99")]
    assert quantiles == pytest.approx([0.050, 0.095, 0.099], rel=0.01)


def test_method_names_that_clients_make_up_share_one_label() -> None:
    calls = CallMetrics(METHODS, lambda: 0)
    before = len(scrape(calls))
    for number in range(1000):
        calls.ended(f"Method{number}", "UNIMPLEMENTED", 0.001)
    samples = scrape(calls)
    assert count(samples, "unknown", "UNIMPLEMENTED") == 1000
    assert total(samples, "count", "unknown") == 1000
    assert len(samples) == before + 6  # no OK among them: that would be made up


def test_a_status_that_grpc_has_not_counts_as_unknown() -> None:
    calls = CallMetrics(METHODS, lambda: 0)
    calls.ended("Fetch", "TEAPOT", 0.001)
    assert count(scrape(calls), "Fetch", "UNKNOWN") == 1


def test_the_statuses_are_those_of_grpc() -> None:
    assert list(STATUSES) == [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])]


def test_quantiles_forget_after_the_window_and_totals_do_not() -> None:
    clock = Clock()
    calls = CallMetrics(METHODS, lambda: 0, clock=clock)
    calls.ended("Publish", "OK", 3.0)
    clock.now += 60
    samples = scrape(calls)
    assert isnan(duration(samples, "Publish", "0.5"))
    assert (total(samples, "count", "Publish"), total(samples, "sum", "Publish")) == (1, 3.0)
    calls.ended("Publish", "OK", 1.0)
    samples = scrape(calls)
    assert duration(samples, "Publish", "0.99") == pytest.approx(1.0, rel=0.01)
    assert (total(samples, "count", "Publish"), total(samples, "sum", "Publish")) == (2, 4.0)


def test_active_subscribers_are_asked_for_at_each_scrape() -> None:
    live = [1, 2, 3]
    calls = CallMetrics(METHODS, lambda: len(live))
    assert scrape(calls)["active_subscribers", ()] == 3
    live.clear()
    assert scrape(calls)["active_subscribers", ()] == 0


def test_the_families_have_the_fixed_names_types_and_units_in_both_formats() -> None:
    calls = CallMetrics(METHODS, lambda: 0)
    calls.ended("Publish", "OK", 0.1)
    registry = CollectorRegistry()
    registry.register(calls)
    for families in (
        parse_text(generate_latest(registry).decode()),
        parse_openmetrics(generate_openmetrics(registry).decode()),
    ):
        by_name = {family.name: family for family in families}
        types = {name: family.type for name, family in by_name.items()}
        fixed = {"method_count": "unknown", "method_duration": "summary", "active_subscribers": "gauge"}
        assert fixed.items() <= types.items()
        assert "in seconds" in by_name["method_duration"].documentation


def test_unary_calls_and_streams_have_histograms_apart() -> None:
    calls = CallMetrics(["Publish"], lambda: 0, streams=["Subscribe"])
    calls.ended("Publish", "OK", 0.003)
    calls.ended("Subscribe", "OK", 7200.0)
    calls.began("Subscribe", 2.0)
    calls.began("Publish", 2.0)  # not a stream
    samples = scrape(calls)
    for family, method, below, above, sum_ in (
        ("trio_broker_rpc_duration_seconds", "Publish", "0.0025", "0.005", 0.003),
        ("trio_broker_stream_first_message_seconds", "Subscribe", "1.0", "2.5", 2.0),
        ("trio_broker_stream_lifetime_seconds", "Subscribe", "3600.0", "21600.0", 7200.0),
    ):
        labels = (("method", method),)
        assert samples[f"{family}_bucket", (("le", below), *labels)] == 0
        assert samples[f"{family}_bucket", (("le", above), *labels)] == 1
        assert samples[f"{family}_bucket", (("le", "+Inf"), *labels)] == 1
        assert samples[f"{family}_count", labels] == 1
        assert samples[f"{family}_sum", labels] == sum_
        assert {labels for name, labels in samples if name == f"{family}_count"} == {labels}


def test_errors_count_by_reason_and_reasons_that_are_not_known_are_none() -> None:
    calls = CallMetrics(METHODS, lambda: 0, reasons=["OVERLOADED"])
    assert not [name for name, _ in scrape(calls) if "errors_total" in name]
    for method, reason in (("Publish", "OVERLOADED"), ("Publish", ""), ("Publish", "made up"), ("Made up", "")):
        calls.ended(method, "UNAVAILABLE", 0.0)
        calls.failed(method, reason)
    errors = {labels: value for (name, labels), value in scrape(calls).items() if "errors_total" in name}
    assert errors == {
        (("method", "Publish"), ("reason", "OVERLOADED")): 1,
        (("method", "Publish"), ("reason", "none")): 2,
        (("method", "unknown"), ("reason", "none")): 1,
    }


def test_errors_of_the_given_reasons_are_there_at_zero_before_the_first() -> None:
    calls = CallMetrics(["Publish"], lambda: 0, streams=["Subscribe"], reasons=["OVERLOADED"], faults=["OVERLOADED"])
    calls.ended("Made up", "UNAVAILABLE", 0.0)
    calls.failed("Publish", "OVERLOADED")
    errors = {labels: value for (name, labels), value in scrape(calls).items() if "errors_total" in name}
    assert errors == {
        (("method", "Publish"), ("reason", "OVERLOADED")): 1,
        (("method", "Subscribe"), ("reason", "OVERLOADED")): 0,
    }
