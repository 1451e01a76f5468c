"""How messages are kept: several of them in one row, a chunk.

Owns:      the encoding, which is part of the store's format: it does not change.
Not here:  which messages go together (flush.py), the rows (schema.py).
Threads:   any.

Measured, a row for each message took two to five times as long as one for each chunk of a flush.

A chunk is the time of its messages in microseconds (64 bits), and for each message four numbers of 32 bits: how far its
id is below that of the last one in the chunk, the seconds for which it is kept, the sizes of its headers and of its
body; then these themselves. All numbers are big-endian.
"""

from collections.abc import Iterator, Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812

from persistence.errors import StoreError
from persistence.facade import Record
from persistence.headers import decode_headers, encode_headers

_TIME = Struct(">Q")
_ENTRY = Struct(">IIII")
_FOR_EVER = 2**32 - 1


class Damaged(StoreError):
    """What is in a row is no chunk."""


def encode_message(before: int, seconds: int | None, headers: Mapping[str, bytes], body: bytes) -> bytes:
    """Return a message of a chunk, ``before`` ids before its last one."""
    head = encode_headers(headers) or b""
    kept = _FOR_EVER if seconds is None else seconds
    return b"".join((_ENTRY.pack(before, kept, len(head), len(body)), head, body))


def encode_chunk(time_us: int, messages: bytes) -> bytes:
    return _TIME.pack(time_us) + messages


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
    (time_us,) = _TIME.unpack_from(chunk)
    start = _TIME.size
    while start < len(chunk):
        before, kept, headers_size, body_size = _ENTRY.unpack_from(chunk, start)
        body_start = start + _ENTRY.size + headers_size
        headers = chunk[start + _ENTRY.size : body_start]
        start = body_start + body_size
        if start > len(chunk) or before >= last_id:
            raise ValueError("its sizes do not fit")
        yield Record(
            last_id - before,
            chunk[body_start:start],
            decode_headers(headers or None),
            time_us,
            None if kept == _FOR_EVER else time_us + kept * 1_000_000,
        )
