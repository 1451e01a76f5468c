"""Copy a file that a broker is using into one that can be opened in its place.

Owns:      one snapshot, copied whole, checked, and only then under its name.
Not here:  when to do it, and where copies are kept (an operator); the copies of other stores (persistence/backup.py).
Threads:   worker threads; each function blocks.

The broker goes on meanwhile: a reader delays no writer in WAL mode. Its log file cannot start again from the beginning
until the copy is made, so it grows by what is appended meanwhile.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from persistence.errors import CannotOpen, StoreError
from persistence.sqlite.connection import connect, failure, set_up_reader
from persistence.sqlite.lock import lock_path
from persistence.sqlite.opening import database_path
from persistence.sqlite.schema import check_ours

PAGES_PER_STEP = 2_048
"""Pages (of 4 KiB) that are copied between two calls of ``between``."""
_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite may keep beside a file: parts of the database."""
LOCK_WAIT_S = 5.0
"""How long a lock of another process is waited for."""


def back_up(url: str, destination: Path, *, replace: bool, between: Callable[[], None]) -> int:
    """Copy the store at ``url`` to ``destination``; return the size of the copy in bytes.

    The copy has everything that was committed before this began. It is one file, readable by its owner only, and
    appears whole and synced to the disk, or not at all. ``between`` is called again and again while pages are copied;
    what it raises ends the copying.

    Raises:
        CannotOpen: there is no store of ours at ``url``, or ``destination`` cannot be written, or is there and
            ``replace`` is false.
        StoreFull: there is no space for the copy.
        StoreError: the copy is damaged, and the store it was made of may be, too.
    """
    source_path, destination = database_path(url), destination.absolute()
    _check_destination(source_path, destination, replace=replace)
    if not source_path.exists():
        raise CannotOpen(f"{source_path} does not exist: there is nothing to back up")
    try:
        partial = _new_file(destination)
        try:
            _copy(source_path, partial, between)
            _sync(partial)
            size_bytes = partial.stat().st_size
            _check_destination(source_path, destination, replace=replace)  # the copy may have taken long
            partial.replace(destination)
        finally:
            for path in (partial, *_beside(partial)):  # a copy that failed may leave more than its file
                path.unlink(missing_ok=True)
        _sync(destination.parent)
    except OSError as error:
        raise CannotOpen(f"{destination}: {error.strerror}") from error
    return size_bytes


def _check_destination(source: Path, destination: Path, *, replace: bool) -> None:
    if destination.is_dir():
        raise CannotOpen(f"{destination} is a directory; name a file in it, such as {destination / source.name}")
    for ours in (source, *_beside(source), lock_path(source)):
        if destination.resolve() == ours or (destination.exists() and ours.exists() and destination.samefile(ours)):
            raise CannotOpen(f"{destination} is the store itself, or a part of it; name another file")
    if os.path.lexists(destination) and not replace:  # also a link that leads nowhere
        raise CannotOpen(f"{destination} exists already; name another file, or replace it with --force")


def _beside(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}{suffix}") for suffix in _BESIDE]


def _new_file(destination: Path) -> Path:
    """Make an empty file beside ``destination``, which only its owner may read: messages are nobody else's."""
    descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent)
    os.close(descriptor)
    return Path(name)


def _copy(source_path: Path, copy_path: Path, between: Callable[[], None]) -> None:
    path = source_path
    try:
        with closing(connect(source_path, create=False, busy_timeout_s=LOCK_WAIT_S)) as source:
            set_up_reader(source)
            check_ours(source, source_path, migrate=True)  # it may be of an older release
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the snapshot begins with the first read
            path = copy_path
            with closing(connect(copy_path, create=True, busy_timeout_s=0)) as copy:
                # nobody else sees this file before it is synced as a whole
                copy.execute("PRAGMA synchronous = OFF")
                # with the snapshot open, commits of the broker do not make the copying start again
                source.backup(copy, pages=PAGES_PER_STEP, progress=lambda *_: between(), sleep=0)
                copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # so that it is one file
                _check(copy, copy_path)
    except sqlite3.Error as error:
        raise failure(error, path) from error


def _check(copy: sqlite3.Connection, path: Path) -> None:
    (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StoreError(f"{path} is damaged, and so may be what it was copied from: keep older backups ({found})")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
