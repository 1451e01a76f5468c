"""A broker whose PostgreSQL is killed, or stands still, or is not there yet: nothing false is said, nothing hangs."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import psycopg
import pytest
from blackhole import Blackhole
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, eventually, serve_command
from e2e_journal import Journal, check_whole, publish_through
from e2e_peers import PEERS
from e2e_wire import Wire
from postgres_databases import Databases
from postgres_server import PostgresServer

from persistence.postgres.schema import MIGRATION_LOCK

ROUNDS = 5
ACKNOWLEDGED = 1_000
"""In each round; the fault happens when about half of them are."""
BACK_S = 10
"""How soon a broker is ready again after its database is."""

AIO = PEERS["grpcio.aio"]


@pytest.fixture
def url(own_postgres: PostgresServer) -> Iterator[str]:
    """A database on a server of the test's own."""
    databases = Databases(own_postgres.dsn())
    url = databases.create()
    yield url
    own_postgres.revive()
    databases.drop(url)


def kill_the_backend_that_appends(server: PostgresServer) -> None:
    """kill -9 of one backend makes the server stop all others and recover from its log."""
    backends = [
        child for child in psutil.Process(server.pid).children() if "trio_broker_test" in " ".join(child.cmdline())
    ]
    os.kill(random.choice(backends).pid, signal.SIGKILL)


def kill_the_postmaster(server: PostgresServer) -> None:
    server.kill9()
    server.start()


@pytest.mark.parametrize("fault", [kill_the_backend_that_appends, kill_the_postmaster])
def test_five_times_kill_9_of_the_database_lose_nothing_that_was_acknowledged(
    own_postgres: PostgresServer, url: str, fault: Callable[[PostgresServer], None]
) -> None:
    journal = Journal()
    faulty_at = [0.0]

    def happen() -> None:
        fault(own_postgres)
        faulty_at[0] = time.monotonic()

    with BrokerProcess(url, "--store-grace", "0s") as broker:
        for _ in range(ROUNDS):
            AIO.run(publish_through, broker.address, journal, ACKNOWLEDGED, happen)
            eventually(lambda: broker.get("/readyz")[0], 200)
            assert time.monotonic() - faulty_at[0] < BACK_S
        AIO.run(check_whole, broker.address, journal)
        broker.stop()


def test_a_database_that_says_nothing_holds_up_no_call_beyond_its_deadline_and_no_stop(postgres_url: str) -> None:
    with (
        Blackhole.before(postgres_url) as hole,
        BrokerProcess(hole.through(postgres_url), "--grace", "2s") as broker,
        Wire(broker.address) as wire,
    ):
        assert wire.published(wire.publish("orders", b"kept", keep=True)) == 1
        hole.hold()
        for begin in (
            lambda: wire.publish("orders", b"held", keep=True, timeout="1S"),
            lambda: wire.publish("orders", b"queued", keep=True, timeout="1S"),
            lambda: wire.fetch("orders", 1, timeout="1S"),
        ):
            began = time.monotonic()
            assert wire.failed(begin()).code == "DEADLINE_EXCEEDED"
            assert time.monotonic() - began < 2
        began = time.monotonic()
        broker.terminate()
        assert broker.wait() == 0
        assert time.monotonic() - began < 2 + 1


def test_an_idle_broker_stops_within_the_grace_period_although_the_database_says_nothing(postgres_url: str) -> None:
    with Blackhole.before(postgres_url) as hole, BrokerProcess(hole.through(postgres_url), "--grace", "2s") as broker:
        hole.hold()
        hole.wait_request_held()  # the probe, or a sweep
        began = time.monotonic()
        broker.terminate()
        assert broker.wait() == 0
        assert time.monotonic() - began < 2 + 1


def stop_while_starting(url: str, is_waiting: Callable[[], object]) -> float:
    """Start a broker; stop it when it waits for its database; return how long that took."""
    command = serve_command(url, "--grace", "2s")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=clean_environment()) as process:
        is_waiting()
        began = time.monotonic()
        process.terminate()
        assert process.wait(SAFETY_S) == 0
        return time.monotonic() - began


def test_a_broker_that_waits_for_a_silent_database_at_its_start_stops_at_once(postgres_url: str) -> None:
    with Blackhole.before(postgres_url) as hole:
        hole.hold()
        # connecting itself is bounded by 5 s, and is not interrupted
        assert stop_while_starting(hole.through(postgres_url), hole.wait_request_held) < 5 + 1


def test_a_broker_that_waits_for_another_to_migrate_stops_at_once(postgres: Databases, postgres_url: str) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        took_s = stop_while_starting(postgres_url, lambda: eventually(lambda: postgres.execute(waiting), [(1,)]))
    assert took_s < 2
