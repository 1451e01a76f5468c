"""Connections: how they are made, how long they are waited on, what their errors mean.

Owns:      `Address`, which alone knows a password; `Connection`; `failure`.
Not here:  statements (reading.py, flush.py and others), who uses which connection when (pool.py, writing.py).
Threads:   worker threads; everything blocks, for as long as the connection's `Patience` lasts. A connection moves
           between threads, one at a time.

A session has one setting of ours, statement_timeout, and no state that is needed to be right: between us and the
database there may be a pooler that gives each transaction another session.
"""

import math
import re
import select
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeGuard, cast

import psycopg
import trio
from psycopg import generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap, Buffer, Loader
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from persistence.errors import BadContent, CannotOpen, StoreError, StoreFull, StoreUnavailable
from persistence.postgres.patience import LOOK_UP_S, OutOfPatience, Patience, R

CONNECT_TIMEOUT_S = 5
STOP_TIMEOUT_S = 1.0
"""How long a statement that nobody waits for any more may take to stop, before its connection is closed."""
SERVER_SHARE = 0.8
"""The server ends a statement a little before we stop waiting for it, so that we hear what became of it."""

_DEFAULTS: Mapping[str, str | int] = {
    "fallback_application_name": "trio-broker",
    "connect_timeout": CONNECT_TIMEOUT_S,
    # an idle connection whose other end is gone without a word is noticed after 25 s
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
_DISK_FULL = "53100"
_OF_CONTENT = ("22", "23", "44", "P0")
"""Classes of SQLSTATE that blame what was written."""
_OF_THE_SERVER = ("08", "25", "40", "53", "55", "57", "58")
"""Classes that blame no message, whoever raises them. All others do if a function does, such as somebody's trigger."""
_REASON_MAX = 500
"""Characters: a trigger may quote what it refuses, and texts travel in headers."""
_PREAMBLE = re.compile(r"^connection (failed|is bad): (connection to server .*? failed: )?(FATAL: +)?")
EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts from 2000-01-01 UTC."""


def unix_us(timestamp: int) -> int:
    """Return a timestamp of PostgreSQL as microseconds since 1970-01-01 UTC."""
    return timestamp + EPOCH_US


class _TimestampLoader(Loader):
    format = pq.Format.BINARY

    def load(self, data: Buffer) -> int:
        return unix_us(int.from_bytes(data, signed=True))


_NUMBER_LOADER = cast("type[Loader]", psycopg.adapters.get_loader(psycopg.adapters.types["int8"].oid, pq.Format.BINARY))
ADAPTERS = AdaptersMap(psycopg.adapters)
ADAPTERS.register_loader("timestamptz", _TimestampLoader)  # exact, also beyond the year 9999, and quicker


class Address:
    """Where the database is. Its ``str`` is for texts, and holds no password."""

    def __init__(self, url: str, statement_timeout_s: float) -> None:
        """Read a URL as libpq does.

        Raises:
            CannotOpen: with what is wrong, and never with the URL: libpq's own text may quote the password.
        """
        try:
            given = {**_DEFAULTS, **conninfo_to_dict(url)}
            self._connect_timeout_s = timeout_from_conninfo(given)
        except psycopg.ProgrammingError as error:
            unknown = re.match(r'invalid URI query parameter: "\w*"', str(error))
            why = unknown[0] if unknown else "write postgresql://user:password@host:5432/database"
            raise CannotOpen(f"the PostgreSQL URL cannot be read: {why}") from None
        self.statement_timeout_s = statement_timeout_s
        """How long one statement is waited for."""
        self.parameters: dict[str, Any] = {
            "tcp_user_timeout": math.ceil(statement_timeout_s * 1000),
            **given,
            "client_encoding": "UTF8",
            "autocommit": True,
            "context": ADAPTERS,
        }
        hosts = str(given.get("host") or given.get("hostaddr") or "localhost").split(",")
        all_ports = str(given.get("port") or 5432).split(",")
        if "@" in f"{hosts}{given.get('dbname')}" or not all((port or "0").isdecimal() for port in all_ports):
            raise CannotOpen(
                "the PostgreSQL URL cannot be read: in user and password write %40 for @, %2F for / and %3A for :"
            )
        if len(hosts) > 1:
            self.parameters.setdefault("target_session_attrs", "read-write")  # after a failover: the new primary
            self._connect_timeout_s = max(2, self._connect_timeout_s // len(hosts))  # libpq's is for each host
        ports = cycle(all_ports)  # one for all, or one for each
        places = ",".join(f"{host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False))
        self._name = f"PostgreSQL at {places}/{given.get('dbname') or given.get('user') or ''}"

    def __str__(self) -> str:
        return self._name

    def connect(self, patience: Patience) -> "Connection":
        """Connect, and set the session up."""
        patience.check()
        timeout_s = min(self._connect_timeout_s, math.ceil(patience.left_s()))  # taken as 2 s if it is less
        connection = Connection.connect(**{**self.parameters, "connect_timeout": timeout_s})
        try:
            self.set_up(connection, patience)
        except BaseException:
            connection.close()
            raise
        return connection

    def set_up(self, connection: "Connection", patience: Patience) -> None:
        """Bound what the server does for a connection, in case we cannot tell it to stop; undo a role's own settings.

        Raises:
            psycopg.OperationalError: it is a read replica, which may lack what was acknowledged.
        """
        connection.patience = patience
        if connection.is_of_replica():
            raise psycopg.OperationalError("it is a read replica")
        connection.statement_timeout_ms = math.ceil(self.statement_timeout_s * SERVER_SHARE * 1000)
        connection.execute(
            f"SET statement_timeout = {connection.statement_timeout_ms}; SET lock_timeout = 0;"
            "SET default_transaction_isolation = 'read committed';"
            "SET client_min_messages = warning"  # one of them says that a standby was not waited for
        )


class Connection(psycopg.Connection[TupleRow]):
    """A connection that is waited on only as long as its `Patience` lasts. Made by `Address`."""

    patience: Patience
    statement_timeout_ms: int

    def is_of_replica(self) -> bool:
        """Say whether the server is a read replica."""
        told = self.pgconn.parameter_status(b"in_hot_standby")  # from version 14 on, without asking
        if told is None:
            return self.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        return told == b"on"

    def is_silent(self) -> bool:
        """Say whether nothing has come while the connection was idle. What comes is its end, as a rule."""
        if self.closed:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def ask(
        self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = (), *, raw_times: bool = False
    ) -> list[TupleRow]:
        """Return the rows of a statement that changes nothing: one round trip.

        The server ends it when our patience does, if that is sooner than usual: we may be gone by then.

        ``raw_times``: timestamps are as PostgreSQL has them, for `unix_us`. Of many rows that is quicker.
        """
        cursor = self.cursor(binary=True)
        if raw_times:
            cursor.adapters.register_loader("timestamptz", _NUMBER_LOADER)
        timeout_ms = max(1, math.ceil(self.patience.left_s() * 1000))
        if timeout_ms >= self.statement_timeout_ms:
            return cursor.execute(statement, parameters).fetchall()
        with self.pipeline():
            self.execute("BEGIN")
            self.execute(f"SET LOCAL statement_timeout = {timeout_ms}")
            cursor.execute(statement, parameters)
            self.execute("COMMIT")
        return cursor.fetchall()

    def results(self) -> list[PGresult]:
        """Return all results of what was sent at the level of libpq, once the server is done with it.

        Raises:
            psycopg.Error: one of them is an error, or the connection was lost.
            OutOfPatience: the server is still at it.
        """
        found: list[PGresult] = super().wait(self.patience.watch(generators.execute(self.pgconn)), LOOK_UP_S)
        for result in found:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
        return found

    def wait(self, gen: PQGen[R], *_how_long: float | None, **_or_else: float | None) -> R:
        """Wait for what psycopg has sent, as long as we have patience; then stop it on the server."""
        try:
            return super().wait(self.patience.watch(gen), LOOK_UP_S)
        except (OutOfPatience, trio.Cancelled):
            self._stop(gen)
            raise

    def _stop(self, steps: PQGen[R]) -> None:
        """Let a statement end before its time, so that the connection can be used again; close it if that fails."""
        self.patience = Patience(STOP_TIMEOUT_S)
        try:
            self.cancel_safe(timeout=STOP_TIMEOUT_S)
            super().wait(self.patience.watch(steps), LOOK_UP_S)
        except psycopg.errors.QueryCanceled:
            pass  # as it was told to
        except (psycopg.Error, OutOfPatience):
            self.close()


def is_undone(error: BaseException) -> TypeGuard[psycopg.Error]:
    """Say whether the server answered that the statement failed. Else it is unknown what became of it."""
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"


def failure(error: psycopg.Error | OutOfPatience, address: Address) -> StoreError:
    """Say what an error means when everything that the statement did is undone, or it did nothing.

    A misuse of psycopg goes on up: it is a bug of ours. The text has no details that the server gives: they quote rows.
    """
    if isinstance(error, OutOfPatience):
        return StoreUnavailable(f"{address}: {error}")
    sqlstate = error.sqlstate
    if sqlstate is None and not isinstance(error, psycopg.OperationalError):
        raise error
    if _is_of_content(error):
        return BadContent(reason(error))
    kind = StoreFull if sqlstate == _DISK_FULL else StoreUnavailable
    return kind(f"{address}: {reason(error)}")


def _is_of_content(error: psycopg.Error) -> bool:
    kind = (error.sqlstate or "08")[:2]
    context = error.diag.context or ""
    by_a_function = bool(context) and not context.startswith("while ")  # such as "while locking tuple"
    return kind in _OF_CONTENT or (by_a_function and kind not in _OF_THE_SERVER)


def reason(error: psycopg.Error) -> str:
    """Return what the server or libpq says, in one line."""
    if error.sqlstate is not None:
        return f"{(error.diag.message_primary or '')[:_REASON_MAX]} (SQLSTATE {error.sqlstate})"
    return _PREAMBLE.sub("", str(error)).partition("\n")[0]
