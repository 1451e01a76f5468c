"""What changes a subject as a whole: purging it, deleting it, bringing back a log that was kept elsewhere.

Owns:      floors (what is not above its subject's is no longer kept, whether or not its row is there), the list of
           rows that are left to drop because of them, and dropping them step by step.
Not here:  when to sweep (sweeping.py), appending (writing.py).
Threads:   worker threads, in turn with the other writes; each function blocks.
"""

import sqlite3
from collections.abc import Callable, Sequence

from persistence.facade import KEY_KEPT_MIN_S, Conflict, Record, Swept
from persistence.floors import drop_up_to, to_restore
from persistence.headers import encode_headers
from persistence.sqlite.writing import Writer, insert_messages

_SUBJECT = "SELECT id, last_id, last_time_us, floor FROM subjects WHERE name = ?"
_RAISE_FLOOR = "UPDATE subjects SET floor = ? WHERE id = ?"
_UNLIST = "UPDATE subjects SET listed = 0 WHERE id = ?"
_TO_DROP = "INSERT INTO purges (subject_id, until_id, dropped_id, forget_us, dropped_key) VALUES (?, ?, ?, ?, '')"
_RESTORED = """
    INSERT INTO subjects (name, last_id, last_time_us) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET last_id = excluded.last_id, last_time_us = excluded.last_time_us, listed = 1
    RETURNING id
"""

_MESSAGES_TO_DROP = "SELECT subject_id, until_id, dropped_id FROM purges WHERE dropped_id < until_id LIMIT 1"
_PURGED = "SELECT id, length(body) FROM messages WHERE subject_id = ? AND id > ? AND id <= ? ORDER BY id LIMIT ?"
_DROP = "DELETE FROM messages WHERE subject_id = ? AND id > ? AND id <= ?"
_DROPPED = "UPDATE purges SET dropped_id = ? WHERE subject_id = ? AND until_id = ?"
_KEYS_TO_DROP = """
    SELECT subject_id, until_id, dropped_key FROM purges
    WHERE forget_us <= ? AND dropped_id >= until_id ORDER BY forget_us LIMIT 1
"""
_KEYS = "SELECT key, id FROM keys WHERE subject_id = ? AND key > ? ORDER BY key LIMIT ?"
_DROP_KEY = "DELETE FROM keys WHERE subject_id = ? AND key = ?"
_KEYS_DROPPED = "UPDATE purges SET dropped_key = ? WHERE subject_id = ? AND until_id = ?"
_DONE = "DELETE FROM purges WHERE subject_id = ? AND until_id = ?"


def purge(writer: Writer, clock: Callable[[], int], subject: str, until_id: int) -> int:
    with writer.transaction() as connection:
        subject_id, last_id, last_time_us, floor = _subject(connection, subject)
        _purge(connection, subject_id, floor, min(until_id, last_id), max(last_time_us, clock()))
    return last_id


def delete_subject(writer: Writer, clock: Callable[[], int], subject: str, last_id: int) -> Conflict | None:
    with writer.transaction() as connection:
        subject_id, actual_last_id, last_time_us, floor = _subject(connection, subject)
        if actual_last_id != last_id:
            return Conflict(actual_last_id)
        _purge(connection, subject_id, floor, last_id, max(last_time_us, clock()))
        connection.execute(_UNLIST, (subject_id,))
    return None


def restore(writer: Writer, subject: str, records: Sequence[Record], last_id: int) -> int:
    with writer.transaction() as connection:
        _, before_id, last_time_us, _ = _subject(connection, subject)
        new, last_id = to_restore(records, last_id, before_id)
        if last_id == before_id:
            return 0
        last_time_us = max([last_time_us, *(record.time_us for record in new)])
        ((subject_id,),) = connection.execute(_RESTORED, (subject, last_id, last_time_us))
        insert_messages(
            connection,
            [
                value
                for id_, body, headers, time_us, expires_us in new
                for value in (subject_id, id_, time_us, expires_us, encode_headers(headers), body)
            ],
        )
    return len(new)


def drop_messages(writer: Writer, messages_max: int, bytes_max: int) -> Swept:
    """Drop some messages below a floor. Nothing is written when there is none."""
    with writer.connection() as connection:
        found = connection.execute(_MESSAGES_TO_DROP).fetchone()
    if found is None:
        return Swept(0, more=False)
    with writer.transaction() as connection:
        subject_id, until_id, dropped_id = found  # nobody else sweeps
        rows = connection.execute(_PURGED, (subject_id, dropped_id, until_id, messages_max)).fetchall()
        to_id = drop_up_to(rows, until_id, messages_max, bytes_max)
        dropped = connection.execute(_DROP, (subject_id, dropped_id, to_id)).rowcount
        connection.execute(_DROPPED, (to_id, subject_id, until_id))
    return Swept(dropped, more=True)


def drop_keys(writer: Writer, now_us: int, keys_max: int) -> bool:
    """Forget some keys of what was purged long enough ago; say whether there may be more."""
    with writer.connection() as connection:
        found = connection.execute(_KEYS_TO_DROP, (now_us,)).fetchone()
    if found is None:
        return False
    with writer.transaction() as connection:
        subject_id, until_id, dropped_key = found
        rows = connection.execute(_KEYS, (subject_id, dropped_key, keys_max)).fetchall()
        for key, id_ in rows:
            if id_ <= until_id:
                connection.execute(_DROP_KEY, (subject_id, key))
        if len(rows) == keys_max:
            connection.execute(_KEYS_DROPPED, (rows[-1][0], subject_id, until_id))
        else:
            connection.execute(_DONE, (subject_id, until_id))
    return True


def _subject(connection: sqlite3.Connection, subject: str) -> tuple[int, int, int, int]:
    """Return its row; zeros, of which nothing comes, if there is none."""
    return connection.execute(_SUBJECT, (subject,)).fetchone() or (0, 0, 0, 0)


def _purge(connection: sqlite3.Connection, subject_id: int, floor: int, until_id: int, now_us: int) -> None:
    if until_id > floor:
        connection.execute(_RAISE_FLOOR, (until_id, subject_id))
        connection.execute(_TO_DROP, (subject_id, until_id, floor, now_us + KEY_KEPT_MIN_S * 1_000_000))
