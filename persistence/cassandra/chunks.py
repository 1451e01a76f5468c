"""How messages are kept: several of them in one row, a chunk.

Owns:      the encoding, which is part of the store's format: it does not change.
Not here:  which messages go together (flush.py), the rows (schema.py).
Threads:   any.

Measured, a row for each message took two to five times as long as one for each chunk of a flush.

A chunk is the time of its messages in microseconds (64 bits), and for each message four numbers of 32 bits: how far its
id is below that of the last one in the chunk, the seconds for which it is kept, the sizes of its headers and of its
body; then these themselves. All numbers are big-endian.

A chunk of restored messages, which were not appended together, has the greatest number in place of a time. Each message
has its time and the time at which it expires instead of the seconds (64 bits each), in microseconds.
"""

from collections.abc import Iterator, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812

from persistence.cassandra.buckets import FOR_EVER_US
from persistence.errors import StoreError
from persistence.facade import Record
from persistence.headers import decode_headers, encode_headers

_TIME = Struct(">Q")
_ENTRY = Struct(">IIII")
_FOR_EVER = 2**32 - 1
_RESTORED = b"\xff" * _TIME.size
_RESTORED_ENTRY = Struct(">IQQII")
BEFORE_MAX = 2**32 - 1
"""The ids of the messages of a chunk are no further apart."""


class Damaged(StoreError):
    """What is in a row is no chunk."""


def encode_message(before: int, seconds: int | None, headers: Mapping[str, bytes], body: bytes) -> bytes:
    """Return a message of a chunk, ``before`` ids before its last one."""
    head = encode_headers(headers) or b""
    kept = _FOR_EVER if seconds is None else seconds
    return b"".join((_ENTRY.pack(before, kept, len(head), len(body)), head, body))


def encode_chunk(time_us: int, messages: bytes) -> bytes:
    return _TIME.pack(time_us) + messages


def encode_restored(before: int, record: Record) -> bytes:
    """Return a message of a chunk of restored ones, ``before`` ids before its last one."""
    head = encode_headers(record.headers) or b""
    expires_us = FOR_EVER_US if record.expires_us is None else record.expires_us
    entry = _RESTORED_ENTRY.pack(before, record.time_us, expires_us, len(head), len(record.body))
    return b"".join((entry, head, record.body))


def encode_restored_chunk(messages: bytes) -> bytes:
    return _RESTORED + messages


def decode_chunk(last_id: int, chunk: bytes) -> Iterator[Record]:
    """Return the messages of a chunk, in order; ``last_id`` is the id of the last one.

    Raises:
        Damaged: that is no chunk. Nothing of ours writes such a row.
    """
    try:
        yield from _decoded(last_id, chunk)
    except (ValueError, StructError) as error:
        raise Damaged(str(error)) from error


def _decoded(last_id: int, chunk: bytes) -> Iterator[Record]:
    (common_us,) = _TIME.unpack_from(chunk)
    is_restored = chunk.startswith(_RESTORED)
    entry = _RESTORED_ENTRY if is_restored else _ENTRY
    start = _TIME.size
    while start < len(chunk):
        before, *times, headers_size, body_size = entry.unpack_from(chunk, start)
        body_start = start + entry.size + headers_size
        headers = chunk[start + entry.size : body_start]
        start = body_start + body_size
        if start > len(chunk) or before >= last_id:
            raise ValueError("its sizes do not fit")
        time_us, expires_us = times if is_restored else _times(common_us, *times)
        body = chunk[body_start:start]
        until = None if expires_us == FOR_EVER_US else expires_us
        yield Record(last_id - before, body, decode_headers(headers or None), time_us, until)


def _times(time_us: int, kept: int) -> tuple[int, int]:
    return time_us, FOR_EVER_US if kept == _FOR_EVER else time_us + kept * 1_000_000
