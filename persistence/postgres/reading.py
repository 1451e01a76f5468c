"""What is asked of the log. Each function is one statement, and so one snapshot and one round trip.

Owns:      the statements that read subjects and messages.
Not here:  which connection, which thread, when to give up (pool.py), registers (registers.py).
Threads:   worker threads; each function blocks.

``clock_timestamp()`` may differ from row to row, and no index can be searched by it: each statement asks once.
"""

from collections.abc import Sequence

from persistence.facade import ExpiredId, Head, InvalidId, Key, Page, Record
from persistence.headers import decode_headers, headers_size_bytes
from persistence.postgres.connection import EPOCH_US, Connection
from persistence.rows import Row, Rows

# A body that has expired is NULL, and is not read from the disk. What comes after too many bytes is not sent: `before`
# counts no more than Python does, as the encoding of a header is at most 9 times its size.
_PAGE = """
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
    SELECT page.id, page.body, page.headers, page.published_at, page.expires_at, subject.last_id
    FROM trio_broker.subjects AS subject LEFT JOIN LATERAL (
        SELECT *, sum(octet_length(body) + coalesce(octet_length(headers), 0) / 9)
            OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM (
            SELECT id, CASE WHEN expires_at <= clock.now THEN NULL ELSE body END AS body,
                   headers, published_at, expires_at
            FROM trio_broker.messages, clock
            WHERE subject_id = subject.id AND id > greatest(%(after_id)s::bigint, subject.floor)
            ORDER BY id LIMIT %(max_messages)s::bigint
        ) AS found
    ) AS page ON coalesce(page.before, 0) <= %(max_bytes)s::bigint
    WHERE subject.name = %(subject)s
    ORDER BY page.id
"""
_MESSAGES = """
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
    SELECT subject.last_id, CASE WHEN message.expires_at <= clock.now THEN NULL ELSE message.body END,
           message.headers, message.published_at, message.expires_at
    FROM clock CROSS JOIN unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS key (subject, id, place)
    LEFT JOIN trio_broker.subjects AS subject ON subject.name = key.subject
    LEFT JOIN trio_broker.messages AS message
        ON message.subject_id = subject.id AND message.id = key.id AND message.id > subject.floor
    ORDER BY key.place
"""
_HEAD = """
    SELECT last_id, (
        SELECT id FROM trio_broker.messages
        WHERE subject_id = subject.id AND id > subject.floor
            AND (expires_at IS NULL OR expires_at > (SELECT clock_timestamp()))
        ORDER BY id LIMIT 1
    )
    FROM trio_broker.subjects AS subject WHERE name = %s
"""
_HEADS = "SELECT name, last_id FROM trio_broker.subjects WHERE name = ANY (%s::text[])"
_SUBJECTS = "SELECT name FROM trio_broker.subjects WHERE name > %s AND listed ORDER BY name LIMIT %s"


def read_page(connection: Connection, subject: str, after_id: int, max_messages: int, max_bytes: int) -> Page:
    rows = connection.ask(
        _PAGE,
        {"subject": subject, "after_id": after_id, "max_messages": max_messages, "max_bytes": max_bytes},
        raw_times=True,
    )
    first_id, last_id = (rows[0][0], rows[0][-1]) if rows else (None, 0)
    if first_id is None:
        return Page([], max(after_id, last_id), last_id)
    kept: list[Row] = []
    scanned_to, size = after_id, 0
    for id_, body, encoded, time, expires, _ in rows:
        if body is not None:
            size += len(body)
            headers = None
            if encoded is not None:
                headers = decode_headers(encoded)
                size += headers_size_bytes(headers)
            if size > max_bytes and kept:
                return Page(Rows(kept), scanned_to, last_id)
            kept.append((id_, body, headers, time + EPOCH_US, None if expires is None else expires + EPOCH_US))
        scanned_to = id_
    if size <= max_bytes and len(rows) < max_messages:  # else the server may have left out what comes after them
        scanned_to = max(after_id, last_id)
    return Page(Rows(kept), scanned_to, last_id)


def get_messages(connection: Connection, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
    rows = connection.ask(_MESSAGES, [[key.subject for key in keys], [key.id for key in keys]])
    return [_found(id_, *row) for (_, id_), row in zip(keys, rows, strict=True)]


def read_head(connection: Connection, subject: str) -> Head:
    rows = connection.ask(_HEAD, [subject])
    if not rows:
        return Head(1, 0)
    ((last_id, first_id),) = rows
    return Head(last_id + 1 if first_id is None else first_id, last_id)


def read_heads(connection: Connection, subjects: Sequence[str]) -> dict[str, int]:
    return dict(connection.ask(_HEADS, [subjects]))


def list_subjects(connection: Connection, after: str, limit: int) -> list[str]:
    return [name for (name,) in connection.ask(_SUBJECTS, [after, limit])]


def read_clock(connection: Connection) -> int:
    ((now_us,),) = connection.ask("SELECT clock_timestamp()")
    return int(now_us)


def _found(
    id_: int, last_id: int | None, body: bytes | None, headers: bytes | None, time_us: int, expires_us: int | None
) -> Record | InvalidId | ExpiredId:
    if last_id is None:
        return InvalidId(0)
    if not 1 <= id_ <= last_id:
        return InvalidId(last_id)
    if body is None:
        return ExpiredId(last_id)
    return Record(id_, body, decode_headers(headers), time_us, expires_us)
