"""A connection to the file: its settings, and what its errors mean.

Owns:      the durability of a commit (synchronous=FULL), how long a lock is waited for, the size of the log file.
Not here:  transactions (reading.py, writing.py), who may use a connection when (store.py).
Threads:   worker threads; each function blocks. A connection moves between threads, one at a time.
"""

import sqlite3
import time
from pathlib import Path

from persistence.errors import BadContent, CannotOpen, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable

WAL_PAGES = 4_000
"""Pages (of 4 KiB) in the log file at which a commit also checkpoints."""
WAL_KEPT_BYTES = 32 * 1024 * 1024
"""The log file is cut back to this when it starts again from the beginning."""


class Locked(StoreUnavailable):
    """Another process has the file locked for writing, and kept it so for as long as was waited."""


_ERRORS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: Locked,
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_IOERR_SHMSIZE: StoreFull,  # no space for the index of the log file
    sqlite3.SQLITE_CONSTRAINT: BadContent,  # also a trigger's RAISE
    sqlite3.SQLITE_TOOBIG: BadContent,
    sqlite3.SQLITE_MISMATCH: BadContent,
}
_NOT_COMMITTED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT)
"""Errors of COMMIT after which the commit record was certainly not written."""


def connect(path: Path, *, create: bool, busy_timeout_s: float) -> sqlite3.Connection:
    """Connect to the file at the absolute ``path``; wait ``busy_timeout_s`` for locks of other processes."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,  # we say BEGIN and COMMIT
        check_same_thread=False,
    )


def set_up_writer(connection: sqlite3.Connection) -> None:
    """Make every commit durable, and free space cheaply."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    connection.execute("PRAGMA secure_delete = OFF")  # Debian's default overwrites what is deleted: ten times slower


def set_up_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")


def use_wal(connection: sqlite3.Connection, path: Path, *, busy_timeout_s: float) -> None:
    """Switch the file to a write-ahead log: readers and the writer then do not wait for each other.

    Raises:
        CannotOpen: the file system cannot do it.
    """
    deadline = time.monotonic() + busy_timeout_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # two processes that switch at once: SQLite answers BUSY without waiting, lest they deadlock
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise CannotOpen(f"{path} is on a file system without shared memory (a network share?); use a local disk")


def failure(error: sqlite3.Error, path: Path) -> StoreError:
    """Say what an error means when everything done since BEGIN is undone. An error of our own making goes on up."""
    code = _code(error)
    kind = _ERRORS.get(code) or _ERRORS.get(code & 0xFF) or StoreUnavailable
    return kind(f"{path}: {error} ({error.sqlite_errorname})")


def commit_failure(error: sqlite3.Error, path: Path) -> StoreError:
    """Say what an error of COMMIT means.

    After an I/O error the commit record may be in the log file: should the machine stop before the next commit
    overwrites it, it would count.
    """
    if _code(error) & 0xFF in _NOT_COMMITTED:
        return failure(error, path)
    return OutcomeUnknown(f"{path}: {error} ({error.sqlite_errorname}) while committing")


def _code(error: sqlite3.Error) -> int:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the sqlite3 module itself: a bug of ours, not the database's answer
        raise error
    return code
