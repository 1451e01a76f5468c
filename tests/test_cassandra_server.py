"""The tests' own Cassandra does what tests of failures rely on."""

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cassandra import InvalidRequest, Unauthorized
from cassandra.cluster import NoHostAvailable, Session
from cassandra_keyspaces import Keyspaces, connected, keyspace_of
from cassandra_server import SAFETY_S, CassandraServer


def make_keyspace(session: Session, url: str) -> None:
    replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}"
    session.execute(f"CREATE KEYSPACE {keyspace_of(url)} WITH replication = {replication}")
    session.set_keyspace(keyspace_of(url))
    session.execute("CREATE TABLE kept (n int PRIMARY KEY)")


def test_what_was_acknowledged_outlives_a_kill_and_the_port_stays(own_cassandra: CassandraServer) -> None:
    url = own_cassandra.url("outlives_a_kill")
    with connected(url) as session:
        make_keyspace(session, url)
        for n in range(100):
            session.execute("INSERT INTO kept (n) VALUES (%s) IF NOT EXISTS", [n])
        own_cassandra.kill9()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own_cassandra.address, own_cassandra.ports.cql))
    own_cassandra.restart()
    with connected(url) as session:
        assert session.execute(f"SELECT count(*) FROM {keyspace_of(url)}.kept").one() == (100,)


def test_a_frozen_server_answers_when_it_goes_on(own_cassandra: CassandraServer) -> None:
    with connected(own_cassandra.url()) as session:
        with own_cassandra.frozen():
            asked = session.execute_async("SELECT cluster_name FROM system.local")
            own_cassandra.freeze()  # twice is once
            assert psutil.Process(own_cassandra.pid).status() == psutil.STATUS_STOPPED
        assert asked.result().one() == ("trio-broker-tests",)


def test_it_listens_on_its_own_address_only(own_cassandra: CassandraServer) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(own_cassandra.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert sorted(listening) == sorted(
        [("127.0.0.1", port) for port in (own_cassandra.ports.cql, own_cassandra.ports.storage)]
    )


def test_a_stopped_server_starts_again_and_a_frozen_one_can_be_killed(own_cassandra: CassandraServer) -> None:
    own_cassandra.restart()
    own_cassandra.freeze()
    own_cassandra.kill9()


@pytest.mark.usefixtures("cassandra_installed")
def test_it_ends_and_leaves_nothing_when_the_tests_are_killed() -> None:
    program = (
        "from cassandra_server import *; server = CassandraServer().__enter__(); server.freeze();"
        "print(server.pid, server.directory, flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    here = Path(__file__).parent
    with subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        pid, directory = tests.stdout.readline().split()
        server = psutil.Process(int(pid))
        watch = next(process for process in psutil.Process(tests.pid).children() if process.name() == "sh")
        tests.kill()
    server.wait(SAFETY_S)
    watch.wait(SAFETY_S)
    assert not Path(directory).exists()


@pytest.mark.usefixtures("cassandra_installed")
def test_settings_decide_what_is_synced_and_who_is_let_in() -> None:
    rights = {"authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer"}
    with CassandraServer(commitlog_sync="periodic", **rights) as server, Keyspaces(server.url()) as keyspaces:
        assert setting(keyspaces, "commitlog_sync") == "periodic"
        assert setting(keyspaces, "commitlog_sync_period") == "10s"
        keyspaces.execute("CREATE ROLE joe WITH PASSWORD = 'right' AND LOGIN = true")
        url = server.url("joes").replace("cassandra:cassandra", "joe:right")
        with connected(url) as session, pytest.raises(Unauthorized):
            make_keyspace(session, url)
        with pytest.raises(NoHostAvailable, match="Bad credentials"), connected(url.replace("right", "wrong")):
            pass


def test_it_keeps_what_it_acknowledges(own_cassandra: CassandraServer) -> None:
    with Keyspaces(own_cassandra.url()) as keyspaces:
        assert setting(keyspaces, "commitlog_sync") == "batch"


def test_keyspaces_are_dropped_and_those_lent_are_emptied(cassandra: Keyspaces) -> None:
    with cassandra.new() as url, connected(url) as session:
        make_keyspace(session, url)
    with connected(url) as session, pytest.raises(InvalidRequest, match="does not exist"):
        session.set_keyspace(keyspace_of(url))

    with Keyspaces(cassandra.url) as keyspaces:
        with keyspaces.lend() as lent, connected(lent) as session:
            make_keyspace(session, lent)
            session.execute("INSERT INTO kept (n) VALUES (1) IF NOT EXISTS")
        with keyspaces.lend() as again, connected(again) as session, keyspaces.lend() as another:
            assert again == lent != another
            session.set_keyspace(keyspace_of(again))
            assert session.execute("SELECT * FROM kept").all() == []
            assert session.execute("INSERT INTO kept (n) VALUES (1) IF NOT EXISTS").was_applied


def setting(keyspaces: Keyspaces, name: str) -> str:
    ((value,),) = keyspaces.execute("SELECT value FROM system_views.settings WHERE name = %s", name)
    return value
