"""What is asked of the tables. Each function is one short snapshot.

Owns:      the statements that read.
Not here:  which connection, which thread, when to give up (store.py).
Threads:   worker threads; each function blocks. A snapshot ends before its function returns: an open one would keep
           the log file from being checkpointed.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from persistence.facade import ExpiredId, Head, InvalidId, Key, Page, Record, Register
from persistence.headers import decode_headers, headers_size_bytes
from persistence.rows import Row, Rows

Clock = Callable[[], int]

_SUBJECT = "SELECT id, last_id, floor FROM subjects WHERE name = ?"
# NULL for a body that has expired: it is not read from the disk
_PAGE = """
    SELECT id, CASE WHEN expires_us <= :now_us THEN NULL ELSE body END, headers, time_us, expires_us
    FROM messages WHERE subject_id = :subject_id AND id > :after_id ORDER BY id LIMIT :max_messages
"""
_MESSAGE = """
    SELECT last_id, CASE WHEN expires_us <= :now_us THEN NULL ELSE body END, headers, time_us, expires_us
    FROM subjects LEFT JOIN messages
        ON messages.subject_id = subjects.id AND messages.id = :id AND messages.id > subjects.floor
    WHERE subjects.name = :subject
"""
_FIRST_KEPT = """
    SELECT id FROM messages
    WHERE subject_id = ? AND id > ? AND (expires_us IS NULL OR expires_us > ?) ORDER BY id LIMIT 1
"""
_HEADS = "SELECT name, last_id FROM subjects WHERE name IN ({})"
_HEADS_MAX = 500
"""Of one statement. SQLite takes 32,766 by default, but its libraries may be made to take fewer."""
_SUBJECTS = "SELECT name FROM subjects WHERE name > ? AND listed ORDER BY name LIMIT ?"


def read_page(
    connection: sqlite3.Connection, clock: Clock, subject: str, after_id: int, max_messages: int, max_bytes: int
) -> Page:
    with _snapshot(connection):
        found = connection.execute(_SUBJECT, (subject,)).fetchone()
        if found is None:
            return Page([], after_id, 0)
        subject_id, last_id, floor = found
        parameters = {
            "subject_id": subject_id,
            "after_id": max(after_id, floor),
            "max_messages": max_messages,
            "now_us": clock(),
        }
        kept: list[Row] = []
        scanned_to, expired, size = after_id, 0, 0
        with closing(connection.execute(_PAGE, parameters)) as rows:
            for row in rows:
                body = row[1]
                if body is None:
                    expired += 1
                    scanned_to = row[0]
                    continue
                size += len(body)
                if row[2] is not None:
                    id_, _, encoded, *times = row
                    headers = decode_headers(encoded)
                    size += headers_size_bytes(headers)
                    row = (id_, body, headers, *times)  # noqa: PLW2901
                if size > max_bytes and kept:
                    return Page(Rows(kept), max(scanned_to, kept[-1][0]), last_id)
                kept.append(row)
        if len(kept) + expired < max_messages:
            scanned_to = max(after_id, last_id)
        elif kept:
            scanned_to = max(scanned_to, kept[-1][0])
        return Page(Rows(kept), scanned_to, last_id)


def get_messages(
    connection: sqlite3.Connection, clock: Clock, keys: Sequence[Key]
) -> list[Record | InvalidId | ExpiredId]:
    found: list[Record | InvalidId | ExpiredId] = []
    with _snapshot(connection):
        now_us = clock()
        for subject, id_ in keys:
            row = connection.execute(_MESSAGE, {"subject": subject, "id": id_, "now_us": now_us}).fetchone()
            if row is None:
                found.append(InvalidId(0))
                continue
            last_id, body, headers, time_us, expires_us = row
            if not 1 <= id_ <= last_id:
                found.append(InvalidId(last_id))
            elif body is None:
                found.append(ExpiredId(last_id))
            else:
                found.append(Record(id_, body, decode_headers(headers), time_us, expires_us))
    return found


def read_head(connection: sqlite3.Connection, clock: Clock, subject: str) -> Head:
    with _snapshot(connection):
        found = connection.execute(_SUBJECT, (subject,)).fetchone()
        if found is None:
            return Head(1, 0)
        subject_id, last_id, floor = found
        first = connection.execute(_FIRST_KEPT, (subject_id, floor, clock())).fetchone()
        return Head(first[0] if first else last_id + 1, last_id)


def read_heads(connection: sqlite3.Connection, subjects: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(subjects), _HEADS_MAX):
        asked = subjects[start : start + _HEADS_MAX]
        found.update(connection.execute(_HEADS.format(",".join("?" * len(asked))), asked))
    return found


def list_subjects(connection: sqlite3.Connection, after: str, limit: int) -> list[str]:
    rows = connection.execute(_SUBJECTS, (after, limit))
    return [name for (name,) in rows]


def load_register(connection: sqlite3.Connection, name: str) -> Register | None:
    row = connection.execute("SELECT value, version FROM registers WHERE name = ?", (name,)).fetchone()
    return Register(*row) if row else None


def list_registers(connection: sqlite3.Connection, prefix: str) -> list[tuple[str, Register]]:
    found: list[tuple[str, Register]] = []
    rows = connection.execute("SELECT name, value, version FROM registers WHERE name >= ? ORDER BY name", (prefix,))
    with closing(rows):
        for name, value, version in rows:
            if not name.startswith(prefix):
                break  # in this order those that begin with the prefix come first, together
            found.append((name, Register(value, version)))
    return found


def ask(connection: sqlite3.Connection) -> None:
    """Do the least that shows that the database is there."""
    connection.execute("SELECT last FROM register_versions").fetchone()


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:  # some errors end it themselves
            connection.execute("ROLLBACK")
