"""What is asked of the log.

Owns:      the statements that read messages and names of subjects.
Not here:  buckets (buckets.py), registers (registers.py), in which thread, and when to give up (store.py).
Threads:   any; nothing waits.

A read of one partition is a snapshot: what each node has of a flush is all of it or nothing, and where nodes differ,
the more recent is taken (which the table's option ``read_repair`` must not spoil; schema.py). So the state of a bucket
and its messages are read together. What is acknowledged is seen by every read that begins later.
"""

import logging
from collections.abc import Iterator

from persistence.cassandra.buckets import END_ID, Bucket, find_from, find_head, find_holding, shard_of
from persistence.cassandra.chunks import Damaged, decode_chunk
from persistence.cassandra.clock import Clock
from persistence.cassandra.steps import Rows, Statement, Steps, surely
from persistence.facade import ExpiredId, Head, InvalidId, Key, Page, Record
from persistence.headers import headers_size_bytes

log = logging.getLogger(__name__)

CHUNKS_FIRST = 4
"""How many chunks a page begins with. How large they are is not known before: 4 MiB each, or 100 bytes."""
CHUNKS_GROWTH = 4
HEAD_SCAN_MAX = 1_000

# The last row of a bucket, `END_ID`, has no chunk.
_CHUNKS = Statement(
    """
    SELECT last_id, last_at, size, until, sealed, gone_at, floor, id, chunk
    FROM {keyspace}.log WHERE subject = ? AND base_id = ? AND id >= ? LIMIT ?
    """,
    whole=True,
)
_SHARDS = Statement("SELECT DISTINCT shard FROM {keyspace}.subjects")
_SUBJECTS = Statement("SELECT subject FROM {keyspace}.subjects WHERE shard = ? AND subject > ? LIMIT ?")


def get_message(key: Key, clock: Clock) -> Steps[Record | InvalidId | ExpiredId]:
    subject, id_ = key
    base_id = yield from find_holding(subject, id_)
    if base_id is not None:
        rows = yield from surely(_CHUNKS(subject, base_id, id_, 1))
        bucket = _bucket(base_id, rows)
        for record in _records(subject, base_id, rows):
            if bucket.floor < record.id == id_ and _is_kept(record, clock.now_us()):
                return record
        if not bucket.sealed:
            return _absent(id_, bucket.last_id)
    head = yield from find_head(subject)
    return _absent(id_, head.last_id if head else 0)


def read_page(subject: str, after_id: int, max_messages: int, max_bytes: int, clock: Clock) -> Steps[Page]:
    page = _Filling(min(max(after_id, 0), END_ID - 1), max_messages, max_bytes)
    base_id = yield from find_holding(subject, page.scanned_to + 1)
    if base_id is None:
        base_id = yield from find_from(subject, page.scanned_to)
    bucket: Bucket | None = None
    while base_id is not None:
        bucket = yield from _fill(page, subject, base_id, clock)
        if page.is_full or not bucket.sealed:
            break
        base_id = yield from find_from(subject, bucket.last_id)
    if bucket is not None and bucket.sealed and page.is_full:
        bucket = yield from find_head(subject)
    return Page(page.records, page.scanned_to, bucket.last_id if bucket else 0)


def read_head(subject: str, clock: Clock) -> Steps[Head]:
    after_id = 0
    while True:
        page = yield from read_page(subject, after_id, HEAD_SCAN_MAX, 0, clock)
        if page.records:
            return Head(page.records[0].id, page.last_id)
        if page.scanned_to >= page.last_id:
            return Head(page.last_id + 1, page.last_id)
        after_id = page.scanned_to


def read_last_id(subject: str) -> Steps[int]:
    head = yield from find_head(subject)
    return head.last_id if head else 0


def list_subjects(after: str, limit: int) -> Steps[list[str]]:
    shards = sorted(row["shard"] for row in (yield from surely(_SHARDS())))
    names: list[str] = []
    for shard in shards:
        if len(names) < limit and (not after or shard >= shard_of(after)):
            rows = yield from surely(_SUBJECTS(shard, after, limit - len(names)))
            names += [row["subject"] for row in rows]
    return names


class _Filling:
    """A page on its way to be full."""

    def __init__(self, after_id: int, max_messages: int, max_bytes: int) -> None:
        self.records: list[Record] = []
        self.scanned_to = after_id
        self.is_full = False
        self.messages_left = max_messages
        self.bytes_left = max_bytes

    def take(self, record: Record, now_us: int) -> None:
        """Take a record, if it is kept and there is room for it."""
        if self.is_full or record.id <= self.scanned_to:
            return
        if _is_kept(record, now_us):
            size = len(record.body) + headers_size_bytes(record.headers)
            if self.records and size > self.bytes_left:
                self.is_full = True
                return
            self.records.append(record)
            self.bytes_left -= size
        self.scanned_to = record.id
        self.messages_left -= 1
        self.is_full = not self.messages_left


def _fill(page: _Filling, subject: str, base_id: int, clock: Clock) -> Steps[Bucket]:
    """Fill a page from one bucket, until it is full or there is no more; return the bucket as it is then."""
    limit = CHUNKS_FIRST
    while True:
        rows = yield from surely(_CHUNKS(subject, base_id, page.scanned_to + 1, limit))
        now_us = clock.now_us()
        bucket = _bucket(base_id, rows)
        page.scanned_to = max(page.scanned_to, min(bucket.floor, bucket.last_id))
        for record in _records(subject, base_id, rows):
            page.take(record, now_us)
        if page.is_full:
            return bucket
        if not rows or rows[-1]["id"] == END_ID:
            page.scanned_to = max(page.scanned_to, bucket.last_id)
            return bucket
        average_bytes = sum(len(row["chunk"]) for row in rows) // len(rows)
        limit = min(CHUNKS_GROWTH * limit, page.messages_left, max(0, page.bytes_left) // average_bytes + 1)


def _bucket(base_id: int, rows: Rows) -> Bucket:
    return Bucket.new(base_id, began_at=0).seen(rows[0] if rows else {})


def _records(subject: str, base_id: int, rows: Rows) -> Iterator[Record]:
    """Return the messages in rows of a bucket, expired ones among them.

    Raises:
        Damaged: one of the rows is; the text and the log say which.
    """
    for row in rows:
        if row["id"] != END_ID:
            try:
                yield from decode_chunk(row["id"], row["chunk"])
            except Damaged as error:
                log.warning("row_damaged subject=%r base_id=%d id=%d why=%s", subject, base_id, row["id"], error)
                where = f"subject={subject!r} base_id={base_id} id={row['id']}"
                raise Damaged(f"the row of the table log with {where} is damaged: {error}") from error


def _is_kept(record: Record, now_us: int) -> bool:
    return record.expires_us is None or now_us < record.expires_us


def _absent(id_: int, last_id: int) -> InvalidId | ExpiredId:
    return ExpiredId(last_id) if 1 <= id_ <= last_id else InvalidId(last_id)
