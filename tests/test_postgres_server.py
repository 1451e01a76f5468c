"""The tests' own PostgreSQL does what tests of failures rely on."""

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
from postgres_databases import Databases
from postgres_server import SAFETY_S, PostgresServer


def test_what_was_committed_outlives_a_kill_and_the_port_stays(own_postgres: PostgresServer) -> None:
    url = Databases(own_postgres.dsn()).create()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        own_postgres.kill9()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    own_postgres.restart()
    assert Databases(own_postgres.dsn()).execute("SELECT n FROM kept", url=url) == [(1,)]


def test_a_stopped_server_tells_its_clients(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.dsn(unix=True), autocommit=True) as connection:
        own_postgres.restart()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_a_frozen_server_answers_when_it_goes_on(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.dsn(), autocommit=True) as connection:
        with own_postgres.frozen():
            connection.pgconn.send_query(b"SELECT 1")
            connection.pgconn.flush()
            own_postgres.freeze()  # twice is once
        assert connection.pgconn.get_result().get_value(0, 0) == b"1"
        assert connection.pgconn.get_result() is None


def test_a_standby_follows_and_takes_writes_once_it_is_promoted() -> None:
    with PostgresServer() as primary, PostgresServer(standby_of=primary) as standby:
        with psycopg.connect(primary.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE told (n int)")
        with psycopg.connect(standby.dsn(), autocommit=True) as connection:
            while connection.execute("SELECT to_regclass('told')").fetchone() == (None,):
                pass
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("INSERT INTO told VALUES (1)")
            primary.kill9()
            standby.promote()
            connection.execute("INSERT INTO told VALUES (1)")


def test_a_frozen_server_can_be_killed_and_leaves_nothing() -> None:
    with PostgresServer() as server, psycopg.connect(server.dsn()):
        server.freeze()
        pids = [process.pid for process in psutil.Process(server.pid).children()]
        assert len(pids) >= 5
    assert not server.directory.exists()
    assert [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()] == []


def test_it_ends_when_the_tests_are_killed() -> None:
    program = "from postgres_server import *; s = PostgresServer().__enter__(); print(s.pid, flush=True); input()"
    command = [sys.executable, "-c", program]
    here = Path(__file__).parent
    with subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        server = psutil.Process(int(tests.stdout.readline()))
        tests.kill()
    server.wait(SAFETY_S)


def test_it_keeps_what_it_commits_as_a_users_server_does(postgres: Databases) -> None:
    assert postgres.execute("SHOW fsync") == [("on",)]
    assert postgres.execute("SHOW synchronous_commit") == [("on",)]


def test_roles_with_a_password_are_asked_for_it(own_postgres: PostgresServer) -> None:
    databases = Databases(own_postgres.dsn())
    url = databases.create_role(databases.create(), password="right?")
    with psycopg.connect(url):
        pass
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace("right", "wrong"))


def test_databases_are_dropped_with_their_connections(postgres: Databases) -> None:
    with postgres.new() as url:
        connection = psycopg.connect(url, autocommit=True)
        assert postgres.backends(url) == [connection.info.backend_pid]
        assert postgres.terminate(url) == 1
        assert postgres.backends(url) == []
        connection.close()
        connection = psycopg.connect(url)
    connection.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)
