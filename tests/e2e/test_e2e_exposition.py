"""What /metrics exposes of a real broker: the families that docs/METRICS.md lists, and no series that grow."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess, eventually, sqlite_url
from e2e_wire import Wire
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PAGE = Path(__file__).parents[2] / "docs" / "METRICS.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) ?\|", re.MULTILINE)
MADE_BY_TYPE = {"le", "quantile"}
PRESCRIBED = ("method_count", "method_duration", "active_subscribers")
SUBJECTS = 10_000
SUBSCRIBERS = 5_000
BATCH = 1_000
"""Calls that are under way at once."""

Family = tuple[str, frozenset[str]]
"""Type and labels."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    flags = ("--metrics-subjects", "orders stock", "--streams-per-connection", str(SUBSCRIBERS + BATCH))
    with BrokerProcess(sqlite_url(tmp_path), *flags) as process:
        yield process
        process.stop()


@pytest.fixture
def wire(broker: BrokerProcess) -> Iterator[Wire]:
    with Wire(broker.address) as wire:
        yield wire


def samples(broker: BrokerProcess) -> list[Sample]:
    families = text_string_to_metric_families(broker.get("/metrics")[1])
    return [sample for family in families for sample in family.samples]


def series(broker: BrokerProcess) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {(sample.name, frozenset(sample.labels.items())) for sample in samples(broker)}


def exercise(wire: Wire) -> None:
    """Let each label of each family have a value."""
    wire.published(wire.publish("orders", b"x", keep=True))
    wire.failed(wire.publish("a b"))


def test_the_page_lists_each_family_with_its_type_and_labels(broker: BrokerProcess, wire: Wire) -> None:
    exercise(wire)
    told: dict[str, Family] = {}
    for family in text_string_to_metric_families(broker.get("/metrics")[1]):
        labels = frozenset(label for sample in family.samples for label in sample.labels) - MADE_BY_TYPE
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told[name] = family.type.replace("unknown", "untyped"), labels
    page = PAGE.read_text()
    listed = {name: (kind, frozenset(labels.replace(",", " ").split())) for name, kind, labels in ROW.findall(page)}
    # these have no sample while all is well, or on a store of one broker; nor has the parser what would be their labels
    absents = ("store_errors_total", "cpu_throttled_seconds_total", "learned_messages_total")
    for absent in (f"trio_broker_{name}" for name in absents):
        assert told[absent][0] == listed[absent][0]
        told[absent] = listed[absent]
    assert told == listed


@pytest.mark.usefixtures("prometheus_installed")
def test_promtool_has_no_complaint_but_of_the_prescribed_names(broker: BrokerProcess, wire: Wire) -> None:
    exercise(wire)
    page = broker.get("/metrics")[1]
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, text=True, capture_output=True, check=False)
    complaints = (checked.stdout + checked.stderr).splitlines()
    assert [line for line in complaints if not line.startswith(PRESCRIBED)] == []


def test_neither_subjects_nor_subscribers_make_it_grow(broker: BrokerProcess, wire: Wire) -> None:
    exercise(wire)
    wire.stand(first := wire.subscribe("orders"))
    before = series(broker)
    for start in range(0, SUBJECTS, BATCH):
        wire.finish(*(wire.publish(f"subject.{number}", b"x") for number in range(start, start + BATCH)))
    for start in range(0, SUBSCRIBERS, BATCH):
        wire.stand(*(wire.subscribe(f"subject.{number}") for number in range(start, start + BATCH)))
    assert broker.subscribers() == SUBSCRIBERS + 1
    assert series(broker) == before
    wire.cancel(first)


def test_the_subjects_that_are_named_are_told_apart_from_the_start(broker: BrokerProcess, wire: Wire) -> None:
    def told(subject: str) -> dict[str, float]:
        return {
            sample.name.removeprefix("trio_broker_subject_"): sample.value
            for sample in samples(broker)
            if sample.labels.get("subject") == subject
        }

    nothing = {"messages_published_total": 0, "messages_delivered_total": 0, "subscribers": 0}
    assert told("orders") == told("stock") == nothing
    wire.stand(stream := wire.subscribe("orders"))
    for _ in range(3):
        wire.published(wire.publish("orders"))
    wire.read_until(lambda: len(stream.messages()) == 3)
    assert told("orders") == {"messages_published_total": 3, "messages_delivered_total": 3, "subscribers": 1}
    assert told("stock") == nothing
    assert {sample.labels["subject"] for sample in samples(broker) if "subject" in sample.labels} == {"orders", "stock"}


def test_what_went_through_is_counted(broker: BrokerProcess, wire: Wire) -> None:
    wire.stand(one := wire.subscribe("orders"), two := wire.subscribe("orders"))
    wire.published(wire.publish("orders", b"12345", keep=True))
    wire.published(wire.publish("elsewhere", b"678", keep=True))
    wire.read_until(lambda: len(one.messages()) == len(two.messages()) == 1)
    assert broker.metric("trio_broker_messages_published_total") == 2
    assert broker.metric("trio_broker_published_bytes_total") == 8
    assert broker.metric("trio_broker_messages_delivered_total") == 2
    assert broker.metric("trio_broker_delivered_bytes_total") == 10
    assert broker.metric("trio_broker_delivery_lag_seconds_count") == 2
    assert 0 < broker.metric("trio_broker_delivery_lag_seconds_sum") < 2 * 30
    assert broker.metric("trio_broker_calls_in_flight", method="Subscribe") == 2
    assert broker.metric("trio_broker_connections") == 1
    assert broker.metric("trio_broker_store_pool_wait_seconds_count", pool="write") >= 2
    assert broker.metric("trio_broker_store_operation_seconds_count", operation="append") == 2
    wire.cancel(one)
    eventually(lambda: broker.metric("trio_broker_stream_lifetime_seconds_count", method="Subscribe"), 1)
    assert broker.metric("trio_broker_stream_first_message_seconds_count", method="Subscribe") == 1
    assert broker.metric("trio_broker_rpc_errors_total", method="Subscribe", reason="cancelled_by_peer") == 1
