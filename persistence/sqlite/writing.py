"""The one connection that writes, and what is written with it.

Owns:      transactions: all of a batch or nothing, and a connection that is usable again after any failure.
Not here:  sweeping (sweeping.py), who may write when (store.py).
Threads:   worker threads, one at a time; each method blocks, for a lock of another process at most the busy timeout.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from persistence.errors import CannotOpen, StoreUnavailable
from persistence.facade import Appended, NewMessage, Outcome, Rejected
from persistence.headers import encode_headers
from persistence.sqlite.connection import commit_failure, failure
from persistence.sqlite.presence import OpenFile

EXPIRATION_MAX_S = 2**31 - 1
"""What fits the wire's int32: 68 years."""

# One statement for new and known subjects. Remembering the ids of subjects was no faster (measured).
_NEXT_IDS = """
    INSERT INTO subjects (name, last_id, last_time_us) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE
    SET last_id = last_id + excluded.last_id, last_time_us = max(last_time_us, excluded.last_time_us)
    RETURNING id, last_id, last_time_us
"""
_INSERT = "INSERT INTO messages (subject_id, id, time_us, expires_us, headers, body) VALUES "
_COLUMNS = 6
_ROWS_MAX = 512
_ROWS_EXACT = 64
_ROWS_STEP = 16
_PENDING = Appended(0, 0)
_SET_REGISTER = """
    INSERT INTO registers (name, value, version) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value, version = excluded.version
"""


class Writer:
    """Everything that changes the file."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        reconnect: Callable[[], sqlite3.Connection],
        file: OpenFile,
        clock: Callable[[], int],
    ) -> None:
        self._connection: sqlite3.Connection | None = connection
        self._reconnect = reconnect
        self._file = file
        self._clock = clock

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        places: dict[str, list[int]] = {}
        for place, (subject, _, expiration_s, _) in enumerate(batch):
            outcomes.append(_PENDING)
            if expiration_s is None or 0 <= expiration_s <= EXPIRATION_MAX_S:
                places.setdefault(subject, []).append(place)
            else:
                outcomes[place] = Rejected(f"expiration {expiration_s} s is not within 0..{EXPIRATION_MAX_S} s")
        if not places:
            return outcomes
        with self.transaction() as connection:
            now_us = self._clock()
            rows: list[int | bytes | None] = []
            for subject, mine in places.items():
                ((subject_id, last_id, time_us),) = connection.execute(_NEXT_IDS, (subject, len(mine), now_us))
                for id_, place in enumerate(mine, last_id - len(mine) + 1):
                    outcomes[place] = Appended(id_, time_us)
                    _, body, expiration_s, headers = batch[place]
                    if expiration_s != 0:
                        expires_us = None if expiration_s is None else time_us + expiration_s * 1_000_000
                        rows += (subject_id, id_, time_us, expires_us, encode_headers(headers), body)
            _insert(connection, rows)
        return outcomes

    def compare_and_set(self, name: str, value: bytes, version: int) -> int | None:
        with self.transaction() as connection:
            found = connection.execute("SELECT version FROM registers WHERE name = ?", (name,)).fetchone()
            if (found[0] if found else 0) != version:
                return None
            ((next_version,),) = connection.execute("UPDATE register_versions SET last = last + 1 RETURNING last")
            connection.execute(_SET_REGISTER, (name, value, next_version))
        return int(next_version)

    def delete(self, name: str, version: int) -> bool:
        with self.transaction() as connection:
            deleted = connection.execute("DELETE FROM registers WHERE name = ? AND version = ?", (name, version))
        return deleted.rowcount == 1

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block does, or undo all of it and raise what the facade promises."""
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise commit_failure(error, self._file.path) from error

    @contextmanager
    def waiting_at_most(self, lock_wait_ms: int) -> Iterator[None]:
        """Wait no longer than that for a lock of another process, for the length of the block."""
        with self.connection() as connection:
            (usual_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
            connection.execute(f"PRAGMA busy_timeout = {lock_wait_ms}")
        try:
            yield
        finally:
            if self._connection is connection:  # else it broke, and was closed: the next one waits as usual
                connection.execute(f"PRAGMA busy_timeout = {usual_ms}")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection, without a transaction; errors are raised as the facade's.

        Refuses when the file was deleted or replaced: what is committed then would be gone after a restart.
        """
        self._file.check()  # also before it connects again, which could make a new file
        try:
            yield self._connected()
        except sqlite3.Error as error:
            raise failure(error, self._file.path) from error
        finally:
            self._undo()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = self._reconnect()
            except CannotOpen as error:
                raise StoreUnavailable(str(error)) from error
        return self._connection

    def _undo(self) -> None:
        """End a transaction that was not committed; a connection that cannot even do this is replaced."""
        if self._connection is None or not self._connection.in_transaction:
            return
        try:
            self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()


def _insert(connection: sqlite3.Connection, values: Sequence[int | bytes | None]) -> None:
    """Insert the rows whose columns ``values`` lists one after another.

    Each statement gives up the interpreter's lock once, and gets it back only when the trio thread lets go: few
    statements matter more than short ones. ``executemany`` does so for every row: a third slower.
    """
    start = 0
    while rows := (len(values) - start) // _COLUMNS:
        if rows > _ROWS_EXACT:  # the connection keeps up to 128 statements prepared: not too many different ones
            rows = min(_ROWS_MAX, rows // _ROWS_STEP * _ROWS_STEP)
        stop = start + rows * _COLUMNS
        connection.execute(_insert_statement(rows), values[start:stop])
        start = stop


@cache  # as many as there are numbers of rows that `_insert` makes: 92
def _insert_statement(rows: int) -> str:
    return _INSERT + ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)
