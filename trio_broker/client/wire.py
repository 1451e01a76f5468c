"""One HTTP/2 connection of a client: bytes in, what each call has received out (RFC 9113). Sans-io.

Owns:      frames, flow control, and which calls a lost, closing or misbehaving connection ends.
Not here:  sockets and tasks (trio_broker/client/channel.py), gRPC on a stream (trio_broker/client/exchange.py),
           header compression (trio_broker/rpc/hpack.py).
Threads:   one owner; nothing here waits.

purerpc's own client is not used, for what it does in 0.8.0: its callers wait for ever when the connection is lost or
the server resets a call; a call that is left is not reset; after GOAWAY the answers to calls in flight are refused;
trailers lose ``grpc-status-details-bin``; timeouts may have more digits than gRPC allows; any reply but HTTP 200 ends
the connection for all; up to 64 MiB a call are buffered.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from trio_broker._version import __version__
from trio_broker.client.exchange import Exchange, Trailers, Unusable, write_timeout
from trio_broker.errors import BrokerError, ConnectionLost
from trio_broker.rpc import frames
from trio_broker.rpc.frames import ConnectionFailed
from trio_broker.rpc.hpack import Decoder, HeaderListTooLarge, HpackError, literal

_STREAM_WINDOW: Final = 1024 * 1024  # what a call may receive before its reader takes it
_CONNECTION_WINDOW: Final = 2**30  # no reader holds up another: each stream's own window is the bound
_HEADER_LIST_MAX_BYTES: Final = 64 * 1024
_STREAM_ID_MASK: Final = 2**31 - 1  # the top bit is reserved (section 4.1)
_RETRY_AFTER_S: Final = 1.0

_CODES: Final = {
    frames.NO_ERROR: "NO_ERROR",
    frames.PROTOCOL_ERROR: "PROTOCOL_ERROR",
    frames.INTERNAL_ERROR: "INTERNAL_ERROR",
    frames.FLOW_CONTROL_ERROR: "FLOW_CONTROL_ERROR",
    frames.REFUSED_STREAM: "REFUSED_STREAM",
    frames.CANCEL: "CANCEL",
    frames.ENHANCE_YOUR_CALM: "ENHANCE_YOUR_CALM",
}


class Wire:
    """One connection. ``outgoing()`` has the bytes to write after any other method was called."""

    def __init__(self, authority: str, scheme: str = "http") -> None:
        self._fields_of_all = b"".join(
            literal(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", scheme.encode()),
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", f"trio-broker-python/{__version__}".encode()),
            )
        )
        settings = {
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: _HEADER_LIST_MAX_BYTES,
        }
        more = frames.window_update(0, _CONNECTION_WINDOW - frames.WINDOW_INITIAL)
        self._out = bytearray(frames.PREFACE + frames.settings(settings) + more)
        self._in = b""
        self._decoder = Decoder(list_size_max=_HEADER_LIST_MAX_BYTES)
        self._block: bytearray | None = None  # of a HEADERS frame that CONTINUATIONs follow
        self._block_of = (0, 0)  # its flags and stream
        self._exchanges: dict[int, Exchange] = {}
        self._next_stream_id = 1
        self._send_window = frames.WINDOW_INITIAL
        self._initial_send_window = frames.WINDOW_INITIAL
        self._frame_max = frames.FRAME_MAX_BYTES
        self._unreturned = 0  # bytes received and not yet given back to the connection's window
        self._closed = ""  # why no new call can be made, if none can
        self.calls_max = 2**31 - 1
        """How many calls the server lets be open at once."""
        self.greeted = False
        """The server's SETTINGS have arrived: it speaks HTTP/2."""

    def outgoing(self) -> bytes:
        """Take the bytes to write."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def request(self, path: str, timeout_s: float | None) -> Exchange:
        """Open a call; its message goes by `send`. At most ``calls_max`` may be open.

        Raises:
            ConnectionLost: this connection takes no new calls. Retryable.
        """
        if not self._closed and self._next_stream_id > frames.STREAM_ID_MAX:  # after 2**30 calls
            self._closed = "this connection has used up its stream ids; connect again"
        if self._closed:
            raise never_reached(self._closed)
        fields = literal(b":path", path.encode()) + self._fields_of_all  # pseudo-fields first (section 8.3)
        if timeout_s is not None:
            fields += literal(b"grpc-timeout", write_timeout(timeout_s))
        exchange = Exchange(self._next_stream_id, self._initial_send_window, _STREAM_WINDOW)
        self._next_stream_id += 2
        self._exchanges[exchange.stream_id] = exchange
        self._out += frames.frame(frames.HEADERS, frames.END_HEADERS, exchange.stream_id, fields)
        return exchange

    def send(self, exchange: Exchange, data: memoryview, *, last: bool = True) -> int:
        """Send as much of ``data`` as flow control lets through; say how much. ``last``: the request ends with it."""
        window = max(0, min(self._send_window, exchange.send_window, len(data)))
        for start in range(0, window, self._frame_max):
            chunk = data[start : min(start + self._frame_max, window)]
            exchange.sent = last and start + len(chunk) == len(data)
            flags = frames.END_STREAM if exchange.sent else 0
            self._out += frames.pack_header(len(chunk) << 8 | frames.DATA, flags, exchange.stream_id)
            self._out += chunk
        self._send_window -= window
        exchange.send_window -= window
        return window

    def end(self, exchange: Exchange) -> None:
        """Tell the server that the request has ended. Does nothing if it has heard so, or has ended the call."""
        if not exchange.sent and exchange.end is None:
            exchange.sent = True
            self._out += frames.frame(frames.DATA, frames.END_STREAM, exchange.stream_id, b"")

    def take(self, exchange: Exchange) -> list[bytes]:
        """Take the messages that have arrived, and let the server send as much again."""
        messages = exchange.take()
        self._give_back(exchange)
        return messages

    def leave(self, exchange: Exchange) -> None:
        """Tell the server that nobody waits for this call any more. Does nothing when both sides have ended it."""
        if exchange.end is None or not exchange.sent:  # a server may answer before it has read the whole request
            self._out += frames.reset(exchange.stream_id, frames.CANCEL)
            exchange.sent = True
        if exchange.end is None:
            self._end(exchange, ConnectionLost("the call was left"))

    def lose(self, why: str) -> list[Exchange]:
        """End everything: the connection is gone. Return the calls that this ended."""
        self._closed = why
        ended = list(self._exchanges.values())
        for exchange in ended:
            self._end(exchange, ConnectionLost(why))
        return ended

    def receive(self, data: bytes) -> list[Exchange]:
        """Take bytes from the server, cut anywhere; return the calls that have news.

        Raises:
            ConnectionLost: the server does not keep to HTTP/2; the connection is of no more use.
        """
        changed: dict[int, Exchange] = {}
        try:
            for kind, flags, stream_id, payload in self._cut(data):
                for exchange in self._on_frame(kind, flags, stream_id, payload):
                    changed[exchange.stream_id] = exchange
        except (ConnectionFailed, HpackError) as error:
            raise ConnectionLost(f"the server does not speak HTTP/2 as it should: {error}") from error
        return list(changed.values())

    def _cut(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, stream and payload of each whole frame; keep the rest."""
        data = self._in + data
        position = 0
        while len(data) - position >= frames.FRAME_HEADER_BYTES:
            size_and_kind, flags, stream_id = frames.unpack_header(data, position)
            begin, size = position + frames.FRAME_HEADER_BYTES, size_and_kind >> 8
            if size > frames.FRAME_MAX_BYTES:
                raise ConnectionFailed(frames.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            if len(data) < begin + size:
                break
            position = begin + size
            yield size_and_kind & 0xFF, flags, stream_id & _STREAM_ID_MASK, data[begin:position]
        self._in = data[position:]

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Iterable[Exchange]:
        if (kind == frames.CONTINUATION) != (self._block is not None) or not (self.greeted or kind == frames.SETTINGS):
            raise _protocol_error(f"a frame of type {kind} out of place")  # sections 6.10 and 3.4
        if stream_id >= self._next_stream_id or (stream_id and not stream_id % 2):
            raise _protocol_error(f"a frame for stream {stream_id}, which was not opened")  # section 5.1, "idle"
        match kind:
            case frames.DATA | frames.HEADERS | frames.CONTINUATION | frames.RST_STREAM:
                if not stream_id:
                    raise _protocol_error(f"a frame of type {kind} for the connection")
                exchange = self._exchanges.get(stream_id)  # none: we have left it, or it has ended
                self._on_stream_frame(kind, flags, payload, stream_id, exchange)
                return () if exchange is None else (exchange,)
            case frames.SETTINGS:
                self._on_settings(flags, payload)
            case frames.WINDOW_UPDATE:
                self._on_window_update(stream_id, payload)
            case frames.PING if not flags & frames.ACK:
                self._out += frames.frame(frames.PING, frames.ACK, 0, payload)
            case frames.GOAWAY:
                return self._on_goaway(payload)
            case frames.PUSH_PROMISE:  # we have disabled it (section 8.4)
                raise _protocol_error("a push")
        return ()  # PRIORITY, and types of other specifications (section 5.5)

    def _on_stream_frame(
        self, kind: int, flags: int, payload: bytes, stream_id: int, exchange: Exchange | None
    ) -> None:
        try:
            if kind == frames.DATA:
                self._on_data(flags, payload, exchange)
            elif kind == frames.RST_STREAM:
                self._on_reset(payload, exchange)
            else:
                self._on_header_fragment(kind, flags, stream_id, payload, exchange)
        except Unusable as error:
            assert exchange is not None, "only an exchange says so"
            self.leave(exchange)
            exchange.end = ConnectionLost(str(error))

    def _on_data(self, flags: int, payload: bytes, exchange: Exchange | None) -> None:
        self._unreturned += len(payload)
        if self._unreturned > _CONNECTION_WINDOW // 2:
            self._out += frames.window_update(0, self._unreturned)
            self._unreturned = 0
        if exchange is None:
            return
        exchange.receive_window -= len(payload)
        if exchange.receive_window < 0:
            raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "more data than the window allows")  # section 6.9.1
        data = frames.unpadded(payload) if flags & frames.PADDED else payload
        exchange.taken_bytes += len(payload) - len(data)
        exchange.on_data(data)
        if not exchange.messages:  # no reader can take a part: a message larger than the window must get in
            exchange.take()
        if flags & frames.END_STREAM:  # trailers, which hold the status, would have been HEADERS
            self._end(exchange, ConnectionLost("the call ended without a status"))
        else:
            self._give_back(exchange)

    def _on_header_fragment(
        self, kind: int, flags: int, stream_id: int, payload: bytes, exchange: Exchange | None
    ) -> None:
        if kind == frames.HEADERS:
            fragment = frames.unpadded(payload) if flags & frames.PADDED else payload
            self._block = bytearray(fragment[5:] if flags & frames.HAS_PRIORITY else fragment)
            self._block_of = flags, stream_id
        elif stream_id != self._block_of[1]:
            raise _protocol_error("CONTINUATION of another stream")
        else:
            assert self._block is not None, "checked with the order of frames"
            self._block += payload
        if len(self._block) > 2 * _HEADER_LIST_MAX_BYTES:
            raise ConnectionFailed(frames.ENHANCE_YOUR_CALM, "a header block without end")
        if not flags & frames.END_HEADERS:
            return
        block, self._block = bytes(self._block), None
        try:
            fields = self._decoder.decode(block)  # also of a call that we have left: the table is the connection's
        except HeaderListTooLarge as error:
            if exchange is not None:
                raise Unusable(f"the server sent {error}") from error
            return
        if exchange is not None:
            exchange.on_headers(fields, last=bool(self._block_of[0] & frames.END_STREAM))
            if exchange.end is not None:
                self._end(exchange, exchange.end)

    def _on_reset(self, payload: bytes, exchange: Exchange | None) -> None:
        code = _u32(payload)
        if exchange is None:
            return
        exchange.sent = True
        if code == frames.REFUSED_STREAM:  # section 8.7
            self._end(exchange, never_reached("the broker refused the call: too many are open"))
        else:
            self._end(exchange, ConnectionLost(f"the broker broke off the call ({_name(code)})"))

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if len(payload) % 6:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "SETTINGS cut short")
        self.greeted = True
        for name, value in frames.iter_settings(payload):
            if name == frames.MAX_CONCURRENT_STREAMS:
                self.calls_max = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_MAX_BYTES <= value < 2**24:
                    raise _protocol_error(f"a maximum frame size of {value}")  # section 6.5.2
                self._frame_max = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, f"an initial window of {value}")
                for exchange in self._exchanges.values():
                    exchange.send_window += value - self._initial_send_window  # may be negative (section 6.9.2)
                self._initial_send_window = value
        self._out += frames.frame(frames.SETTINGS, frames.ACK, 0)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        increment = _u32(payload) & _STREAM_ID_MASK
        if not stream_id:
            self._send_window += increment
        elif exchange := self._exchanges.get(stream_id):
            exchange.send_window += increment
        if self._send_window > frames.WINDOW_MAX or not increment:
            raise _protocol_error(f"a window update by {increment}")  # section 6.9

    def _on_goaway(self, payload: bytes) -> list[Exchange]:
        """No new calls (section 6.8). Those above the last stream id were never begun; the others go on."""
        last, code = _u32(payload[:4]) & _STREAM_ID_MASK, _u32(payload[4:8])
        self._closed = f"the broker is closing this connection ({_name(code)}); connect again"
        ended = [exchange for exchange in self._exchanges.values() if exchange.stream_id > last]
        for exchange in ended:
            exchange.sent = True
            self._end(exchange, never_reached(self._closed))
        return ended

    def _give_back(self, exchange: Exchange) -> None:
        """Let the server send what was taken, in large steps."""
        if exchange.end is None and exchange.taken_bytes >= _STREAM_WINDOW // 2:
            self._out += frames.window_update(exchange.stream_id, exchange.taken_bytes)
            exchange.receive_window += exchange.taken_bytes
            exchange.taken_bytes = 0

    def _end(self, exchange: Exchange, end: Trailers | BrokerError) -> None:
        exchange.end = end
        self._exchanges.pop(exchange.stream_id, None)


def never_reached(why: str) -> ConnectionLost:
    """Return the error of a call that the broker has not begun: trying again is safe."""
    error = ConnectionLost(why)
    error.retry_after_s = _RETRY_AFTER_S
    return error


def _u32(payload: bytes) -> int:
    if len(payload) != 4:
        raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "a frame of the wrong size")
    value: int = frames.unpack_u32(payload)[0]
    return value


def _protocol_error(text: str) -> ConnectionFailed:
    return ConnectionFailed(frames.PROTOCOL_ERROR, text)


def _name(code: int) -> str:
    return _CODES.get(code, f"HTTP/2 error {code}")
