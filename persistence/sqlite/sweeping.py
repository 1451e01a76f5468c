"""Drop what has expired or was purged and give its space back, a few milliseconds at a time.

Owns:      how much one step does, and how much free space a file keeps for what comes next.
Not here:  when to sweep, and how often (the broker).
Threads:   worker threads, in turn with the other writes; each function blocks.
"""

import sqlite3
from pathlib import Path

from persistence.facade import Swept
from persistence.sqlite import purging
from persistence.sqlite.connection import WAL_KEPT_BYTES, Locked
from persistence.sqlite.writing import Writer

MESSAGES_MAX = 1_000
KEYS_MAX = 1_000
BYTES_MAX = 8 * 1024 * 1024
PAGES_MAX = 64
"""Free pages given back in one step; each may cost moving a page from the end of the file into it."""
PAGES_KEPT_MIN = 64
LOCK_WAIT_MS = 20
"""How long a statement waits for a lock of another process: appends wait behind this, and have to answer in time."""

_DUE = "SELECT length(body) FROM messages WHERE expires_us <= ? ORDER BY expires_us LIMIT ?"
_DROP = """
    DELETE FROM messages WHERE rowid IN
    (SELECT rowid FROM messages WHERE expires_us <= ? ORDER BY expires_us LIMIT ?)
"""
# Keys are remembered for longer than most messages are kept: they go by themselves.
_KEYS_DUE = "SELECT count(*) FROM (SELECT 1 FROM keys WHERE expires_us <= ? LIMIT ?)"
_DROP_KEYS = """
    DELETE FROM keys WHERE (subject_id, key) IN
    (SELECT subject_id, key FROM keys WHERE expires_us <= ? ORDER BY expires_us LIMIT ?)
"""


def sweep(writer: Writer, path: Path, now_us: int) -> Swept:
    """Do one step. Nothing is written when there is nothing to do, or while another process has the file locked."""
    removed, more = 0, False
    try:
        with writer.waiting_at_most(LOCK_WAIT_MS):
            with writer.connection() as connection:
                due, more = _due(connection, now_us)
                (keys_due,) = connection.execute(_KEYS_DUE, (now_us, KEYS_MAX)).fetchone()
            if due or keys_due:
                removed = _drop(writer, now_us, due, keys_due)
                more = more or keys_due == KEYS_MAX
            if not more:
                purged = purging.drop_messages(writer, MESSAGES_MAX, BYTES_MAX)
                more = purged.more or purging.drop_keys(writer, now_us, KEYS_MAX)
                removed += purged.removed
            with writer.connection() as connection:
                if not more:
                    more = _give_back(connection)
                _shorten_log(connection, path)
    except Locked:
        more = False  # there is, and not now
    return Swept(removed, more)


def _due(connection: sqlite3.Connection, now_us: int) -> tuple[int, bool]:
    """Return how many messages this step drops, and whether it leaves some."""
    sizes = connection.execute(_DUE, (now_us, MESSAGES_MAX)).fetchall()
    total = 0
    for count, (size,) in enumerate(sizes):
        total += size
        if total > BYTES_MAX and count > 0:
            return count, True
    return len(sizes), len(sizes) == MESSAGES_MAX


def _drop(writer: Writer, now_us: int, due: int, keys_due: int) -> int:
    with writer.transaction() as connection:
        dropped = connection.execute(_DROP, (now_us, due))
        connection.execute(_DROP_KEYS, (now_us, keys_due))
    return dropped.rowcount


def _give_back(connection: sqlite3.Connection) -> bool:
    """Shorten the file by some of its free pages, all but a quarter of those in use; say whether more are left."""
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    surplus = free - max(PAGES_KEPT_MIN, (pages - free) // 4)
    if surplus <= 0:
        return False
    # executescript steps to the end; execute would stop after the first page
    connection.executescript(f"PRAGMA incremental_vacuum({min(surplus, PAGES_MAX)})")
    return surplus > PAGES_MAX


def _shorten_log(connection: sqlite3.Connection, path: Path) -> None:
    """Start the log file again when readers that overlap without a pause have kept commits from doing so.

    Most of it has been copied by then: what is left is little. Waits a moment for readers to end.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or log.stat().st_size <= 2 * WAL_KEPT_BYTES:
        return
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
