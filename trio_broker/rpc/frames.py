"""HTTP/2 frames as bytes (RFC 9113, sections 4, 6, 7): constants, packing, and the two kinds of error.

Owns:      numbers and layouts.
Not here:  what a frame means (connection.py).
"""

from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

FRAME_HEADER_BYTES: Final = 9
FRAME_MAX_BYTES: Final = 16_384
"""The largest payload we accept: the initial SETTINGS_MAX_FRAME_SIZE, which we leave as it is (section 4.2)."""
WINDOW_MAX: Final = 2**31 - 1
STREAM_ID_MAX: Final = 2**31 - 1
WINDOW_INITIAL: Final = 65_535
"""Of the connection and of each stream until SETTINGS say otherwise (section 6.9.2)."""

# frame types (section 6)
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

# flags
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# settings (section 6.5.2)
HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

# error codes (section 7)
NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

_ERROR_NAMES = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
    *("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"),
)

# The first four bytes of a frame header hold the payload's length (24 bits) and the type (8 bits).
_header = Struct(">IBI")
_u32 = Struct(">I")
_setting = Struct(">HI")

pack_header = _header.pack
unpack_header = _header.unpack_from
pack_u32 = _u32.pack
unpack_u32 = _u32.unpack_from
iter_settings = _setting.iter_unpack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return pack_header(len(payload) << 8 | kind, flags, stream_id) + payload


def headers(flags: int, stream_id: int, block: bytes) -> bytes:
    """Return a header block as a HEADERS frame, and as many CONTINUATIONs as it needs (sections 6.2 and 6.10)."""
    if len(block) <= FRAME_MAX_BYTES:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[begin : begin + FRAME_MAX_BYTES] for begin in range(0, len(block), FRAME_MAX_BYTES)]
    between = b"".join(frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1])
    return frame(HEADERS, flags, stream_id, parts[0]) + between + frame(CONTINUATION, END_HEADERS, stream_id, parts[-1])


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame (section 6.5)."""
    return frame(SETTINGS, 0, 0, b"".join(_setting.pack(name, value) for name, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame (section 6.9); stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, pack_u32(increment))


def reset(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM frame (section 6.4)."""
    return frame(RST_STREAM, 0, stream_id, pack_u32(code))


def goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """Return a GOAWAY frame (section 6.8); ``text`` is for people who read a capture."""
    return frame(GOAWAY, 0, 0, pack_u32(last_stream_id) + pack_u32(code) + text.encode())


def error_name(code: int) -> str:
    """Return the name of an error code, for people."""
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"{code:#x}"


class ConnectionFailed(Exception):
    """The peer broke a rule that ends the connection (section 5.4.1)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamFailed(Exception):
    """The peer broke a rule that ends one stream (section 5.4.2)."""

    def __init__(self, stream_id: int, code: int, text: str) -> None:
        super().__init__(text)
        self.stream_id = stream_id
        self.code = code


def unpadded(payload: bytes) -> bytes:
    """Strip the padding of a DATA or HEADERS frame that has the flag `PADDED` (sections 6.1, 6.2)."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFailed(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
