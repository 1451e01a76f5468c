"""What a scrape of a real broker says after real calls."""

from collections.abc import Iterator

import pytest
from e2e_broker import BrokerProcess, eventually
from e2e_wire import Wire
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with BrokerProcess("memory:") as process:
        yield process


@pytest.fixture
def wire(broker: BrokerProcess) -> Iterator[Wire]:
    with Wire(broker.address) as wire:
        yield wire


def counts(broker: BrokerProcess) -> dict[tuple[str, str], int]:
    """What method_count says, by method and status, but for zeros."""
    return {
        (sample.labels["method"], sample.labels["status"]): int(sample.value)
        for family in text_string_to_metric_families(broker.get("/metrics")[1])
        for sample in family.samples
        if sample.name == "method_count" and sample.value
    }


def test_each_call_is_counted_once_by_method_and_status(broker: BrokerProcess, wire: Wire) -> None:
    for _ in range(3):
        wire.published(wire.publish("orders", b"x", keep=True))
    wire.published(wire.publish("orders", b"not kept"))
    wire.failed(wire.publish("a b"))
    wire.finish(wire.fetch("orders", 1))
    for id_ in (4, 5):
        wire.failed(wire.fetch("orders", id_))
    wire.failed(wire.publish("orders", expirationSeconds=-1))
    for path in ("/broker.Broker/Nothing", "/nobody/Publish", "/broker.Broker/" + "x" * 100):
        wire.failed(wire.start(path, b""))
    wire.finish(wire.start("/broker.Admin/PurgeSubject", b"\n\x06orders"))
    wire.failed(wire.start("/broker.Admin/GetSubject", b""))
    wire.finish(wire.start("/grpc.health.v1.Health/Check", b""))
    wire.failed(wire.start("/grpc.health.v1.Health/Check", b"\n\x07nothing"))
    assert counts(broker) == {
        ("Publish", "OK"): 4,
        ("Publish", "INVALID_ARGUMENT"): 2,
        ("Fetch", "OK"): 1,
        ("Fetch", "INVALID_ARGUMENT"): 2,
        ("PurgeSubject", "OK"): 1,
        ("GetSubject", "INVALID_ARGUMENT"): 1,
        ("unknown", "UNIMPLEMENTED"): 3,
        ("Check", "OK"): 1,
        ("Check", "NOT_FOUND"): 1,
    }


def test_a_stream_counts_once_when_it_ends_and_until_then_as_a_subscriber(broker: BrokerProcess, wire: Wire) -> None:
    cancelled, timed = wire.subscribe("orders"), wire.subscribe("orders", timeout="500m")
    wire.stand(cancelled, timed)
    for _ in range(3):
        wire.published(wire.publish("orders"))
    assert broker.subscribers() == 2
    assert ("Subscribe", "OK") not in counts(broker)
    assert wire.failed(timed).code == "DEADLINE_EXCEEDED"
    assert broker.subscribers() == 1
    wire.cancel(cancelled)
    eventually(broker.subscribers, 0)
    assert {key: count for key, count in counts(broker).items() if key[0] == "Subscribe"} == {
        ("Subscribe", "DEADLINE_EXCEEDED"): 1,
        ("Subscribe", "CANCELLED"): 1,
    }
    assert broker.metric("method_duration_count", method="Subscribe") == 2
    assert broker.metric("method_duration_sum", method="Subscribe") >= 2 * 0.5, "seconds"
    assert broker.metric("method_duration", method="Subscribe", quantile="0.5") >= 0.49


def test_the_names_and_labels_are_those_that_dashboards_rely_on(broker: BrokerProcess, wire: Wire) -> None:
    wire.published(wire.publish("orders"))
    lines = [line for line in broker.get("/metrics")[1].splitlines() if not line.startswith("#")]
    values = {series: float(value) for series, value in (line.rsplit(" ", 1) for line in lines)}
    assert values['method_count{method="Publish",status="OK"}'] == 1
    assert values['method_duration_count{method="Publish"}'] == 1
    assert values['method_duration_sum{method="Publish"}'] > 0
    for quantile in ("0.5", "0.95", "0.99"):
        assert values[f'method_duration{{method="Publish",quantile="{quantile}"}}'] > 0
    assert values["active_subscribers"] == 0
    for about_the_process in (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        'python_gc_collections_total{generation="0"}',
    ):
        assert about_the_process in values
    assert not [series for series in values if series.startswith("method_count_total")]
