"""A broker whose PostgreSQL is killed, or stands still, or is not there yet: nothing false is said, nothing hangs."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import psycopg
import pytest
from blackhole import Blackhole
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, eventually, serve_command
from e2e_database import GRACE_S, fail_again_and_again, hold_nobody_up, stop_in_time
from postgres_databases import Databases
from postgres_server import PostgresServer

from persistence.postgres.schema import MIGRATION_LOCK

ROUNDS = 5


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
    fail_again_and_again(url, partial(fault, own_postgres), ROUNDS)


def test_a_database_that_says_nothing_holds_up_no_call_beyond_its_deadline_and_no_stop(postgres_url: str) -> None:
    with Blackhole.before(postgres_url) as hole:
        hold_nobody_up(hole.through(postgres_url), hole.hold)


def test_an_idle_broker_stops_within_the_grace_period_although_the_database_says_nothing(postgres_url: str) -> None:
    with (
        Blackhole.before(postgres_url) as hole,
        BrokerProcess(hole.through(postgres_url), "--grace", f"{GRACE_S}s") as broker,
    ):
        hole.hold()
        hole.wait_request_held()  # the probe, or a sweep
        stop_in_time(broker)


def stop_while_starting(url: str, is_waiting: Callable[[], object]) -> float:
    """Start a broker; stop it when it waits for its database; return how long that took."""
    command = serve_command(url, "--grace", f"{GRACE_S}s")
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
