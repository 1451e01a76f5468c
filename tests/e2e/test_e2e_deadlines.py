"""Deadlines and cancellation reach the broker: what was not begun is not done, and nobody waits longer than asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_broker import DATABASE, BrokerProcess, eventually, sqlite_url
from e2e_stall import begin_commit, commits_stalled, everything_stalled
from e2e_wire import Wire

PATIENT = ("--commit-timeout", "60s")
"""So that only the deadline of a call can end it while the store is stalled."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / DATABASE


@pytest.fixture(scope="module")
def broker(database: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(sqlite_url(database.parent), *PATIENT) as process:
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
    broker: BrokerProcess, wire: Wire, database: Path, subject: str
) -> None:
    def timed_out() -> int:
        return int(broker.metric("method_count", method="Publish", status="DEADLINE_EXCEEDED"))

    def duration_s() -> float:
        return broker.metric("method_duration_sum", method="Publish")

    live = wire.subscribe(subject)
    wire.stand(live)
    timed_out_before, duration_before_s = timed_out(), duration_s()
    with commits_stalled(database):
        in_flight = begin_commit(wire, subject, b"in flight", timeout="1S")
        queued = [wire.publish(subject, b"queued", timeout="500m", keep=True) for _ in range(3)]
        assert {wire.failed(exchange).told for exchange in queued} == {("DEADLINE_EXCEEDED", "NOT_APPLIED")}
        assert wire.failed(in_flight).told == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
    assert wire.published(wire.publish(subject, b"next", keep=True)) == 2
    assert bodies(wire, subject, 2) == [b"in flight", b"next"]
    wire.read_until(lambda: len(live.received()) == 2)
    assert [message.body for message in live.received()] == [b"in flight", b"next"]

    # by the broker's own clock: none ended before its deadline, and none a second after it
    deadlines_s = 3 * 0.5 + 1.0
    assert timed_out() - timed_out_before == 4
    assert deadlines_s <= duration_s() - duration_before_s <= deadlines_s + 4 * 1.0


def test_a_cancelled_publish_is_stored_only_if_its_commit_had_begun(wire: Wire, database: Path, subject: str) -> None:
    with commits_stalled(database):
        in_flight = begin_commit(wire, subject, b"in flight")
        one, two, three = (wire.publish(subject, body, keep=True) for body in (b"one", b"two", b"three"))
        wire.cancel(in_flight, two)
        wire.round_trip()
    assert [wire.published(one), wire.published(three)] == [2, 3]
    assert wire.published(wire.publish(subject, b"next", keep=True)) == 4
    assert bodies(wire, subject, 4) == [b"in flight", b"one", b"three", b"next"]


def test_publishes_of_a_connection_that_breaks_off_are_withdrawn(
    broker: BrokerProcess, wire: Wire, database: Path, subject: str
) -> None:
    def cancelled() -> int:
        return int(broker.metric("method_count", method="Publish", status="CANCELLED"))

    with commits_stalled(database):
        in_flight = begin_commit(wire, subject, b"in flight")
        cancelled_before = cancelled()
        leaving = Wire(broker.address)
        for _ in range(10):
            leaving.publish(subject, b"leaving", keep=True)
        leaving.round_trip()
        staying = wire.publish(subject, b"staying", keep=True)
        leaving.break_off()
        eventually(cancelled, cancelled_before + 10)
    assert [wire.published(in_flight), wire.published(staying)] == [1, 2]
    assert bodies(wire, subject, 2) == [b"in flight", b"staying"]


def test_a_fetch_ends_at_its_deadline_though_the_store_does_not_answer(
    wire: Wire, database: Path, subject: str
) -> None:
    wire.published(wire.publish(subject, b"x", keep=True))
    with everything_stalled(database):
        assert wire.failed(wire.fetch(subject, 1, timeout="300m")).code == "DEADLINE_EXCEEDED"
    assert bodies(wire, subject, 1) == [b"x"]


def test_a_subscription_ends_at_its_deadline(broker: BrokerProcess, wire: Wire, subject: str) -> None:
    timed, endless = wire.subscribe(subject, timeout="500m"), wire.subscribe(subject)
    wire.stand(timed, endless)
    wire.published(wire.publish(subject, b"x"))
    assert wire.failed(timed).code == "DEADLINE_EXCEEDED"
    assert [message.body for message in timed.received()] == [b"x"]
    eventually(broker.subscribers, 1)
    assert not endless.over


def test_a_deadline_that_has_passed_already_stores_nothing(wire: Wire, database: Path, subject: str) -> None:
    with commits_stalled(database):
        begin_commit(wire, subject, b"in flight")
        late = wire.publish(subject, b"late", timeout="1n", keep=True)
        assert wire.failed(late).told == ("DEADLINE_EXCEEDED", "NOT_APPLIED")
    assert wire.published(wire.publish(subject, b"next", keep=True)) == 2
