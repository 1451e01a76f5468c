"""A message as gRPC frames it: a flag, its length, its bytes ("Length-Prefixed-Message" of gRPC's PROTOCOL-HTTP2.md).

Owns:      the prefix.
Not here:  what is compressed behind it (compression.py), finding messages in a request (call.py, inflow.py).
Threads:   any: pure functions.
"""

from struct import Struct

PREFIX_BYTES = 5
PREFIX = Struct(">BI")
"""1 if the message is compressed, else 0; how many bytes it has."""


def framed(message: bytes) -> bytes:
    """Return a message with its prefix, uncompressed."""
    return PREFIX.pack(0, len(message)) + message


def frame_prefix(size: int) -> bytes:
    """Return the prefix of an uncompressed message of so many bytes."""
    return PREFIX.pack(0, size)
