"""Deadlines and cancellation reach the broker: what was not begun is not done, and nobody waits longer than asked."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess, eventually
from e2e_stall import begin_commit, commits_stalled, everything_stalled
from e2e_wire import Wire

PATIENT = ("--commit-timeout", "60s")
"""So that only the deadline of a call can end it while the store is stalled."""


@pytest.fixture
def broker(sqlite_broker: Callable[..., BrokerProcess]) -> Iterator[BrokerProcess]:
    with sqlite_broker(*PATIENT) as process:
        yield process
        process.stop()


@pytest.fixture
def wire(broker: BrokerProcess) -> Iterator[Wire]:
    with Wire(broker.address) as wire:
        yield wire


def bodies(wire: Wire, subject: str, last_id: int) -> list[bytes]:
    fetched = [wire.fetch(subject, id_) for id_ in range(1, last_id + 1)]
    wire.finish(*fetched)
    return [exchange.received()[0].body for exchange in fetched]


def test_a_publish_out_of_time_says_whether_it_may_have_been_applied(
    broker: BrokerProcess, wire: Wire, database: Path
) -> None:
    live = wire.subscribe("orders")
    wire.stand(live)
    with commits_stalled(database):
        in_flight = begin_commit(wire, "orders", b"in flight", timeout="1S")
        queued = [wire.publish("orders", b"queued", timeout="500m", keep=True) for _ in range(3)]
        assert {wire.failed(exchange).told for exchange in queued} == {("DEADLINE_EXCEEDED", "NOT_APPLIED")}
        assert not in_flight.over
        assert wire.failed(in_flight).told == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
    assert wire.published(wire.publish("orders", b"next", keep=True)) == 2
    assert bodies(wire, "orders", 2) == [b"in flight", b"next"]
    wire.read_until(lambda: len(live.received()) == 2)
    assert [message.body for message in live.received()] == [b"in flight", b"next"]

    # by the broker's own clock: none ended before its deadline, and none a second after it
    deadlines_s = 3 * 0.5 + 1.0
    assert broker.metric("method_count", method="Publish", status="DEADLINE_EXCEEDED") == 4
    duration_s = broker.metric("method_duration_sum", method="Publish")
    assert deadlines_s <= duration_s <= deadlines_s + 4 * 1.0


def test_a_cancelled_publish_is_stored_only_if_its_commit_had_begun(wire: Wire, database: Path) -> None:
    with commits_stalled(database):
        in_flight = begin_commit(wire, "orders", b"in flight")
        one, two, three = (wire.publish("orders", body, keep=True) for body in (b"one", b"two", b"three"))
        wire.cancel(in_flight, two)
        wire.round_trip()
    assert [wire.published(one), wire.published(three)] == [2, 3]
    assert wire.published(wire.publish("orders", b"next", keep=True)) == 4
    assert bodies(wire, "orders", 4) == [b"in flight", b"one", b"three", b"next"]


def test_publishes_of_a_connection_that_breaks_off_are_withdrawn(
    broker: BrokerProcess, wire: Wire, database: Path
) -> None:
    with commits_stalled(database):
        in_flight = begin_commit(wire, "orders", b"in flight")
        leaving = Wire(broker.address)
        for _ in range(10):
            leaving.publish("orders", b"leaving", keep=True)
        leaving.round_trip()
        staying = wire.publish("orders", b"staying", keep=True)
        leaving.break_off()
        eventually(lambda: broker.metric("method_count", method="Publish", status="CANCELLED"), 10)
    assert [wire.published(in_flight), wire.published(staying)] == [1, 2]
    assert bodies(wire, "orders", 2) == [b"in flight", b"staying"]


def test_a_fetch_ends_at_its_deadline_though_the_store_does_not_answer(wire: Wire, database: Path) -> None:
    wire.published(wire.publish("orders", b"x", keep=True))
    with everything_stalled(database):
        assert wire.failed(wire.fetch("orders", 1, timeout="300m")).code == "DEADLINE_EXCEEDED"
    assert bodies(wire, "orders", 1) == [b"x"]


def test_a_subscription_ends_at_its_deadline(broker: BrokerProcess, wire: Wire) -> None:
    timed, endless = wire.subscribe("orders", timeout="500m"), wire.subscribe("orders")
    wire.stand(timed, endless)
    wire.published(wire.publish("orders", b"x"))
    assert wire.failed(timed).code == "DEADLINE_EXCEEDED"
    assert [message.body for message in timed.received()] == [b"x"]
    eventually(broker.subscribers, 1)
    assert not endless.over


def test_a_deadline_that_has_passed_already_stores_nothing(wire: Wire, database: Path) -> None:
    with commits_stalled(database):
        begin_commit(wire, "orders", b"in flight")
        late = wire.publish("orders", b"late", timeout="1n", keep=True)
        assert wire.failed(late).told == ("DEADLINE_EXCEEDED", "NOT_APPLIED")
    assert wire.published(wire.publish("orders", b"next", keep=True)) == 2
