"""Ways to keep a broker's SQLite file from it, as another process on the machine could.

Owns:      SQLite's locks, held by the test; knowing that the broker waits for them.
Threads:   the caller's; taking a lock waits until the broker's transaction is over.
"""

import fcntl
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from e2e_wire import Exchange, Wire

_READ_LOCKS = (123, 5)
"""Offset and length of the five bytes of the -shm file that readers of the log lock (https://sqlite.org/walformat.html)."""


@contextmanager
def commits_stalled(path: Path) -> Generator[None]:
    """Hold the lock to write for the length of the block: reads go on, a commit waits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def everything_stalled(path: Path) -> Generator[None]:
    """Hold the locks to read for the length of the block: reads wait, and so do commits, which begin with one."""
    with path.with_name(f"{path.name}-shm").open("rb+") as index:
        offset, length = _READ_LOCKS
        fcntl.lockf(index, fcntl.LOCK_EX, length, offset)
        yield


def begin_commit(wire: Wire, subject: str, body: bytes, *, timeout: str | None = None) -> Exchange:
    """Publish while commits are stalled; return when the store has been given the message.

    The broker hands it over one turn of its loop after it read it, and the next turn gives it to the store: at the
    latest before the third PING is read.
    """
    exchange = wire.publish(subject, body, timeout=timeout, keep=True)
    for _ in range(3):
        wire.round_trip()
    return exchange
