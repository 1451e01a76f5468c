"""While the store is away the process lives, says that it is not ready, and comes back by itself."""

import re
from collections.abc import Callable
from pathlib import Path

from e2e_broker import BrokerProcess, eventually
from e2e_stall import begin_commit, commits_stalled, everything_stalled
from e2e_wire import Wire

from trio_broker._proto.grpc.health.v1.health_pb2 import HealthCheckResponse

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING

Brokers = Callable[..., BrokerProcess]


def health(wire: Wire) -> int:
    """Ask the health service for the broker as a whole."""
    check = wire.start("/grpc.health.v1.Health/Check", b"")
    wire.finish(check)
    (message,) = check.messages()
    return HealthCheckResponse.FromString(message).status


def test_a_store_that_is_away_for_too_long_makes_the_broker_unready_until_it_is_back(
    sqlite_broker: Brokers, database: Path
) -> None:
    with sqlite_broker("--store-grace", "100ms") as broker:
        with Wire(broker.address) as wire:
            live = wire.subscribe("orders")
            wire.stand(live)
            status, body = broker.get("/readyz")
            assert (status, body.splitlines()[0]) == (200, "ready")
            assert re.search(r"^store: SQLite \S+ \(journal_mode=wal synchronous=full\)$", body, re.MULTILINE)
            eventually(lambda: health(wire), SERVING)
            with everything_stalled(database):
                eventually(lambda: broker.get("/readyz")[0], 503)
                assert "the store has been away" in broker.get("/readyz")[1]
                assert broker.get("/healthz")[0] == 200
                eventually(lambda: health(wire), NOT_SERVING)
                failure = wire.failed(wire.subscribe("orders"))
                assert failure.told == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
                assert failure.retry_after_s is not None
            eventually(lambda: broker.get("/readyz")[0], 200)
            assert wire.published(wire.publish("orders", b"after", keep=True)) == 1
            wire.read_until(lambda: len(live.received()) == 1)  # who was subscribed waited, and still is
        broker.stop()


def test_a_lock_that_does_not_come_free_in_time_means_that_nothing_was_appended(
    sqlite_broker: Brokers, database: Path
) -> None:
    """The client may try again: another process holds the file, and SQLite knows that it wrote nothing."""
    with sqlite_broker("--commit-timeout", "1s") as broker:
        with Wire(broker.address) as wire:
            with commits_stalled(database):
                in_flight = begin_commit(wire, "orders", b"in flight")
                queued = wire.publish("orders", b"queued", keep=True)
                for exchange in (in_flight, queued):
                    failure = wire.failed(exchange)
                    assert failure.told == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
                    assert failure.retry_after_s is not None
            assert wire.published(wire.publish("orders", b"after", keep=True)) == 1
        broker.stop()
