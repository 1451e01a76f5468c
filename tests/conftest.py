import io
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from types import FrameType

import pytest
import structlog
import trio
from blackhole import Blackhole
from cassandra_cluster import CassandraCluster
from cassandra_keyspaces import Keyspaces
from cassandra_server import MISSING, CassandraServer, is_there
from postgres_databases import Databases
from postgres_kit import Outside
from postgres_server import PostgresServer
from prometheus_server import MISSING as NO_PROMETHEUS
from prometheus_server import is_there as prometheus_is_there

from trio_broker.tasktree import describe_process, describe_threads

PATIENCE_S = 500
"""A test that runs so long hangs: it fails, and tells what it did. The first that needs a Go program builds it."""
MORE_PATIENCE_S = 30
"""If its tasks cannot be ended meanwhile, whatever the main thread does is interrupted."""
POSTGRES = "TRIO_BROKER_TEST_POSTGRES"
"""The URL of a PostgreSQL server to test on, of a role that may create databases; otherwise tests start their own."""
CASSANDRA = "TRIO_BROKER_TEST_CASSANDRA"
"""The URL of a store on a Cassandra to test on, its keyspace left out: ``cassandra://host:9042/?replication_factor=3``;
otherwise tests start their own, and are skipped where that cannot be (in CI, with ``CI=true``, they fail)."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """End a test that hangs, with the tree of its tasks in what it printed; the tests after it go on."""
    late = TimeoutError(f"{item.nodeid} still ran after {PATIENCE_S} s")
    told = False

    def end_all_tasks() -> None:
        print(describe_process(), file=sys.stderr)
        raise late

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told or not trio.lowlevel.in_trio_run():
            print(*describe_threads(), sep="\n", file=sys.stderr)
            raise late
        trio.lowlevel.current_trio_token().run_sync_soon(end_all_tasks)
        told = True

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, MORE_PATIENCE_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    """Where logs may go (`trio_broker.logs.configure_logging`); afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in ("", "trio_broker", "persistence", "metrics", "psycopg.pool")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield io.StringIO()
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """The PostgreSQL server that all tests share: for those that leave it running."""
    if url := os.environ.get(POSTGRES):
        with Databases(url) as databases:
            yield databases
    else:
        with PostgresServer() as server:
            yield Databases(server.dsn())


@pytest.fixture
def postgres_url(postgres: Databases) -> Iterator[str]:
    """An empty database of the test's own on the shared server."""
    with postgres.new() as url:
        yield url


@pytest.fixture
def outside(postgres_url: str) -> Iterator[Outside]:
    """A connection to that database, beside those of the store under test."""
    with Outside(postgres_url) as outside:
        yield outside


@pytest.fixture
def hole(postgres: Databases) -> Iterator[Blackhole]:
    """What stands before the shared server, and may let nothing through."""
    with Blackhole.before(postgres.url) as hole:
        yield hole


@pytest.fixture(scope="session")
def _mortal_postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_postgres(_mortal_postgres: PostgresServer) -> PostgresServer:
    """A running server for the test alone, to kill, freeze or stop, and to leave as it is then."""
    _mortal_postgres.revive()  # some 20 ms after a kill, where a new server takes half a second
    return _mortal_postgres


@pytest.fixture(scope="session")
def cassandra_installed() -> None:
    """For tests that start a `CassandraServer` themselves: skip them where none can run, and fail them in CI."""
    if not is_there():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)


@pytest.fixture(scope="session")
def cassandra(request: pytest.FixtureRequest) -> Iterator[Keyspaces]:
    """The Cassandra that all tests share: for those that leave it running. It starts with the first that asks."""
    if url := os.environ.get(CASSANDRA):
        with Keyspaces(url) as keyspaces:
            yield keyspaces
    else:
        request.getfixturevalue("cassandra_installed")
        with CassandraServer() as server, Keyspaces(server.url()) as keyspaces:
            yield keyspaces


@pytest.fixture
def cassandra_url(cassandra: Keyspaces) -> Iterator[str]:
    """The URL of a keyspace of the test's own on the shared server; it is not there yet."""
    with cassandra.new() as url:
        yield url


@pytest.fixture(scope="session")
def _mortal_cassandra(cassandra_installed: None) -> Iterator[CassandraServer]:
    with CassandraServer() as server:
        yield server


@pytest.fixture
def own_cassandra(_mortal_cassandra: CassandraServer) -> CassandraServer:
    """A running server for the test alone, to kill, freeze or stop, and to leave as it is then."""
    _mortal_cassandra.revive()
    return _mortal_cassandra


@pytest.fixture(scope="session")
def _cassandra_nodes(cassandra_installed: None) -> Iterator[CassandraCluster]:
    with CassandraCluster() as cluster:
        yield cluster


@pytest.fixture
def cassandra_cluster(_cassandra_nodes: CassandraCluster) -> CassandraCluster:
    """Three nodes that know each other, for the test alone: to kill, freeze or stop, and to leave as they are then.

    For tests marked ``cluster``, which `make test-cluster` runs.
    """
    _cassandra_nodes.revive()
    return _cassandra_nodes


@pytest.fixture(scope="session")
def prometheus_installed() -> None:
    """For tests that run promtool or a `PrometheusServer`: skip them where there is none, and fail them in CI."""
    if not prometheus_is_there():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_PROMETHEUS)
