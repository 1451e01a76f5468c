"""Sweeping beside a transaction that stays open, such as a backup: vacuum cannot clear away what was dropped."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from postgres_clock import DatabaseClock, turned_database
from postgres_databases import Databases

from persistence import Swept
from persistence.postgres import schema
from persistence.postgres.connection import Address, Connection
from persistence.postgres.patience import Patience
from persistence.postgres.sweeping import MESSAGES_MAX, SWEEPING, WHOLE_INTERVAL_S, Sweeper

SECOND_US = 1_000_000
START_US = 1_700_000_000 * SECOND_US


class Elapsed:
    """The clock of this process, as a `Sweeper` reads it."""

    s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock(postgres: Databases) -> Iterator[DatabaseClock]:
    with turned_database(postgres) as clock:
        clock.turn(START_US)
        with connected(clock) as connection:
            schema.migrate_to_latest(connection)
        yield clock


@contextmanager
def connected(clock: DatabaseClock) -> Generator[Connection]:
    with closing(Address(clock.url, 10).connect(Patience(10))) as connection:
        connection.patience = Patience(30)
        yield connection


def append(connection: Connection, first_id: int, count: int, expires_s: float) -> None:
    """Put rows into the table that expire so long after `START_US`."""
    connection.execute(
        "INSERT INTO trio_broker.messages (subject_id, id, published_at, expires_at, body)"
        " SELECT 1, id, clock_timestamp(), to_timestamp(%s), '' FROM generate_series(%s::int, %s::int) AS id",
        [START_US / SECOND_US + expires_s, first_id, first_id + count - 1],
    )


def ids(connection: Connection) -> list[int]:
    return [id_ for (id_,) in connection.execute("SELECT id FROM trio_broker.messages ORDER BY id")]


def test_a_step_does_not_walk_over_what_those_before_it_dropped(clock: DatabaseClock) -> None:
    steps = 6
    with connected(clock) as connection, psycopg.connect(clock.url) as backup:
        for step in range(steps):
            append(connection, 1 + step * MESSAGES_MAX, MESSAGES_MAX, step)
        backup.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        backup.execute("SELECT")
        clock.turn(START_US + steps * SECOND_US)
        sweeper = Sweeper()
        for _ in range(steps):
            assert sweeper.sweep(connection) == Swept(MESSAGES_MAX, more=True)
        assert sweeper.sweep(connection) == Swept(0, more=False)
    with connected(clock) as connection:  # a session tells what it has read when it ends
        entries = connection.execute(
            "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'messages_expiry'"
        ).fetchall()
    assert entries[0][0] <= 2 * steps * MESSAGES_MAX


def test_what_was_committed_after_its_expiry_is_dropped_once_in_a_while(clock: DatabaseClock) -> None:
    elapsed = Elapsed()
    with connected(clock) as connection:
        sweeper = Sweeper(elapsed)
        clock.turn(START_US + 10 * SECOND_US)
        assert sweeper.sweep(connection) == Swept(0, more=False)
        append(connection, 1, 1, 9)
        append(connection, 2, 1, 10)
        assert sweeper.sweep(connection) == Swept(1, more=False)
        assert ids(connection) == [1]
        elapsed.s = WHOLE_INTERVAL_S
        assert sweeper.sweep(connection) == Swept(1, more=False)
        assert ids(connection) == []


def test_when_the_oldest_cannot_be_reached_in_time_newer_ones_are_dropped(clock: DatabaseClock) -> None:
    elapsed = Elapsed()
    with connected(clock) as connection:
        append(connection, 1, 1, -WHOLE_INTERVAL_S)
        append(connection, 2, 1, 9)
        clock.turn(START_US + 10 * SECOND_US)
        sweeper = Sweeper(elapsed)
        with psycopg.connect(clock.url) as other:
            other.execute("LOCK TABLE trio_broker.messages")
            connection.execute("SET statement_timeout = 50")
            assert sweeper.sweep(connection) == Swept(0, more=True)
            with pytest.raises(psycopg.errors.QueryCanceled):  # that one is not about the oldest
                sweeper.sweep(connection)
        connection.execute("SET statement_timeout = 0")
        assert sweeper.sweep(connection) == Swept(1, more=False)
        assert ids(connection) == [1]
        elapsed.s = WHOLE_INTERVAL_S
        assert sweeper.sweep(connection) == Swept(1, more=False)


def test_one_that_waits_for_its_turn_forgets_nothing(clock: DatabaseClock) -> None:
    with connected(clock) as connection:
        append(connection, 1, 1, 1)
        clock.turn(START_US + SECOND_US)
        sweeper = Sweeper()
        with psycopg.connect(clock.url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s)", [SWEEPING])
            assert sweeper.sweep(connection) == Swept(0, more=False)
        assert sweeper.sweep(connection) == Swept(1, more=False)
