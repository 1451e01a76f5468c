"""A broker that runs with ``--no-migrate`` waits for its schema, alive and unready, and says what it waits for."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from conftest import STORES
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, eventually, serve_command, sqlite_url
from e2e_wire import Wire
from postgres_databases import Databases
from postgres_server import PostgresServer

from persistence.postgres import schema

LATEST = len(schema.STEPS)
WAITS = "schema_awaited"


@pytest.fixture(params=[name for name in STORES if name != "memory"])
def empty(request: pytest.FixtureRequest) -> Iterator[str]:
    """A store of each kind without any tables: its URL."""
    with STORES[request.param](request) as url:
        yield url


def migrating(url: str, *flags: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """Begin ``trio-broker migrate up`` as another process."""
    script = str(Path(sys.executable).with_name("trio-broker"))
    return subprocess.Popen(
        [script, "migrate", "up", "--store", url, *flags],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )


def migrate(url: str) -> None:
    with migrating(url) as migration:
        assert migration.wait(SAFETY_S) == 0


def check_waits(broker: BrokerProcess, why: str) -> None:
    """It is alive, says why it is not ready, and takes no calls."""
    assert broker.get("/healthz")[0] == 200
    status, told = broker.get("/readyz")
    assert status == 503
    assert why in told
    assert "run 'trio-broker migrate up'" in told
    listening = [each.laddr for each in broker.system().net_connections("tcp") if each.status == "LISTEN"]
    assert [f"{each.ip}:{each.port}" for each in listening] == [broker.metrics_address]


def check_serves(broker: BrokerProcess) -> None:
    broker.wait_ready()
    assert broker.get("/readyz")[0] == 200
    with Wire(broker.address) as wire:
        assert wire.published(wire.publish("orders", b"first", keep=True)) == 1


def test_a_broker_waits_for_a_schema_that_is_missing_and_serves_as_soon_as_it_is_there(empty: str) -> None:
    with BrokerProcess(empty, "--no-migrate", waits=WAITS) as broker:
        check_waits(broker, f"has no schema yet, and this release needs version {LATEST}")
        migrate(empty)
        check_serves(broker)
        broker.stop()
        assert [line["event"] for line in broker.log].count(WAITS) == 1


def test_a_broker_waits_for_a_schema_that_is_older(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        administrator.execute("CREATE SCHEMA trio_broker")
        administrator.execute(schema._step(1))
    with BrokerProcess(postgres_url, "--no-migrate", waits=WAITS) as broker:
        check_waits(broker, f"has schema version 1, and this release needs version {LATEST}")
        migrate(postgres_url)
        check_serves(broker)
        broker.stop()


def test_workers_wait_for_the_schema_too(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, "--no-migrate", "--workers", "2", waits=WAITS) as broker:
        eventually(lambda: broker.get("/readyz")[1].count("has no schema yet"), 2)
        check_waits(broker, "has no schema yet")
        migrate(postgres_url)
        check_serves(broker)
        broker.stop()


def test_several_may_migrate_at_once(empty: str) -> None:
    with ExitStack() as stack:
        migrations = [stack.enter_context(migrating(empty)) for _ in range(3)]
        assert [each.wait(SAFETY_S) for each in migrations] == [0, 0, 0]


def test_migrate_waits_for_a_database_that_is_still_starting(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases:
        url = databases.create()
        own_postgres.kill9()
        with migrating(url, "--wait", f"{SAFETY_S}s", stderr=subprocess.PIPE) as migration:
            assert migration.stderr is not None
            assert migration.stderr.readline().endswith(f"; trying again for {SAFETY_S // 60}m\n")
            own_postgres.start()
            assert migration.wait(SAFETY_S) == 0


def test_a_broker_that_waits_for_its_schema_stops_at_once(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, "--no-migrate", waits=WAITS) as broker:
        broker.stop()


def test_a_schema_of_a_later_release_ends_the_broker_as_it_would_without_the_flag(
    tmp_path: Path, database: Path
) -> None:
    migrate(sqlite_url(tmp_path))
    later = sqlite3.connect(database)
    later.execute(f"PRAGMA user_version = {LATEST + 1}")
    later.close()
    for flags in ([], ["--no-migrate"]):
        ended = subprocess.run(
            serve_command(sqlite_url(tmp_path), *flags), capture_output=True, timeout=SAFETY_S, env=clean_environment()
        )
        assert ended.returncode == 1
        assert b"use the release that upgraded it, or a later one" in ended.stderr
