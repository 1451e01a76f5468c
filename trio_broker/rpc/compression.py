"""Compressed messages (gRPC's doc/compression.md and PROTOCOL-HTTP2.md, "Message-Encoding").

Owns:      which encodings there are, one message inflated within a bound, one message deflated.
Not here:  which messages of a call are compressed (inflow.py, call.py), threads (aside.py).
Threads:   any, one at a time for each `Inflation`: zlib lets other threads run meanwhile.

``gzip`` is RFC 1952, with one member: gRPC's C core takes no more either. ``deflate`` is
the zlib format of RFC 1950, not the bare one of RFC 1951.
"""

from __future__ import annotations

import zlib

from trio_broker.rpc.framing import PREFIX, framed

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What we inflate, and zlib's name for it."""
ACCEPTED = "identity,deflate,gzip"
"""What we tell clients of it (grpc-accept-encoding)."""
INFLATER_BYTES = 48 * 1024
"""What zlib keeps while it inflates: its window and its tables."""
DEFLATED = "gzip"
"""How our replies are compressed, if they are: every gRPC library knows it."""
DEFLATE_MIN_BYTES = 1024
"""What is smaller is sent as it is: it would save less than a packet."""
_LEVEL = 1
"""Four times as fast as zlib's usual 6, for a seventh more bytes of JSON."""


class Corrupt(Exception):
    """The data is not what the encoding says."""


class InflatesTooLarge(Exception):
    """The message is larger than may be. No more than that was inflated."""


class Inflation:
    """One message that is being inflated."""

    __slots__ = ("_left", "_limit", "_pieces", "_zlib", "size")

    def __init__(self, encoding: str, data: bytes, limit: int) -> None:
        """Inflate ``data``, to ``limit`` bytes at most."""
        self._zlib = zlib.decompressobj(WINDOW_BITS[encoding])
        self._left = data
        self._limit = limit
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes that there are so far."""

    def run(self, room: int) -> bytes | None:
        """Inflate ``room`` bytes more at most, at least 1; return the message when it is complete.

        Raises:
            Corrupt: what it says.
            InflatesTooLarge: the same.
        """
        room = min(room, self._limit + 1 - self.size)
        try:
            piece = self._zlib.decompress(self._left, room)
        except zlib.error as error:
            raise Corrupt(str(error)) from None
        self._left = self._zlib.unconsumed_tail
        self._pieces.append(piece)
        self.size += len(piece)
        if self.size > self._limit:
            raise InflatesTooLarge
        if self._zlib.eof:
            if self._zlib.unused_data:
                raise Corrupt(f"{len(self._zlib.unused_data)} bytes after its end")
            return b"".join(self._pieces)
        if len(piece) < room:  # zlib gives what it can
            raise Corrupt("its end is missing")
        return None

    def run_all(self) -> bytes | Corrupt | InflatesTooLarge:
        """Inflate all the rest; return the message, or what is wrong with it."""
        try:
            message = self.run(self._limit + 1)
        except (Corrupt, InflatesTooLarge) as error:
            return error.with_traceback(None)
        assert message is not None  # beyond the limit is an error
        return message


def deflated(message: bytes) -> bytes:
    """Return a message compressed and with its prefix; if that would be no smaller, uncompressed."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, WINDOW_BITS[DEFLATED])
    packed = packer.compress(message) + packer.flush()
    if len(packed) < len(message):
        return PREFIX.pack(1, len(packed)) + packed
    return framed(message)


def accepts(accept_encoding: str | None) -> bool:
    """Say whether a client that sent this grpc-accept-encoding understands our compressed replies."""
    return accept_encoding is not None and DEFLATED in map(str.strip, accept_encoding.split(","))
