"""A PostgreSQL database whose clock stands still until a test turns it.

Owns:      the schema ``turned``: a ``clock_timestamp()`` that is found before PostgreSQL's own, and its one row.
Not here:  the test's clock (contract/contract_kit.py), databases (postgres_databases.py).
Threads:   any, one at a time; turning is a round trip that waits for nobody.

What calls ``clock_timestamp()`` without naming a schema sees this clock, in every process that connects by the URL.
"""

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import psycopg
from postgres_databases import Databases

_SCHEMA = """
CREATE SCHEMA turned;
CREATE TABLE turned.clock (time timestamptz NOT NULL);
INSERT INTO turned.clock VALUES ('epoch');
CREATE FUNCTION turned.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE
    AS 'SELECT time FROM turned.clock';
"""
# in two parts, because an interval is multiplied as a float
_TURN = """
UPDATE turned.clock SET time = 'epoch'::timestamptz
    + %(s)s::bigint * interval '1 second' + %(us)s::bigint * interval '1 microsecond'
"""


class DatabaseClock:
    """The clock of a database. It says 1970 until it is turned."""

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self.url = url
        """Connections made by it see this clock."""
        self._connection = connection

    def turn(self, now_us: int) -> None:
        """Make it ``now_us`` microseconds since 1970; who asks later sees that."""
        seconds, microseconds = divmod(now_us, 1_000_000)
        self._connection.execute(_TURN, {"s": seconds, "us": microseconds})


@contextmanager
def turned_database(databases: Databases) -> Generator[DatabaseClock]:
    """A database with a clock to turn and nothing else, for the length of the block."""
    with databases.lend() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")  # what is turned need not be on disk
        connection.execute(_SCHEMA)
        options = quote("-csearch_path=turned,pg_catalog", safe="")
        assert not urlsplit(url).query, "TRIO_BROKER_TEST_POSTGRES must have no parameters"
        yield DatabaseClock(f"{url}?options={options}", connection)
