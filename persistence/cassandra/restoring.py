"""Restoring: appending records as they are, with their ids, times and ends.

Owns:      which of them are left out, and which go together in a chunk.
Not here:  the batch that appends (writing.py), how a chunk is encoded (chunks.py).
Threads:   any; nothing waits.

It is done as an append is, by one batch that is conditional on the head, and so it is safe beside appends, and a lost
answer is found out in the same way. Ids that are in no record are as those of messages that are not kept.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from uuid import uuid4

from persistence.cassandra.buckets import FOR_EVER_US, TTL_MAX_S, begin, find_or_new, seen_or_found
from persistence.cassandra.chunks import BEFORE_MAX, encode_restored, encode_restored_chunk
from persistence.cassandra.clock import Clock
from persistence.cassandra.keys import place_after, took_effect
from persistence.cassandra.shares import CHUNK_BYTES_MAX, CHUNK_MESSAGES_MAX
from persistence.cassandra.steps import Steps, apply_once, pause
from persistence.cassandra.writing import SHARE_BYTES_MAX, ChunkRow, append_batch, head_after
from persistence.errors import BadContent
from persistence.facade import Record
from persistence.headers import headers_size_bytes


def restore(subject: str, records: Sequence[Record], last_id: int, clock: Clock, attempt_ttl_s: int) -> Steps[int]:
    """Do what the facade says. What has expired already is left out, and not counted."""
    size = sum(len(record.body) + headers_size_bytes(record.headers) for record in records)
    if size > SHARE_BYTES_MAX:
        raise BadContent(f"{size} bytes are more than {SHARE_BYTES_MAX}")
    last_id = max([last_id, *(record.id for record in records[-1:])])
    head = yield from find_or_new(subject)
    while head.last_id < last_id:
        sealed = head if head.sealed else None
        head = sealed.next if sealed else head
        now_us = clock.now_us()
        kept = [record for record in records if record.id > head.last_id and _ends_us(record) > now_us]
        _check_ends(kept, now_us)
        rows = [_encode(chunk) for chunk in _group(kept)]
        time_us = max([head.last_at, *(record.time_us for record in kept)])
        next_head = head_after(head, last_id, time_us, sum(len(row.chunk) for row in rows), rows)
        place, attempt = place_after(subject, head), uuid4()
        yield from begin(subject, head, sealed, now_us)
        batch = append_batch(subject, head, next_head, attempt, attempt_ttl_s, rows, now_us)
        row = yield from apply_once(batch, partial(took_effect, place, attempt))
        if row is None:
            return len(kept)
        head = yield from seen_or_found(subject, head, row)
        yield pause()
    return 0


def _ends_us(record: Record) -> int:
    return FOR_EVER_US if record.expires_us is None else record.expires_us


def _check_ends(records: Sequence[Record], now_us: int) -> None:
    for record in records:
        if record.expires_us is not None and record.expires_us - now_us > TTL_MAX_S * 1_000_000:
            raise BadContent(f"message {record.id} expires in more than {TTL_MAX_S} s")


def _group(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Return which records go together in a chunk."""
    start = size = 0
    for place, record in enumerate(records):
        size += len(record.body)
        is_far = record.id - records[start].id > BEFORE_MAX
        if place > start and (size > CHUNK_BYTES_MAX or place - start == CHUNK_MESSAGES_MAX or is_far):
            yield records[start:place]
            start, size = place, len(record.body)
    if records:
        yield records[start:]


def _encode(records: Sequence[Record]) -> ChunkRow:
    last_id = records[-1].id
    messages = b"".join(encode_restored(last_id - record.id, record) for record in records)
    return ChunkRow(last_id, encode_restored_chunk(messages), max(_ends_us(record) for record in records))
