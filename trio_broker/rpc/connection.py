"""One HTTP/2 connection of a server: bytes in, calls on streams out (RFC 9113). Sans-io: no socket, no trio, no clock.

Owns:      frames as bytes, DATA and HEADERS in every state of a stream.
Not here:  the other frames and the ends of streams (control.py), what leaves and when (outbound.py), header
           compression (hpack.py), gRPC (call.py, request.py), TLS and sockets (transport.py).
Threads:   none. Nothing here waits.

The owner feeds `receive`, writes what `take` returns, and closes the socket when `finished` says so. A rule that
is broken ends the stream (RST_STREAM) or the connection (GOAWAY), as the RFC says at each rule. Frames for
streams that we have ended ourselves may still be on their way: they are ignored, but their headers are decoded
and their bytes counted (section 5.1, "closed").
"""

from __future__ import annotations

from collections.abc import Callable

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.control import Control
from trio_broker.rpc.frames import ConnectionFailed, StreamFailed
from trio_broker.rpc.hpack import Decoder, HeaderListTooLarge, HpackError, list_size
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.stream import Head, Stream

Fields = list[tuple[bytes, bytes]]

_HEADS_KEPT_BYTES = 8 * 1024
"""Header lists whose parsed heads are kept for the next request with the same block, counted as in section 6.5.2."""


class MalformedRequest(Exception):
    """A header section that RFC 9113, section 8 calls malformed: a stream error of type PROTOCOL_ERROR."""


class Connection(Control):
    """The server's end of one HTTP/2 connection.

    Args:
        new_stream: makes the stream of each request; its hooks get what arrives.
        parse_head: checks and parses a request's header fields, or raises `MalformedRequest`.
        on_output: called when there is something to `take`, once until it was taken.
        budgets: what it shares with other connections; None: it is alone.
    """

    def __init__(
        self,
        new_stream: Callable[[Connection, int], Stream],
        parse_head: Callable[[Fields], Head],
        on_output: Callable[[], None],
        limits: Limits,
        budgets: Budgets | None = None,
    ) -> None:
        super().__init__(limits, on_output, budgets)
        self._new_stream = new_stream
        self._parse_head = parse_head
        self.held = 0
        """Bytes of requests that are held, over all streams; kept by call.py."""
        self._decoder = Decoder(limits.header_table_bytes, limits.header_list_max_bytes)
        self._heads: dict[bytes, Head] = {}
        self._heads_bytes = 0
        self._buffer = b""
        self._buffered_s = 0.0
        """The connection's age when the frame began of which ``_buffer`` is a part."""
        self._prefaced = False
        self._receive_window = limits.connection_window_bytes
        self._unreturned = 0
        self._block: _HeaderBlock | None = None
        self._on_control = {**self.control_frames(), frames.CONTINUATION: self._on_continuation}
        self.write(
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: limits.header_table_bytes,
                    frames.MAX_CONCURRENT_STREAMS: limits.streams_max,
                    frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.MAX_HEADER_LIST_SIZE: limits.header_list_max_bytes,
                }
            )
        )
        if limits.connection_window_bytes > frames.WINDOW_INITIAL:
            self.write(frames.window_update(0, limits.connection_window_bytes - frames.WINDOW_INITIAL))

    # -- for the owner ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer, in pieces of any size. Never raises for what a peer can send."""
        try:
            self._receive(data)
        except ConnectionFailed as error:
            self.fail(error.code, str(error))

    def fail(self, code: int, text: str) -> None:
        """End the connection with an error (section 5.4.1). Every open stream is dropped."""
        super().fail(code, text)
        self._keep(b"")
        self._forget_block()

    def release(self) -> None:
        """The socket is closed: give back what is held, and know the owner no longer. Nothing may follow."""
        self.failed = True
        self._keep(b"")
        self._forget_block()
        self._forget_heads()
        self._on_control.clear()
        self._new_stream = Stream  # no method of the owner's: no cycle is left for the collector
        self.forget_all()

    @property
    def unfinished_since_s(self) -> float | None:
        """The connection's age when the oldest frame or header block began whose end has not arrived."""
        since_s = [] if self._block is None else [self._block.began_s]
        if self._buffer:
            since_s.append(self._buffered_s)
        return min(since_s, default=None)

    @property
    def inbound_bytes(self) -> int:
        """What it holds of `Budgets.inbound`."""
        return self.held + len(self._buffer) + (0 if self._block is None else self._block.size)

    # -- frames -----------------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        if self.failed:
            return
        buffered = self._buffer
        if buffered:
            data = buffered + data
            self._keep(b"")
        if not self._prefaced:
            data = self._without_preface(data)
        position = 0
        end = len(data)
        began_s = self._buffered_s if buffered else self.age_s
        while end - position >= frames.FRAME_HEADER_BYTES:
            length_and_kind, flags, stream_id = frames.unpack_header(data, position)
            length = length_and_kind >> 8
            if length > frames.FRAME_MAX_BYTES:
                raise ConnectionFailed(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")  # section 4.2
            begin = position + frames.FRAME_HEADER_BYTES
            if begin + length > end:
                break
            position = begin + length
            try:
                self._on_frame(length_and_kind & 0xFF, flags, stream_id & frames.STREAM_ID_MAX, data[begin:position])
            except StreamFailed as error:
                self._fail_stream(error)
        if position < end:
            self._buffered_s = self.age_s if position else began_s
            self._keep(data[position:] if position else data)

    def _keep(self, piece: bytes) -> None:
        """Keep the beginning of a frame, of which the rest has not arrived."""
        self.budgets.inbound.held_bytes += len(piece) - len(self._buffer)
        self._buffer = piece

    def _without_preface(self, data: bytes) -> bytes:
        """Check what a client sends first (section 3.4); nothing comes back while it is incomplete."""
        preface = data[: len(frames.PREFACE)]
        if not frames.PREFACE.startswith(preface):
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "this port speaks HTTP/2 (gRPC) only")
        if len(preface) < len(frames.PREFACE):
            self._keep(data)
            return b""
        self._prefaced = True
        return data[len(preface) :]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "a header block was interrupted")  # section 6.10
        if not self.settled and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "the first frame must be SETTINGS")  # section 3.4
        if kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._on_headers_frame(flags, stream_id, payload)
        elif (handler := self._on_control.get(kind)) is not None:
            handler(flags, stream_id, payload)
        else:
            self.spend()  # unknown types are ignored (section 4.1), not in any number

    def _fail_stream(self, error: StreamFailed) -> None:
        if error.stream_id > self.last_stream_id or not error.stream_id & 1:
            raise ConnectionFailed(error.code, str(error))  # no RST_STREAM for an idle stream (section 6.4)
        self.spend()
        self.write(frames.reset(error.stream_id, error.code))
        stream = self.streams.get(error.stream_id)
        if stream is not None:
            self.drop(stream)
        else:
            self._remember(error.stream_id)

    # -- DATA (section 6.1) -----------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "the connection's window was exceeded")  # section 6.9.1
        self._unreturned += length
        if self._unreturned >= self.limits.connection_window_bytes >> 1:
            # The connection's credit is returned at once: what a stream may hold is bounded by its own window.
            self.write(frames.window_update(0, self._unreturned))
            self._receive_window += self._unreturned
            self._unreturned = 0
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_closed:
            self._on_late_data(flags, stream_id, payload)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise StreamFailed(stream_id, frames.FLOW_CONTROL_ERROR, "the stream's window was exceeded")
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
            stream.take(length - len(payload))
        if stream.body_left is not None:
            stream.body_left -= len(payload)
            if stream.body_left < 0 or (flags & frames.END_STREAM and stream.body_left):
                raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "not the length promised")  # section 8.1.1
        if payload:
            stream.on_data(payload)
        elif not flags & frames.END_STREAM:
            self.spend()
        if not flags & frames.END_STREAM:
            stream.on_unended()
        elif not stream.closed:
            stream.remote_closed = True
            stream.on_end()

    def _on_late_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id or stream_id > self.last_stream_id or not stream_id & 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "DATA on an idle stream")  # sections 5.1, 6.1
        if stream_id in self.streams or stream_id not in self._reset_ids:
            raise StreamFailed(stream_id, frames.STREAM_CLOSED, "DATA after the end")
        if flags & frames.END_STREAM:
            self._reset_ids.pop(stream_id, None)  # nothing more can be on its way
        elif not payload:
            self.spend()

    # -- HEADERS and CONTINUATION (sections 6.2, 6.10, 8) -----------------------------------------------------

    def _on_headers_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "HEADERS on a stream of the server's")  # section 5.1.1
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        own_dependency = False
        if flags & frames.HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            own_dependency = frames.unpack_u32(payload)[0] & frames.STREAM_ID_MAX == stream_id
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._on_header_block(stream_id, bool(flags & frames.END_STREAM), own_dependency, payload)
        else:
            self._block = _HeaderBlock(stream_id, bool(flags & frames.END_STREAM), own_dependency, self.age_s)
            self._add_to_block(self._block, payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "CONTINUATION of no header block")
        self._add_to_block(block, payload)
        # A block is never longer than its list with literals; Huffman coding can at worst add 30 bits to 8.
        if len(block.parts) - 1 > self.limits.continuations_max or block.size > 4 * self.limits.header_list_max_bytes:
            raise ConnectionFailed(frames.ENHANCE_YOUR_CALM, "the header block is too large")
        if flags & frames.END_HEADERS:
            self._forget_block()
            self._on_header_block(stream_id, block.end_stream, block.own_dependency, b"".join(block.parts))

    def _add_to_block(self, block: _HeaderBlock, payload: bytes) -> None:
        inbound = self.budgets.inbound
        room = inbound.has_room(len(payload))
        block.parts.append(payload)
        block.size += len(payload)
        inbound.held_bytes += len(payload)
        if not room:
            raise ConnectionFailed(frames.ENHANCE_YOUR_CALM, "too many unfinished requests are held")

    def _forget_block(self) -> None:
        if self._block is not None:
            self.budgets.inbound.held_bytes -= self._block.size
            self._block = None

    def _on_header_block(self, stream_id: int, end_stream: bool, own_dependency: bool, block: bytes) -> None:  # noqa: FBT001
        head = self._heads.get(block)
        fields: Fields | None = None
        if head is None or stream_id <= self.last_stream_id:
            try:
                fields = self._decoder.decode(block)
            except HpackError as error:
                raise ConnectionFailed(frames.COMPRESSION_ERROR, str(error)) from None  # section 4.3
            except HeaderListTooLarge:
                head = None
            if self._decoder.mutated:
                self._forget_heads()  # equal blocks may mean something else from here on
        if stream_id <= self.last_stream_id:
            self._on_trailers(stream_id, end_stream, fields)
            return
        self.last_stream_id = stream_id
        if self._goaway_last is not None and stream_id > self._goaway_last:
            self._remember(stream_id)  # section 6.8: ignored, the peer knows
            return
        if own_dependency:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "a stream depends on itself")  # RFC 7540, 5.3.1
        if len(self.streams) >= self.limits.streams_max:
            raise StreamFailed(stream_id, frames.REFUSED_STREAM, "too many streams")  # section 5.1.2
        if head is None:
            head = self._new_head(stream_id, block, fields)
        if end_stream and head.content_length:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "not the length promised")  # section 8.1.1
        stream = self.streams[stream_id] = self._new_stream(self, stream_id)
        stream.body_left = head.content_length
        stream.remote_closed = end_stream
        stream.on_headers(head)
        if end_stream and not stream.closed:
            stream.on_end()

    def _new_head(self, stream_id: int, block: bytes, fields: Fields | None) -> Head:
        if fields is None:
            raise StreamFailed(stream_id, frames.ENHANCE_YOUR_CALM, "the header list is too large")
        try:
            head = self._parse_head(fields)
        except MalformedRequest as error:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, str(error)) from None  # section 8.1.1
        if not self._decoder.mutated and len(block) < 256:  # the same bytes over the same table: the same head
            size = list_size(fields)
            if self._heads_bytes + size > _HEADS_KEPT_BYTES:
                self._forget_heads()
            if size <= _HEADS_KEPT_BYTES:
                self._heads[block] = head
                self._heads_bytes += size
        return head

    def _forget_heads(self) -> None:
        self._heads.clear()
        self._heads_bytes = 0

    def _on_trailers(self, stream_id: int, end_stream: bool, fields: Fields | None) -> None:  # noqa: FBT001
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id not in self._reset_ids:
                raise ConnectionFailed(frames.STREAM_CLOSED, "HEADERS on a closed stream")  # section 5.1
            del self._reset_ids[stream_id]  # trailers: nothing more can be on its way
            return
        if stream.remote_closed:
            raise StreamFailed(stream_id, frames.STREAM_CLOSED, "HEADERS after the end")
        if not end_stream or fields is None or any(name[:1] == b":" or name != name.lower() for name, _ in fields):
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "malformed trailers")  # section 8.1
        if stream.body_left:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "not the length promised")
        stream.remote_closed = True
        stream.on_end()


class _HeaderBlock:
    """A header block of which the end has not arrived."""

    __slots__ = ("began_s", "end_stream", "own_dependency", "parts", "size", "stream_id")

    def __init__(self, stream_id: int, end_stream: bool, own_dependency: bool, began_s: float) -> None:  # noqa: FBT001
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.own_dependency = own_dependency
        self.began_s = began_s
        """The connection's age then."""
        self.parts: list[bytes] = []
        self.size = 0
