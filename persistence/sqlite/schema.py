"""The tables, and how a file of an older version becomes one of this version.

Owns:      the schema, its numbered steps, and which files are ours.
Not here:  settings of a connection (connection.py), statements on the tables (reading.py, writing.py).
Threads:   worker threads; each function blocks.

``user_version`` counts the steps a file has had; ``application_id`` says that it is ours.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from persistence.errors import CannotOpen
from persistence.versions import check_version

APPLICATION_ID = int.from_bytes(b"trib")

_FIRST = (
    # Rows of subjects are never deleted: the last id must outlive the messages.
    """
    CREATE TABLE subjects (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        last_id INTEGER NOT NULL,
        last_time_us INTEGER NOT NULL
    )
    """,
    # A table with rowids: without them a body of 1,500 bytes took 4,700 on disk and twice the CPU, and appends to
    # 16 subjects at once 1.6 times the CPU. The body comes last: what precedes it is read without reading it.
    """
    CREATE TABLE messages (
        subject_id INTEGER NOT NULL REFERENCES subjects (id),
        id INTEGER NOT NULL,
        time_us INTEGER NOT NULL,
        expires_us INTEGER,
        headers BLOB,
        body BLOB NOT NULL,
        PRIMARY KEY (subject_id, id)
    )
    """,
    "CREATE INDEX messages_expiry ON messages (expires_us) WHERE expires_us IS NOT NULL",
    "CREATE TABLE registers (name TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID",
    # One row: versions of registers are never used again, also after a delete.
    "CREATE TABLE register_versions (last INTEGER NOT NULL)",
    "INSERT INTO register_versions VALUES (0)",
)

_KEYS = (
    # The idempotency keys that are remembered, and what was appended with them.
    """
    CREATE TABLE keys (
        subject_id INTEGER NOT NULL REFERENCES subjects (id),
        key TEXT NOT NULL,
        id INTEGER NOT NULL,
        time_us INTEGER NOT NULL,
        expires_us INTEGER,
        PRIMARY KEY (subject_id, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX keys_expiry ON keys (expires_us) WHERE expires_us IS NOT NULL",
)

_FLOORS = (
    # Messages up to its floor are no longer kept; a subject that was deleted is not listed.
    "ALTER TABLE subjects ADD COLUMN floor INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE subjects ADD COLUMN listed INTEGER NOT NULL DEFAULT 1",
    # A row for each purge until nothing is left of what it purged: the messages above `dropped_id` and, from
    # `forget_us` on, the keys above `dropped_key`.
    """
    CREATE TABLE purges (
        subject_id INTEGER NOT NULL REFERENCES subjects (id),
        until_id INTEGER NOT NULL,
        dropped_id INTEGER NOT NULL,
        forget_us INTEGER NOT NULL,
        dropped_key TEXT NOT NULL,
        PRIMARY KEY (subject_id, until_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX purges_messages ON purges (subject_id, until_id) WHERE dropped_id < until_id",
    "CREATE INDEX purges_keys ON purges (forget_us)",
)

STEPS = (_FIRST, _KEYS, _FLOORS)
"""Step n makes a file of version n from one of version n - 1. A released step never changes."""


def check_ours(connection: sqlite3.Connection, path: Path, *, migrate: bool) -> None:
    """Refuse a file that is another application's, newer than this release, or older when ``migrate`` is false.

    Raises:
        CannotOpen: with what to do. SchemaNotReady: it is older, or missing.
    """
    connection.execute("BEGIN")  # one snapshot: another process may be making the tables
    try:
        application_id, version = _identity(connection)
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise CannotOpen(f"{path} is a database of another application; give the path of a new file")
    check_version(path, version, len(STEPS), migrate=migrate)


def migrate_to_latest(connection: sqlite3.Connection) -> None:
    """Take the steps that the file has not had, each in a transaction. Safe when several processes do it at once."""
    while _identity(connection)[1] < len(STEPS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            _, version = _identity(connection)  # again, under the lock: another process may have been here
            if version < len(STEPS):
                for statement in _step(version):
                    connection.execute(statement)
                connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def script(from_version: int) -> str:
    """Return what `migrate_to_latest` does to a file of that version, for an administrator to run by sqlite3."""
    statements = [] if from_version else ["PRAGMA auto_vacuum = INCREMENTAL", "PRAGMA journal_mode = WAL"]
    for version in range(from_version, len(STEPS)):
        statements += ["BEGIN IMMEDIATE", *(dedent(statement).strip() for statement in _step(version)), "COMMIT"]
    return "".join(f"{statement};\n" for statement in statements)


def _step(version: int) -> Sequence[str]:
    """Return the statements that lead from a version to the next one."""
    return (
        *STEPS[version],
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {version + 1}",
    )


def schema_version(connection: sqlite3.Connection) -> int:
    """Return how many steps the file has had."""
    return _identity(connection)[1]


def _identity(connection: sqlite3.Connection) -> tuple[int, int]:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, version
