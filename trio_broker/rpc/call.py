"""One gRPC call of a server, still without I/O: messages in, messages and a status out.

Owns:      message framing, the checks of a request, replies, when a call is over.
Not here:  frames (connection.py), which handler runs and how (handlers.py), sockets (transport.py).
Threads:   none: plain data. Nothing here waits.

A `Call` is a `Stream` whose hooks know gRPC. The gRPC spec:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and doc/statuscodes.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from purerpc import Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.application import Application, Feed, Source
from trio_broker.rpc.budget import UNCOUNTED
from trio_broker.rpc.compression import ACCEPTED, DEFLATE_MIN_BYTES, DEFLATED, WINDOW_BITS, deflated
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.framing import PREFIX, PREFIX_BYTES, framed
from trio_broker.rpc.hpack import INDEXED_STATUS_200, literal
from trio_broker.rpc.identity import Identity
from trio_broker.rpc.inflow import AT_ONCE_BYTES, Inflow
from trio_broker.rpc.outflow import DeflatedReply
from trio_broker.rpc.request import REQUEST_ID, NotGrpc, Request, TimedRequest
from trio_broker.rpc.status import OK, OK_TRAILERS, Metadata, metadata_block, shown, trailers
from trio_broker.rpc.stream import Head, Stream

# A whole unary response in one write: the header of the DATA frame and the message's prefix, packed together.
_data_and_prefix = Struct(">IBIBI")

RESPONSE_HEAD = INDEXED_STATUS_200 + literal(b"content-type", b"application/grpc")
# The headers of its HEADERS frames, up to the stream's id.
_HEAD_START = frames.headers(0, 0, RESPONSE_HEAD)[:5]
_TRAILERS_START = frames.headers(frames.END_STREAM, 0, OK_TRAILERS)[:5]
_ACCEPTED = (("grpc-accept-encoding", ACCEPTED),)
# That of a response that streams, or answers a compressed request, and that of one which may be compressed.
_FULL_HEAD = RESPONSE_HEAD + metadata_block(_ACCEPTED)
_DEFLATE_MIN_BYTES = DEFLATE_MIN_BYTES + PREFIX_BYTES
_DEFLATED_HEAD = _FULL_HEAD + literal(b"grpc-encoding", DEFLATED.encode())
_SMALL_BYTES = 1024
"""A reply of no more is sent in any case: to refuse it would take as much, and what was done may not be undone."""
_CRUMB_BYTES = 64
"""A frame with less of a message, neither its beginning nor its end, is what floods are made of (section 10.5)."""
_OBJECT_BYTES = 64
"""What a message in an inbox takes besides its bytes: they may be none."""


def _inbox_bytes(message: bytes) -> int:
    return len(message) + _OBJECT_BYTES


class Call(Stream):
    """A gRPC call."""

    __slots__ = (
        "app",
        "bucket",
        "compresses",
        "credited",
        "deadline",
        "deflating_bytes",
        "feed",
        "first_message_s",
        "held",
        "inbox",
        "inflow",
        "initial_metadata",
        "last_word",
        "message",
        "method",
        "part",
        "request",
        "request_ended",
        "reserved",
        "room",
        "scope",
        "source",
        "started",
        "status",
        "timeout_s",
        "trailing_metadata",
        "wake",
        "work",
    )

    def __init__(self, app: Application, connection: Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.app = app
        self.request: Request | NotGrpc
        self.method: Any = None
        self.timeout_s: float | None = None
        self.deadline: float | None = None
        self.bucket = 0
        """Where `Deadlines` keeps it."""
        self.started = 0.0
        self.first_message_s: float | None = None
        """How long after ``started`` a response that streams had its first message."""
        self.status: Status | None = None
        """How the call ended; None while it goes on, and if the peer ended it."""
        self.message: Any = None
        """The request's message: bytes as received, then parsed."""
        self.inbox: deque[bytes] | None = None
        """Messages of a request that streams; taking one is the receiver's business (`taken`)."""
        self.request_ended = False
        self.part: bytearray | None = None
        """The beginning of a message of which the end has not arrived."""
        self.credited = 0
        """Bytes of ``part`` whose credit was given back already."""
        self.reserved = 0
        """What is held for ``part``: the whole message, by its announced size."""
        self.held = 0
        """That; the message, until the request ends; what is in the inbox."""
        self.inflow: Inflow | None = None
        """Takes the request in, since one of its messages is compressed."""
        self.compresses = False
        """Messages are compressed from now on, where that makes them smaller. A handler that is marked for it may
        change it."""
        self.deflating_bytes = 0
        """The reply that is being compressed."""
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata = ()
        self.source: Source | None = None
        self.feed: Feed | None = None
        """The source, if it is one."""
        self.last_word: Callable[[Status], Status] | None = None
        """Asked once for the status to end with, given the one that was to be; it may still `send`."""
        self.work: Any = None
        """For the handler's own use."""
        self.scope: Any = None
        """What runs this call and is to be cancelled with it."""
        self.wake: Callable[[], None] | None = None
        self.room: Callable[[], None] | None = None

    @property
    def identity(self) -> Identity | None:
        """Who calls, by the certificate that the connection was made with; None: without one."""
        return self.app.identity

    # -- the request ------------------------------------------------------------------------------------------

    def on_headers(self, head: Head) -> None:
        """Begin the call."""
        if isinstance(head, TimedRequest):
            self.timeout_s = head.timeout_s
            head = head.request
        if isinstance(head, NotGrpc):
            self.request = head
            return  # answered when the request is complete, if it is well-formed to its end
        assert isinstance(head, Request)
        self.request = head
        self.trailing_metadata = head.echo
        self.compresses = head.compresses
        self.method = head.route
        self.app.opened(self)
        if self.method is None:
            self.finish(Status(StatusCode.UNIMPLEMENTED, f"unknown method {shown(head.path)}"))

    def on_data(self, data: bytes) -> None:
        """Take part of the request's body: usually exactly one message."""
        if self.method is None or self.local_closed:
            self.take(len(data))
            return
        if self.part is None and len(data) >= PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(data)
            if size == len(data) - PREFIX_BYTES and not compressed and size <= self.connection.limits.message_max_bytes:
                self.on_message(data[PREFIX_BYTES:])
                return
        if self.message is None:
            self._assemble(data)
        else:
            self.finish_cardinality("more than one message")

    def on_end(self) -> None:
        """The request is complete."""
        if isinstance(self.request, NotGrpc):
            self._answer_plainly(self.request)
        elif not self.local_closed and (self.inflow is None or self.inflow.end()):
            self.request_ended = True
            if self.held and self.inbox is None:
                self.hold(-self.held)
            if self.part:
                self.finish(Status(StatusCode.INTERNAL, "the request ends within a message"))
            elif self.inbox is not None:
                self.app.received(self)
            elif self.message is None:
                self.finish_cardinality("no message")
            else:
                self.app.ready(self)

    def on_message(self, message: bytes) -> None:
        """Take a message of the request: that of a unary one; or it goes to the inbox, if there is room."""
        if self.inbox is not None:
            if self.hold(_inbox_bytes(message) - self.reserved):
                self.reserved = 0
                self.inbox.append(message)
                self.app.received(self)
            else:
                self.finish_overloaded()
        elif self.message is None:
            self.message = message
            self.take(len(message) + PREFIX_BYTES - self.credited)
        else:
            self.finish_cardinality("more than one message")

    def finish_cardinality(self, found: str) -> None:
        """Doc/statuscodes.md: "Request cardinality violation"."""
        self.finish(Status(StatusCode.UNIMPLEMENTED, f"the method takes one message; the request has {found}"))

    def _assemble(self, data: bytes) -> None:
        """Several messages, or parts of one. A message too large is refused by its prefix, not buffered."""
        connection = self.connection
        begun = self.part is not None
        if self.part is None:
            self.part = bytearray(data)
        else:
            self.part += data
            if self.inflow is not None:
                self.inflow.go_on()
                return
        part = self.part
        announced = PREFIX_BYTES
        while len(part) >= PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(part)
            if size > connection.limits.message_max_bytes:
                self.finish(self.app.refusals.message_too_large(size, connection.limits.message_max_bytes))
                return
            if compressed:
                self._begin_inflow()
                return
            announced = PREFIX_BYTES + size
            if len(part) < announced:
                break
            with memoryview(part) as view:
                message = bytes(view[PREFIX_BYTES:announced])
            del part[:announced]
            if self.inbox is not None:  # `taken` gives the whole credit
                self.unreturned -= min(self.credited, announced)
                self.credited -= min(self.credited, announced)
            self.on_message(message)
            if self.local_closed:
                return
            announced = PREFIX_BYTES
        if not part:
            self.part = None
            return
        if begun and len(data) < _CRUMB_BYTES:
            connection.spend()
        if self._reserve(announced):
            # credit for an unfinished message, or it may never be finished: its size bounds it, not the window
            self.take(len(part) - self.credited)
            self.credited = len(part)
        else:
            self.finish_overloaded()

    def _reserve(self, announced: int) -> bool:
        """Hold a message that has begun to arrive; say whether there is room for all of it.

        For all at once: of many that arrive side by side and do not fit together, some are to be finished.
        """
        more = announced - self.reserved
        self.reserved = announced
        return self.hold(more)

    def hold(self, more: int) -> bool:
        """Count ``more`` bytes of the request as held, or fewer; say whether there is room for them."""
        connection = self.connection
        inbound = connection.budgets.inbound
        room = more <= 0 or (connection.held + more <= connection.limits.inbound_max_bytes and inbound.has_room(more))
        if not room:  # the call ends; until the peer lets it, others are not to be refused for its sake
            self.part = None
            return False
        self.held += more
        connection.held += more
        inbound.held_bytes += more
        return True

    def on_unended(self) -> None:
        """A whole message is held until the request ends, too."""
        if self.message is not None and not self.held and not self.local_closed:
            assert isinstance(self.message, bytes)
            if not self.hold(len(self.message) + PREFIX_BYTES):
                self.finish_overloaded()

    def finish_overloaded(self) -> None:
        """There is no room for the request."""
        self.finish(self.app.refusals.overloaded("too many unfinished requests are held"))

    def _begin_inflow(self) -> None:
        """Doc/compression.md: an algorithm that the server lacks is UNIMPLEMENTED, an unnamed one INTERNAL."""
        assert isinstance(self.request, Request)
        encoding = self.request.encoding
        if encoding in (None, "identity"):
            self.finish(Status(StatusCode.INTERNAL, "a compressed message without grpc-encoding"))
        elif encoding in WINDOW_BITS:
            self.inflow = Inflow(self, encoding)
            self.inflow.go_on()
        else:
            self.trailing_metadata = [*self.trailing_metadata, *_ACCEPTED]
            text = f"grpc-encoding {shown(encoding)} is not supported: send one of {ACCEPTED}"
            self.finish(Status(StatusCode.UNIMPLEMENTED, text))

    def taken(self, message: bytes) -> None:
        """A message left the inbox: the peer may send as much again."""
        self.take(len(message) + PREFIX_BYTES)
        if not self.closed:
            self.hold(-_inbox_bytes(message))
            if self.inflow is not None:
                self.inflow.room_again()

    def take_message(self) -> bytes:
        """Take a message from the inbox, where there is one. It is held no longer, but its credit is not given back.

        Who takes it gives that back, with `take`, of as many bytes as the message has and `PREFIX_BYTES`.
        """
        assert self.inbox
        message = self.inbox.popleft()
        if not self.closed:
            self.hold(-_inbox_bytes(message))
            if self.inflow is not None:
                self.inflow.room_again()
        return message

    def request_id(self) -> str:
        """Return what names this call in logs: the client's x-request-id, or one that is made now.

        It is among the trailers from here on.
        """
        for name, value in self.trailing_metadata:
            if name == REQUEST_ID:
                return str(value)
        made = f"{self.app.connection_id}-{self.id}"
        self.trailing_metadata = [*self.trailing_metadata, (REQUEST_ID, made)]
        return made

    # -- the response -----------------------------------------------------------------------------------------

    def reply(self, message: bytes) -> None:
        """Answer with one message and OK: all of it in one piece where the windows allow."""
        connection = self.connection
        size = len(message) + PREFIX_BYTES
        if (
            self.responded
            or self.local_closed
            or size > self.send_window
            or size > connection.send_window
            or size > connection.peer_frame_max
            or connection.stalled
            or self.initial_metadata
            or self.trailing_metadata
            or self.inflow is not None
            or (self.compresses and size >= _DEFLATE_MIN_BYTES)
        ):
            self._reply_in_parts(message)
            return
        self.local_closed = self.responded = True
        self.status = OK
        connection.send_window -= size
        stream_id = frames.pack_u32(self.id)
        prefix = _data_and_prefix.pack(size << 8, 0, self.id, 0, size - PREFIX_BYTES)
        connection.answered()
        connection.write(
            b"".join((_HEAD_START, stream_id, RESPONSE_HEAD, prefix, message, _TRAILERS_START, stream_id, OK_TRAILERS))
        )
        connection.ended(self)

    def _reply_in_parts(self, message: bytes) -> None:
        if self.status is not None:
            return
        waiting = self.connection.queued_bytes
        if len(message) > _SMALL_BYTES:
            if waiting and waiting + len(message) > self.connection.limits.outbound_max_bytes:
                text = f"{waiting} bytes of replies wait for this connection's windows"
                self.finish(self.app.refusals.overloaded(text))
                return
            if not self.account.has_room(len(message)):
                self.finish(self.app.refusals.overloaded("too many replies wait for clients that do not read"))
                return
        self.send_head()
        if self.compresses and len(message) > AT_ONCE_BYTES:
            self.status = OK  # it stands, as if it waited for a window
            self.deflating_bytes = len(message)
            self.account.held_bytes += len(message)
            self.app.aside(DeflatedReply(self, message))
        else:
            self.send_message(message)
            self.finish(OK)

    def send_message(self, message: bytes) -> None:
        """Queue one message of the response, compressed if that is wanted."""
        if self.compresses and len(message) >= DEFLATE_MIN_BYTES:
            self.send(deflated(message))
        else:
            self.send(framed(message))

    def shed(self, status: Status) -> None:
        """End the call at once, and drop what is queued, since memory is short: by ``status`` if that can leave now."""
        self.finish(status)
        if not self.closed:  # it waits for a window; clients take the code for RESOURCE_EXHAUSTED
            self.reset(frames.ENHANCE_YOUR_CALM)

    def hurry(self, seconds: float) -> None:
        """End the call after this much time, if it has not ended by itself, as if its deadline had passed."""
        if not self.closed:
            self.app.hurry(self, seconds)

    def send_head(self) -> None:
        """Send the response's headers now, with `initial_metadata`; otherwise they leave with the first message."""
        if not self.responded:
            head = _DEFLATED_HEAD if self.compresses else _FULL_HEAD
            self.send_headers(head + metadata_block(self.initial_metadata))

    def finish(self, status: Status) -> None:
        """End the call with a status and `trailing_metadata`, after what was sent. Later calls do nothing.

        Whoever gets an error also gets the `request_id` by which its cause is found in the log.
        """
        if self.local_closed:
            return
        if self.last_word is not None:
            say, self.last_word = self.last_word, None
            status = say(status)
        self.status = status
        if status is not OK:
            self.request_id()
        block = trailers(status, self.trailing_metadata)
        alone = None if self.responded else RESPONSE_HEAD + metadata_block(self.initial_metadata) + block
        if not self.responded:
            self.connection.answered()
        self.end(block, alone)

    def attach(self, source: Source) -> None:
        """Answer from a source: headers leave now, messages whenever they may leave."""
        if self.local_closed:
            source.close()
            return
        self.source = source
        self.account = UNCOUNTED
        self.more = partial(self._take_first, source)
        self.send_head()
        self.connection.mark(self)

    def _take_first(self, source: Source, credit: int) -> bytes:
        """Ask the source until it has a message; from then on it is asked directly."""
        data = source.take(self, credit)
        if data or self.queued_bytes:
            self.app.began(self)
            if self.more is not None:  # else it has ended already
                self.more = partial(source.take, self)
        return data

    def on_room(self) -> None:
        """All that was queued has left: a handler that waits for it goes on."""
        if self.room is not None:
            self.room()

    def on_closed(self) -> None:
        """End everything that belongs to the call."""
        if self.held:
            self.hold(-self.held)
        if self.deflating_bytes:
            self.account.held_bytes -= self.deflating_bytes
        self.part = self.inflow = None
        if self.source is not None:
            self.source.close()
            # they know the call: no cycle is left for the collector
            self.source = self.feed = self.more = self.last_word = None
        if self.room is not None:
            self.room()
        if isinstance(self.request, Request):
            self.app.over(self)
        self.work = None

    def _answer_plainly(self, problem: NotGrpc) -> None:
        """Answer what is not gRPC as HTTP, with a text that a person can read."""
        body = f"{problem.text}\n".encode()
        status = literal(b":status", b"%d" % problem.status)
        self.send_headers(
            status + literal(b"content-type", b"text/plain") + literal(b"content-length", b"%d" % len(body))
        )
        self.send(body)
        self.end(b"")
