"""One broker per file: a lock file beside the database.

Owns:      ``<file>.lock``, which holds the process id of the broker that has it.
Not here:  SQLite's own locks, by which several processes may use one file correctly.
Threads:   worker threads; each function blocks.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persistence.errors import CannotOpen


def lock_path(path: Path) -> Path:
    """Return where the lock of the database at ``path`` is."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of the database at ``path``. The system drops it when the process ends, however it ends.

    The lock file stays behind: removing it would let two processes lock two files of the same name.

    Raises:
        CannotOpen: another process holds it, or the lock file cannot be made.
    """
    beside = lock_path(path)
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CannotOpen(f"{beside}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise CannotOpen(
                f"another broker (pid {pid}) has {path} open; stop it, or give this one another file"
            ) from error
        except OSError as error:
            raise CannotOpen(f"{beside}: cannot be locked: {error.strerror}; use a local disk") from error
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)
