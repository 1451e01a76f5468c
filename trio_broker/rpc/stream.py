"""One HTTP/2 stream as a server sees it (RFC 9113, section 5.1), and what may be sent on it.

Owns:      the stream's state, its windows, and the bytes that wait for them.
Not here:  frames that arrive (connection.py), when queued bytes leave (outbound.py), gRPC (call.py).
Threads:   none: plain data, no I/O, no clock. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from trio_broker.rpc import frames

if TYPE_CHECKING:
    from trio_broker.rpc.connection import Connection


class Head(Protocol):
    """What `Connection` needs of a parsed header section; the rest is between the parser and the stream."""

    @property
    def content_length(self) -> int | None:
        """The content-length header, for RFC 9113, section 8.1.1."""


class Stream:
    """A request and its response. Subclasses fill in the ``on_`` hooks; hooks must not raise."""

    __slots__ = (
        "account",
        "body_left",
        "born_s",
        "closed",
        "connection",
        "dirty",
        "id",
        "local_closed",
        "more",
        "queue",
        "queued_bytes",
        "receive_window",
        "remote_closed",
        "responded",
        "send_window",
        "trailers",
        "unreturned",
    )

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.born_s = connection.age_s
        self.send_window = connection.peer_window
        self.receive_window = connection.limits.stream_window_bytes
        self.unreturned = 0
        """Received bytes that were taken, and whose credit was not yet given back."""
        self.body_left: int | None = None
        """What content-length still promises."""
        self.more: Callable[[int], bytes] | None = None
        """Asked for more of the response's body, about so many bytes, when all that is queued may leave.

        It may end the response only if it returns nothing.
        """
        self.queue: list[bytes | memoryview] = []
        self.queued_bytes = 0
        self.account = connection.budgets.outbound
        """Where queued bytes are counted for all connections."""
        self.trailers: bytes | None = None
        """The header block to end with, once the queue is sent; empty: END_STREAM on the last DATA."""
        self.responded = False
        self.remote_closed = False
        """The peer has ended its side: half-closed (remote)."""
        self.local_closed = False
        """Our side has ended, or will when the queue is sent: nothing more may be sent."""
        self.closed = False
        self.dirty = False
        """Waits in the connection's queue, or for a window."""

    # -- hooks ------------------------------------------------------------------------------------------------

    def on_headers(self, head: Head) -> None:
        """The request's header section arrived."""

    def on_data(self, data: bytes) -> None:
        """Some of the request's body arrived: `take` it when it is no longer held."""

    def on_unended(self) -> None:
        """What `on_data` gave is not the end of the request."""

    def on_end(self) -> None:
        """The request is complete."""

    def on_closed(self) -> None:
        """The stream is over, in whatever way; called exactly once."""

    def on_room(self) -> None:
        """All that was queued has left."""

    # -- sending ----------------------------------------------------------------------------------------------

    def send_headers(self, block: bytes) -> None:
        """Send the response's header block; once."""
        if self.local_closed or self.responded:
            return
        self.responded = True
        connection = self.connection
        connection.answered()
        connection.write(frames.headers(0, self.id, block))

    def send(self, data: bytes) -> None:
        """Queue bytes of the response's body; they leave as the peer's windows allow."""
        if self.local_closed:
            return
        self.queue.append(data)
        self.queued_bytes += len(data)
        self.connection.queued_bytes += len(data)
        self.account.held_bytes += len(data)
        if not self.dirty:
            self.connection.mark(self)

    def end(self, trailers: bytes, alone: bytes | None = None) -> None:
        """End the response after what is queued, with a trailer block.

        Args:
            trailers: the block; empty ends with the last DATA frame instead.
            alone: the block to send where no header block was sent yet ("trailers-only").
        """
        if self.local_closed:
            return
        self.local_closed = True
        self.more = None
        self.trailers = trailers if self.responded or alone is None else alone
        if self.queued_bytes:
            if not self.dirty:
                self.connection.mark(self)
        else:
            self.connection.end_stream(self)

    def reset(self, code: int) -> None:
        """End both sides at once (section 6.4). Queued bytes are dropped."""
        if not self.closed:
            self.connection.write(frames.reset(self.id, code))
            self.connection.drop(self)

    # -- receiving --------------------------------------------------------------------------------------------

    def take(self, count: int) -> None:
        """Give the peer credit for ``count`` bytes of body that are no longer held (section 6.9).

        In steps of half a window, so that a small request costs no WINDOW_UPDATE at all.
        """
        self.unreturned += count
        if self.unreturned >= self.connection.limits.stream_window_bytes >> 1 and not (
            self.remote_closed or self.closed
        ):
            self.receive_window += self.unreturned
            self.connection.write(frames.window_update(self.id, self.unreturned))
            self.unreturned = 0
