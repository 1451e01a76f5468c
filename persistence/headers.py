"""A message's headers as bytes, for stores that keep them in one column.

Owns:      the encoding, which is part of every such store's format: it does not change.
Not here:  how many headers a message may have, and how large (trio_broker/).
Threads:   any.

Each header is the length of its name and of its value (two big-endian 32-bit numbers), its name in UTF-8, its value.
"""

from collections.abc import Mapping
from struct import Struct

from persistence.facade import NO_HEADERS

_LENGTHS = Struct(">II")


def encode_headers(headers: Mapping[str, bytes]) -> bytes | None:
    """Return ``headers`` as bytes; None when there are none."""
    if not headers:
        return None
    parts: list[bytes] = []
    for name, value in headers.items():
        name_utf8 = name.encode()
        parts += (_LENGTHS.pack(len(name_utf8), len(value)), name_utf8, value)
    return b"".join(parts)


def decode_headers(data: bytes | None) -> Mapping[str, bytes]:
    """Return what `encode_headers` was given."""
    if data is None:
        return NO_HEADERS
    headers: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        name_size, value_size = _LENGTHS.unpack_from(data, start)
        value_start = start + _LENGTHS.size + name_size
        name = data[start + _LENGTHS.size : value_start].decode()
        start = value_start + value_size
        headers[name] = data[value_start:start]
    return headers


def headers_size_bytes(headers: Mapping[str, bytes]) -> int:
    """Return what headers count for against limits in bytes: names and values."""
    return sum(len(name.encode()) + len(value) for name, value in headers.items())
