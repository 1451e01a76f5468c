"""The proxy that tests of lost connections rely on."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from blackhole import Blackhole
from postgres_databases import Databases


@pytest.fixture
def connection(hole: Blackhole, postgres_url: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(hole.through(postgres_url), autocommit=True)) as connection:
        connection.execute("CREATE TABLE told (n int)")
        yield connection


def send(connection: psycopg.Connection, statement: bytes) -> None:
    connection.pgconn.send_query(statement)
    connection.pgconn.flush()


def answer(connection: psycopg.Connection) -> psycopg.pq.abc.PGresult:
    """Wait for the answer; by itself libpq would wait holding the GIL, and the proxy needs that."""
    while not is_answered(connection):
        select.select([connection], [], [])
    return connection.pgconn.get_result()


def is_answered(connection: psycopg.Connection) -> bool:
    connection.pgconn.consume_input()
    return not connection.pgconn.is_busy()


def test_what_is_held_comes_through_later(hole: Blackhole, connection: psycopg.Connection, postgres_url: str) -> None:
    hole.hold()
    send(connection, b"INSERT INTO told VALUES (1)")
    hole.wait_request_held()
    with psycopg.connect(postgres_url) as beside:
        assert beside.execute("SELECT count(*) FROM told").fetchone() == (0,)
    assert not is_answered(connection)
    hole.release()
    assert answer(connection).command_tuples == 1


def test_a_commit_whose_answer_is_lost(hole: Blackhole, connection: psycopg.Connection, postgres_url: str) -> None:
    hole.hold_replies()
    send(connection, b"INSERT INTO told VALUES (1)")
    hole.wait_reply_held()
    assert not is_answered(connection)
    hole.cut()
    hole.release()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with psycopg.connect(hole.through(postgres_url)) as again:
        assert again.execute("SELECT count(*) FROM told").fetchone() == (1,)


def test_a_new_connection_waits_as_long_as_it_is_held(hole: Blackhole, postgres_url: str) -> None:
    hole.hold()
    connecting = psycopg.pq.PGconn.connect_start(hole.through(postgres_url).encode())
    hole.wait_request_held()
    assert hole.connections() == 1
    hole.cut()
    connecting.finish()
    hole.release()
    with psycopg.connect(hole.through(postgres_url)):
        pass


def test_what_is_slow_takes_the_latency_each_way(hole: Blackhole, connection: psycopg.Connection) -> None:
    hole.slow(0.2)
    began = time.monotonic()
    connection.execute("SELECT 1")
    assert time.monotonic() - began >= 0.4
    hole.slow()
    began = time.monotonic()
    connection.execute("SELECT 1")
    assert time.monotonic() - began < 0.4


def test_no_more_comes_through_than_is_allowed(hole: Blackhole, connection: psycopg.Connection) -> None:
    hole.slow(bytes_per_s=100_000)
    began = time.monotonic()
    connection.execute("SELECT repeat('x', 50000)")
    assert time.monotonic() - began >= 0.5


def test_a_connection_that_is_reset(hole: Blackhole) -> None:
    hole.hold()
    with socket.create_connection(("127.0.0.1", hole.port)) as client:
        client.sendall(b"anything")
        hole.wait_request_held()
        hole.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_is_abandoned_is_told_nothing_and_the_server_sees_it_gone(
    hole: Blackhole, connection: psycopg.Connection, postgres: Databases, postgres_url: str
) -> None:
    hole.abandon()
    while postgres.backends(postgres_url):
        pass
    send(connection, b"SELECT 1")
    assert not is_answered(connection)
    assert hole.connections() == 1
    with psycopg.connect(hole.through(postgres_url)):
        pass
    hole.cut()
    with pytest.raises(psycopg.OperationalError):
        answer(connection)


def test_leaving_ends_what_is_held(postgres: Databases) -> None:
    with Blackhole.before(postgres.url) as hole:
        connection = psycopg.connect(hole.through(postgres.url), autocommit=True)
        hole.hold()
        send(connection, b"SELECT 1")
        hole.wait_request_held()
    with pytest.raises(psycopg.OperationalError):
        connection.pgconn.consume_input()
    connection.close()
