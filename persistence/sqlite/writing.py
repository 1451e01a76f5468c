"""The one connection that writes, and what is written with it.

Owns:      transactions: all of a batch or nothing, and a connection that is usable again after any failure.
Not here:  sweeping (sweeping.py), who may write when (store.py).
Threads:   worker threads, one at a time; each method blocks, for a lock of another process at most the busy timeout.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

from persistence.errors import CannotOpen, StoreUnavailable
from persistence.facade import Appended, Duplicate, NewMessage, Outcome
from persistence.guards import judge, key_kept_s, keys_of, sort_out
from persistence.headers import encode_headers
from persistence.sqlite.connection import commit_failure, failure
from persistence.sqlite.presence import OpenFile

EXPIRATION_MAX_S = 2**31 - 1
"""What fits the wire's int32: 68 years."""

# One statement for new and known subjects. Remembering the ids of subjects was no faster (measured).
_NEXT_IDS = """
    INSERT INTO subjects (name, last_id, last_time_us) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE
    SET last_id = last_id + excluded.last_id, last_time_us = max(last_time_us, excluded.last_time_us), listed = 1
    RETURNING id, last_id, last_time_us
"""
_MESSAGES = "INSERT INTO messages (subject_id, id, time_us, expires_us, headers, body) VALUES "
_KEYS = "REPLACE INTO keys (subject_id, key, id, time_us, expires_us) VALUES "  # what is there has expired
_SUBJECT = "SELECT id, last_id, last_time_us FROM subjects WHERE name = ?"
_KNOWN = "SELECT key, id, time_us FROM keys WHERE subject_id = ? AND (expires_us IS NULL OR expires_us > ?) AND key IN "
_ROWS_MAX = 512
_ROWS_EXACT = 64
_ROWS_STEP = 16
_appended = partial(tuple.__new__, Appended)  # at half the cost of Appended(...)
_Value = int | str | bytes | None
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
        outcomes, places, guarded = sort_out(batch, EXPIRATION_MAX_S)
        if not places:
            return outcomes
        with self.transaction() as connection:
            now_us = self._clock()
            for subject in guarded & places.keys():
                places[subject] = _let_pass(connection, subject, batch, places[subject], outcomes, now_us)
                if not places[subject]:
                    del places[subject]
            rows: list[_Value] = []
            keys: list[_Value] = []
            for subject, mine in places.items():
                ((subject_id, last_id, time_us),) = connection.execute(_NEXT_IDS, (subject, len(mine), now_us))
                kept_s: int | None = None  # the last expiration seen, as most are the same
                expires_us: int | None = None
                for id_, place in enumerate(mine, last_id - len(mine) + 1):
                    outcomes[place] = _appended((id_, time_us))
                    _, body, expiration_s, headers, key, _, _ = batch[place]
                    if expiration_s != 0:
                        if expiration_s != kept_s:
                            kept_s, expires_us = expiration_s, _after(time_us, expiration_s)
                        encoded = encode_headers(headers) if headers else None
                        rows += (subject_id, id_, time_us, expires_us, encoded, body)
                    if key:
                        keys += (subject_id, key, id_, time_us, _after(time_us, key_kept_s(expiration_s)))
            insert_messages(connection, rows)
            _insert(connection, _KEYS, 5, keys)
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


def _let_pass(
    connection: sqlite3.Connection,
    subject: str,
    batch: Sequence[NewMessage],
    places: Sequence[int],
    outcomes: list[Outcome],
    now_us: int,
) -> list[int]:
    """Judge what has a key or expects a last id, and its neighbours; return the places of what is to be appended."""
    messages = [batch[place] for place in places]
    row = connection.execute(_SUBJECT, (subject,)).fetchone()
    subject_id, last_id, last_time_us = row or (0, 0, 0)
    known = _known(connection, subject_id, keys_of(messages), now_us) if row else {}
    judged = judge(messages, last_id, max(last_time_us, now_us), known)
    for place, outcome in zip(places, judged, strict=True):
        outcomes[place] = outcome
    return [place for place in places if isinstance(outcomes[place], Appended)]


def _known(connection: sqlite3.Connection, subject_id: int, keys: Sequence[str], now_us: int) -> dict[str, Duplicate]:
    """Return what was appended with keys that are remembered."""
    known: dict[str, Duplicate] = {}
    for start in range(0, len(keys), _ROWS_EXACT):
        some = keys[start : start + _ROWS_EXACT]
        found = connection.execute(f"{_KNOWN}{_row(len(some))}", (subject_id, now_us, *some))
        known.update((key, Duplicate(id_, time_us)) for key, id_, time_us in found)
    return known


def _after(time_us: int, seconds: int | None) -> int | None:
    return None if seconds is None else time_us + seconds * 1_000_000


def insert_messages(connection: sqlite3.Connection, values: Sequence[_Value]) -> None:
    """Insert messages: the subject's row, id, time, expiry, encoded headers and body of each, one after another."""
    _insert(connection, _MESSAGES, 6, values)


def _insert(connection: sqlite3.Connection, statement: str, columns: int, values: Sequence[_Value]) -> None:
    """Insert the rows whose columns ``values`` lists one after another.

    Each statement gives up the interpreter's lock once, and gets it back only when the trio thread lets go: few
    statements matter more than short ones. ``executemany`` does so for every row: a third slower.
    """
    start = 0
    while rows := (len(values) - start) // columns:
        if rows > _ROWS_EXACT:  # the connection keeps up to 128 statements prepared: not too many different ones
            rows = min(_ROWS_MAX, rows // _ROWS_STEP * _ROWS_STEP)
        stop = start + rows * columns
        connection.execute(_with_rows(statement, rows, columns), values[start:stop])
        start = stop


@cache  # as many as there are numbers of rows that `_insert` makes, 92, for each table
def _with_rows(statement: str, rows: int, columns: int) -> str:
    return statement + ", ".join([_row(columns)] * rows)


def _row(columns: int) -> str:
    return f"({', '.join('?' * columns)})"
