"""One gRPC call as the client sees it: what has been received of it, and how it ended. Sans-io.

Owns:      message framing, and what response headers, trailers and their absence mean (gRPC over HTTP/2).
Not here:  frames and windows (trio_broker/client/wire.py); what a status means (trio_broker/client/statuses.py).
Threads:   one owner; nothing here waits.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from trio_broker.errors import BrokerError, ConnectionLost
from trio_broker.rpc.framing import PREFIX_BYTES

MESSAGE_MAX_BYTES = 64 * 1024 * 1024
"""The largest reply taken: a bound on memory, far above what a broker keeps by default."""

_STATUS_DIGITS_MAX = 9
"""Of grpc-status: no code that exists has more than two, and Python refuses to read thousands."""


class Trailers(NamedTuple):
    """The server's last word on a call."""

    status: int
    message: str
    details: str
    """``grpc-status-details-bin`` as it came: base64; empty when there was none."""


class Unusable(Exception):
    """The server answered this call with something that is not gRPC as we can read it."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One call, on one stream. `wire` keeps the windows."""

    stream_id: int
    send_window: int
    """How many bytes the server still takes."""
    receive_window: int
    """How many bytes the server may still send."""
    taken_bytes: int = 0
    """How many bytes to give back to the receive window."""
    sent: bool = False
    """Nothing more is to be sent: the request is out, or the stream was reset."""
    started: bool = False
    """Response headers have arrived."""
    messages: deque[bytes] = field(default_factory=deque)
    held_bytes: int = 0
    """The size of the messages, and of the beginning of one, that nobody has taken."""
    end: Trailers | BrokerError | None = None
    """None while the call is open."""
    _partial: bytearray = field(default_factory=bytearray)

    def on_headers(self, fields: list[tuple[bytes, bytes]], *, last: bool) -> None:
        """Take response headers or trailers; ``last``: the stream ends with them.

        Raises:
            Unusable: this is no answer of a gRPC server.
        """
        headers = dict(fields)
        status = headers.get(b":status", b"200")
        if status.startswith(b"1") and not last:  # informational, such as 103
            return
        content_type = headers.get(b"content-type", b"application/grpc")
        if status != b"200" or not content_type.startswith(b"application/grpc"):
            raise Unusable(f"not a gRPC server: it answered HTTP {status.decode(errors='replace')}")
        if not last:
            if self.started:
                raise Unusable("the server sent headers twice")
            self.started = True
            return
        code = headers.get(b"grpc-status", b"")
        if not code.isdigit() or len(code) > _STATUS_DIGITS_MAX:
            self.end = ConnectionLost("the call ended without a status")
            return
        message = unquote(headers.get(b"grpc-message", b"").decode("ascii", "replace"))
        self.end = Trailers(int(code), message, headers.get(b"grpc-status-details-bin", b"").decode("ascii", "replace"))

    def on_data(self, data: bytes) -> None:
        """Take a piece of the response, cut anywhere.

        Raises:
            Unusable: a message is too large, or compressed though we did not ask for it.
        """
        if not self.started:
            raise Unusable("the server sent a message before its headers")
        self.held_bytes += len(data)
        partial = self._partial
        partial += data
        position = 0
        while len(partial) - position >= PREFIX_BYTES:
            size = int.from_bytes(partial[position + 1 : position + PREFIX_BYTES])
            if partial[position]:
                raise Unusable("the server sent a compressed message, which it was not asked for")
            if size > MESSAGE_MAX_BYTES:
                raise Unusable(f"the server sent a message of {size} bytes; at most {MESSAGE_MAX_BYTES} are taken")
            end = position + PREFIX_BYTES + size
            if end > len(partial):
                break
            self.messages.append(bytes(partial[position + PREFIX_BYTES : end]))
            position = end
        del partial[:position]

    def take(self) -> list[bytes]:
        """Return the messages that have arrived, which makes room for others."""
        messages = list(self.messages)
        self.messages.clear()
        self.taken_bytes += self.held_bytes
        self.held_bytes = 0
        return messages


def frame(message: bytes) -> memoryview:
    """Return a message as it is sent: with its length before it."""
    return memoryview(b"\0" + len(message).to_bytes(PREFIX_BYTES - 1) + message)


def write_timeout(timeout_s: float) -> bytes:
    """Write a timeout for ``grpc-timeout``: a unit, and at most eight digits."""
    for per_second, unit in ((1_000_000, b"u"), (1_000, b"m"), (1, b"S")):
        if (value := round(timeout_s * per_second)) < 10**8:
            return b"%d%b" % (max(value, 1), unit)
    return b"99999999S"
