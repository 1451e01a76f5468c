"""The tables, and how a database of an older version becomes one of this version.

Owns:      the schema ``trio_broker``, its numbered steps, and which databases are ours.
Not here:  statements on the tables (flush.py, reading.py, sweeping.py, registers.py, outcome.py).
Threads:   worker threads; each function blocks.

A role that owns only the schema is enough: what exists is not created again, not even with IF NOT EXISTS, for which
PostgreSQL demands the right all the same.
"""

import logging

import psycopg

from persistence.errors import CannotOpen
from persistence.postgres.connection import Address, Connection
from persistence.versions import check_version

log = logging.getLogger(__name__)

MIGRATION_LOCK = int.from_bytes(b"trib")
"""The advisory lock of whoever changes the schema."""
LOCK_WAIT_S = 1.0
"""How long a step waits for a table that somebody else is at, such as a dump. Brokers that serve wait behind it."""
LOCK_PAUSE_S = 2.0
"""How long they go on before it is tried again."""

_FIRST = """
-- Rows are never deleted: the last id must outlive the messages. Each flush changes a few: half of a page stays free,
-- so that the new version of a row finds room beside the old one, and no index has to change.
CREATE TABLE trio_broker.subjects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    last_id bigint NOT NULL,
    last_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Where messages live for seconds, all rows are replaced within a minute: vacuum may work ten times as fast as it does
-- by default, so that it is done before as many rows are dead again. docs/EXPIRY.md has the measurements.
CREATE TABLE trio_broker.messages (
    subject_id bigint NOT NULL,
    id bigint NOT NULL,
    published_at timestamptz NOT NULL,
    expires_at timestamptz,
    headers bytea,
    body bytea NOT NULL,
    PRIMARY KEY (subject_id, id)
) WITH (autovacuum_vacuum_cost_limit = 2000);
CREATE INDEX messages_expiry ON trio_broker.messages (expires_at) WHERE expires_at IS NOT NULL;

-- One row for each process that appends: what its last flush was, for when the answer got lost.
CREATE TABLE trio_broker.writers (
    id uuid PRIMARY KEY,
    epoch bigint NOT NULL,
    flush bigint NOT NULL,
    last_ids bigint[] NOT NULL,
    times timestamptz[] NOT NULL,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE trio_broker.registers (
    name text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL,
    version bigint NOT NULL
);

-- One row: versions of registers are never used again, also after a delete.
CREATE TABLE trio_broker.register_versions (last bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO trio_broker.register_versions VALUES (0);

CREATE TABLE trio_broker.schema_version (version int PRIMARY KEY, applied_at timestamptz NOT NULL);
"""

_KEYS = """
-- The idempotency keys that are remembered, and what was appended with them.
CREATE TABLE trio_broker.keys (
    subject_id bigint NOT NULL,
    key bytea NOT NULL,
    id bigint NOT NULL,
    published_at timestamptz NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (subject_id, key)
) WITH (autovacuum_vacuum_cost_limit = 2000);
CREATE INDEX keys_expiry ON trio_broker.keys (expires_at) WHERE expires_at IS NOT NULL;
"""

_FLOORS = """
-- Messages up to its floor are no longer kept; a subject that was deleted is not listed.
ALTER TABLE trio_broker.subjects
    ADD COLUMN floor bigint NOT NULL DEFAULT 0, ADD COLUMN listed boolean NOT NULL DEFAULT true;

-- A row for each purge until nothing is left of what it purged: the messages above `dropped_id` and, from `forget_at`
-- on, the keys above `dropped_key`.
CREATE TABLE trio_broker.purges (
    subject_id bigint NOT NULL,
    until_id bigint NOT NULL,
    dropped_id bigint NOT NULL,
    forget_at timestamptz NOT NULL,
    dropped_key bytea NOT NULL,
    PRIMARY KEY (subject_id, until_id)
);
CREATE INDEX purges_messages ON trio_broker.purges (subject_id, until_id) WHERE dropped_id < until_id;
CREATE INDEX purges_keys ON trio_broker.purges (forget_at);
"""

STEPS = (_FIRST, _KEYS, _FLOORS)
"""Step n makes a database of version n from one of version n - 1. A released step never changes."""

_MAKE_SCHEMA = """
-- Run this as the role of the broker, or SET ROLE to it first: what is made belongs to who runs it.
DO $$ BEGIN
    IF to_regnamespace('trio_broker') IS NULL THEN CREATE SCHEMA trio_broker; END IF;
END $$;
"""
# By the catalogs, and not by such as to_regclass: those may remember what was not there before the lock was waited for.
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'trio_broker'"
_VERSION_TABLE = ("schema_version",)
_VERSION = "SELECT coalesce(max(version), 0) FROM trio_broker.schema_version"
_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = 'trio_broker'"


def check_ours(connection: Connection, address: Address, *, migrate: bool) -> None:
    """Refuse a schema that is another application's, newer than this release, or older when ``migrate`` is false.

    Raises:
        CannotOpen: with what to do. SchemaNotReady: it is older, or missing.
    """
    tables = connection.execute(_TABLES).fetchall()  # in one look: another process may be making ours
    if tables and _VERSION_TABLE not in tables:
        raise CannotOpen(f"{address}: the schema trio_broker holds tables of another application; use another database")
    version = schema_version(connection)
    check_version(address, version, len(STEPS), migrate=migrate)


def migrate_to_latest(connection: Connection) -> None:
    """Take the steps that the database has not had, in one transaction. Safe when several processes do it at once.

    Brokers may serve meanwhile: a step that finds a table in use gives way to them, and is tried again, as long as the
    connection's patience lasts.
    """
    told = False
    while schema_version(connection) < len(STEPS):  # else without a lock, or any right to change the schema
        try:
            _take_steps(connection)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not told:
                log.warning("migration_waits why=%r retry_s=%.1f", str(error).partition("\n")[0], LOCK_PAUSE_S)
            told = True
            connection.patience.pause(LOCK_PAUSE_S)


def _take_steps(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_S * 1000:.0f}")
        # again, under the lock: another process may have been here
        if connection.execute(_SCHEMA).fetchone() is None:
            connection.execute("CREATE SCHEMA trio_broker")
        for version in range(schema_version(connection) + 1, len(STEPS) + 1):
            connection.execute(_step(version))


def script(from_version: int) -> str:
    """Return what `migrate_to_latest` does to a database of that version, for an administrator to run by psql."""
    schema = [] if from_version else [_MAKE_SCHEMA]
    steps = [_step(version) for version in range(from_version + 1, len(STEPS) + 1)]
    lock = f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK});\n"
    return "".join(["BEGIN;\n", lock, *schema, *steps, "COMMIT;\n"])


def schema_version(connection: Connection) -> int:
    """Return the number of the last step the database has had; 0: none."""
    if _VERSION_TABLE not in connection.execute(_TABLES).fetchall():
        return 0
    (version,) = connection.execute(_VERSION).fetchone() or (0,)
    return int(version)


def _step(version: int) -> str:
    """Return the SQL that leads to a version from the one before."""
    return f"{STEPS[version - 1]}INSERT INTO trio_broker.schema_version VALUES ({version}, clock_timestamp());\n"  # noqa: S608
