"""Open and close the database: what is opened, in which order, and what is said when it cannot be.

Owns:      the path in a URL, and everything that stays open together.
Not here:  the facade (store.py).
Threads:   worker threads; opening and closing block.
"""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import unquote

from persistence.errors import CannotOpen
from persistence.sqlite.connection import connect, set_up_reader, set_up_writer, use_wal
from persistence.sqlite.lock import file_lock
from persistence.sqlite.presence import OpenFile
from persistence.sqlite.schema import STEPS, check_ours, migrate_to_latest, schema_version
from persistence.sqlite.writing import Writer
from persistence.versions import check_version

READERS = 3
"""Connections for reading: reads do not wait for writes, and one long read does not hold up the others."""
LOOK_TIMEOUT_S = 5.0
"""How long `version_of` waits for who opens the file, closes it as the last one, or migrates it."""

_VERSION_MIN = (3, 35)  # UPDATE .. RETURNING
_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: "; check that this user may write the file and its directory",
    sqlite3.SQLITE_READONLY: "; check that this user may write the file and its directory",
    sqlite3.SQLITE_NOTADB: "; give the path of a new file",
    sqlite3.SQLITE_BUSY: "; another process keeps it locked: stop that one",
    sqlite3.SQLITE_FULL: "; free some space",
}


def database_path(url: str) -> Path:
    """Return the absolute path that a ``sqlite:`` URL names.

    Raises:
        CannotOpen: with how the URL should be written.
    """
    location, _, query = url.partition("?")
    path = unquote(location.removeprefix("sqlite:///"))
    if not location.startswith("sqlite:///") or path in ("", ":memory:") or "\0" in path:
        raise CannotOpen(
            f"{url!r} names no file; write sqlite:///relative.db, sqlite:////absolute.db, or memory: to keep nothing"
        )
    if query:
        raise CannotOpen(f"{url!r}: a sqlite URL takes no parameters, and {query!r} follows the question mark")
    return Path(path).resolve()


class Database:
    """An open file: the writer, the readers and, if asked for, the lock. Closing blocks."""

    def __init__(self, file: OpenFile, writer: Writer, readers: list[sqlite3.Connection], opened: ExitStack) -> None:
        self.file = file
        self.writer = writer
        self.readers = readers
        self._opened = opened

    def close(self) -> None:
        """Close every connection; the last one that closes the file moves the log into it. No thread may use them."""
        self._opened.close()


def open_database(
    url: str, *, exclusive: bool, migrate: bool, busy_timeout_s: float, clock: Callable[[], int]
) -> Database:
    """Open the file that ``url`` names, created or upgraded if ``migrate``.

    Raises:
        CannotOpen: with the path, what is wrong and what to do.
    """
    if sqlite3.sqlite_version_info < _VERSION_MIN:
        raise CannotOpen(f"this Python has SQLite {sqlite3.sqlite_version}; 3.35 or later is needed")
    path = database_path(url)

    def connect_writer() -> sqlite3.Connection:
        return _connect_writer(path, migrate=migrate, busy_timeout_s=busy_timeout_s)

    try:
        _check_place(path, migrate=migrate)
        with ExitStack() as undo:
            if exclusive:
                undo.enter_context(file_lock(path))
            connection = undo.enter_context(closing(connect_writer()))
            file = OpenFile(path)  # not before: connecting may have made it
            writer = undo.enter_context(closing(Writer(connection, connect_writer, file, clock)))
            readers = []
            for _ in range(READERS):
                reader = undo.enter_context(closing(connect(path, create=False, busy_timeout_s=busy_timeout_s)))
                set_up_reader(reader)
                readers.append(reader)
            return Database(file, writer, readers, undo.pop_all())
    except sqlite3.Error as error:
        raise _cannot_open(path, error) from error
    except OSError as error:
        raise CannotOpen(f"{path}: {error.strerror}") from error


def version_of(url: str) -> int:
    """Return the version of the schema in the file that ``url`` names; 0 where there is none. Nothing is created.

    Raises:
        CannotOpen: the file is not ours, or of a later release.
    """
    path = database_path(url)
    if not path.exists():
        return 0
    try:
        with closing(connect(path, create=False, busy_timeout_s=LOOK_TIMEOUT_S)) as connection:
            check_ours(connection, path, migrate=True)  # it may be older
            return schema_version(connection)
    except sqlite3.Error as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: sqlite3.Error) -> CannotOpen:
    advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")
    return CannotOpen(f"{path}: {error}{advice}")


def _check_place(path: Path, *, migrate: bool) -> None:
    """Say in plain words what SQLite would call "unable to open database file"."""
    if path.is_dir():
        raise CannotOpen(f"{path} is a directory; name a file in it, such as {path / 'broker.db'}")
    if not path.parent.is_dir():
        raise CannotOpen(f"{path.parent} is not a directory; create it, or give another path")
    if not migrate and not path.exists():
        check_version(path, 0, len(STEPS), migrate=migrate)


def _connect_writer(path: Path, *, migrate: bool, busy_timeout_s: float) -> sqlite3.Connection:
    with ExitStack() as undo:
        connection = undo.enter_context(closing(connect(path, create=migrate, busy_timeout_s=busy_timeout_s)))
        check_ours(connection, path, migrate=migrate)
        if migrate:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
        use_wal(connection, path, busy_timeout_s=busy_timeout_s)
        set_up_writer(connection)
        if migrate:
            migrate_to_latest(connection)
            check_ours(connection, path, migrate=migrate)  # a later release may have come in between
        undo.pop_all()
        return connection
