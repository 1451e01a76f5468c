"""What changes a subject as a whole: purging it, deleting it, bringing back a log that was kept elsewhere.

Owns:      floors (what is not above its subject's is no longer kept, whether or not its row is there), the list of
           rows that are left to drop because of them, and dropping them step by step.
Not here:  when to sweep (sweeping.py), appending (flush.py), which connection (pool.py).
Threads:   worker threads, one at a time; each function blocks. Appends run beside it, on their own connection.

A floor is a column of the subject's row, which every append locks and every read looks at: it is true at once, for
every process.
"""

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from persistence.facade import KEY_KEPT_MIN_S, Conflict, Record, Swept
from persistence.floors import drop_up_to, to_restore
from persistence.headers import encode_headers
from persistence.postgres.connection import Connection

_LOCK = "SELECT id, last_id, floor FROM trio_broker.subjects WHERE name = %s FOR UPDATE"
_RAISE_FLOOR = "UPDATE trio_broker.subjects SET floor = %(until_id)s WHERE id = %(subject_id)s"
_TO_DROP = """
    INSERT INTO trio_broker.purges (subject_id, until_id, dropped_id, forget_at, dropped_key)
    SELECT id, floor, %(floor)s, greatest(last_at, clock_timestamp()) + %(key_kept_s)s * interval '1 second', ''
    FROM trio_broker.subjects WHERE id = %(subject_id)s
"""
_UNLIST = "UPDATE trio_broker.subjects SET listed = false WHERE id = %s"
# A new subject begins at 0, which holds up others that begin it.
_BEGIN_OR_LOCK = """
    INSERT INTO trio_broker.subjects AS subject (name, last_id, last_at)
    VALUES (%s, 0, 'epoch') ON CONFLICT (name) DO UPDATE SET last_id = subject.last_id RETURNING id, last_id
"""
_RESTORED = """
    UPDATE trio_broker.subjects
    SET last_id = %(last_id)s, listed = true,
        last_at = greatest(last_at, 'epoch'::timestamptz + %(time_us)s::bigint * interval '1 microsecond')
    WHERE id = %(subject_id)s
"""
_MESSAGES = """
    INSERT INTO trio_broker.messages (subject_id, id, published_at, expires_at, headers, body)
    SELECT %s, id, 'epoch'::timestamptz + time_us * interval '1 microsecond',
           'epoch'::timestamptz + expires_us * interval '1 microsecond', headers, body
    FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[])
        AS kept (id, time_us, expires_us, headers, body)
"""

# While somebody else sweeps nothing is found. Others only add rows to this table.
_MY_TURN = "SELECT pg_try_advisory_xact_lock(%s)"
_MESSAGES_TO_DROP = """
    SELECT subject_id, until_id, dropped_id FROM trio_broker.purges WHERE dropped_id < until_id
    ORDER BY subject_id, until_id LIMIT 1
"""
_PURGED = """
    SELECT id, octet_length(body) FROM trio_broker.messages
    WHERE subject_id = %s AND id > %s AND id <= %s ORDER BY id LIMIT %s
"""
_DROP = "DELETE FROM trio_broker.messages WHERE subject_id = %s AND id > %s AND id <= %s"
_DROPPED = "UPDATE trio_broker.purges SET dropped_id = %s WHERE subject_id = %s AND until_id = %s"
_KEYS_TO_DROP = """
    SELECT subject_id, until_id, dropped_key FROM trio_broker.purges
    WHERE forget_at <= (SELECT clock_timestamp()) AND dropped_id >= until_id ORDER BY forget_at LIMIT 1
"""
_KEYS = "SELECT key, id FROM trio_broker.keys WHERE subject_id = %s AND key > %s ORDER BY key LIMIT %s"
_DROP_KEYS = "DELETE FROM trio_broker.keys WHERE subject_id = %s AND key = ANY (%s) AND id <= %s"
_KEYS_DROPPED = "UPDATE trio_broker.purges SET dropped_key = %s WHERE subject_id = %s AND until_id = %s"
_DONE = "DELETE FROM trio_broker.purges WHERE subject_id = %s AND until_id = %s"


class _Subject(NamedTuple):
    id: int
    last_id: int
    floor: int


class _ToDrop(NamedTuple):
    subject_id: int
    until_id: int
    dropped_id: int
    """Up to here they were dropped before."""


def purge(connection: Connection, subject: str, until_id: int) -> int:
    with connection.transaction():
        found = _lock(connection, subject)
        if found is None:
            return 0
        _purge(connection, found, min(until_id, found.last_id))
    return found.last_id


def delete_subject(connection: Connection, subject: str, last_id: int) -> Conflict | None:
    with connection.transaction():
        found = _lock(connection, subject)
        actual_last_id = found.last_id if found else 0
        if actual_last_id != last_id:
            return Conflict(actual_last_id)
        if found is not None:
            _purge(connection, found, last_id)
            connection.execute(_UNLIST, [found.id])
    return None


def restore(connection: Connection, subject: str, records: Sequence[Record], last_id: int) -> int:
    with connection.transaction() as transaction:
        ((subject_id, before_id),) = connection.execute(_BEGIN_OR_LOCK, [subject]).fetchall()
        new, last_id = to_restore(records, last_id, before_id)
        if last_id == before_id:
            raise psycopg.Rollback(transaction)  # leave no subject behind that has nothing
        time_us = max([0, *(record.time_us for record in new)])
        connection.execute(_RESTORED, {"subject_id": subject_id, "last_id": last_id, "time_us": time_us})
        connection.execute(
            _MESSAGES,
            [
                subject_id,
                [record.id for record in new],
                [record.time_us for record in new],
                [record.expires_us for record in new],
                [encode_headers(record.headers) for record in new],
                [record.body for record in new],
            ],
        )
    return len(new)


def drop_purged(connection: Connection, lock: int, messages_max: int, bytes_max: int) -> Swept:
    """Drop some of what is below a floor: messages, or else keys. ``lock`` is the advisory one of whoever sweeps."""
    with connection.transaction():
        if connection.execute(_MY_TURN, [lock]).fetchone() != (True,):
            return Swept(0, more=False)
        row = connection.execute(_MESSAGES_TO_DROP).fetchone()
        if row is not None:
            dropped = _drop_messages(connection, _ToDrop(*row), messages_max, bytes_max)
            return Swept(dropped, more=True)
        row = connection.execute(_KEYS_TO_DROP).fetchone()
        if row is not None:
            _drop_keys(connection, *row, keys_max=messages_max)
        return Swept(0, more=row is not None)


def _lock(connection: Connection, subject: str) -> _Subject | None:
    row = connection.execute(_LOCK, [subject]).fetchone()
    return _Subject(*row) if row else None


def _purge(connection: Connection, subject: _Subject, until_id: int) -> None:
    if until_id > subject.floor:
        connection.execute(_RAISE_FLOOR, {"until_id": until_id, "subject_id": subject.id})
        connection.execute(_TO_DROP, {"floor": subject.floor, "subject_id": subject.id, "key_kept_s": KEY_KEPT_MIN_S})


def _drop_messages(connection: Connection, to_drop: _ToDrop, messages_max: int, bytes_max: int) -> int:
    subject_id, until_id, dropped_id = to_drop
    rows = connection.execute(_PURGED, [subject_id, dropped_id, until_id, messages_max]).fetchall()
    to_id = drop_up_to(rows, until_id, messages_max, bytes_max)
    dropped = connection.execute(_DROP, [subject_id, dropped_id, to_id]).rowcount
    connection.execute(_DROPPED, [to_id, subject_id, until_id])
    return dropped


def _drop_keys(connection: Connection, subject_id: int, until_id: int, dropped_key: bytes, *, keys_max: int) -> None:
    rows = connection.execute(_KEYS, [subject_id, dropped_key, keys_max]).fetchall()
    purged = [key for key, id_ in rows if id_ <= until_id]
    connection.execute(_DROP_KEYS, [subject_id, purged, until_id])
    if len(rows) == keys_max:
        connection.execute(_KEYS_DROPPED, [rows[-1][0], subject_id, until_id])
    else:
        connection.execute(_DONE, [subject_id, until_id])
