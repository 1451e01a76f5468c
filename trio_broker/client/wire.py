"""The client's side of gRPC over HTTP/2, without I/O: bytes in, what each call has received out.

Owns:      one connection's frames, flow control, message framing, and how each call on it ended.
Not here:  sockets and tasks (trio_broker/client/channel.py); what a status means (trio_broker/client/statuses.py).
Threads:   one owner; nothing here waits.

h2 speaks HTTP/2; it comes with purerpc. purerpc's own client is not used, for what it does in 0.8.0: its callers
wait for ever when the connection is lost or the server resets a call, a call that is left is not reset, trailers
lose ``grpc-status-details-bin``, timeouts may have more digits than gRPC allows, any reply but HTTP 200 ends the
connection, up to 64 MiB a call are buffered, and the socket is never closed.
"""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

import h2.config  # type: ignore[import-untyped]
import h2.connection  # type: ignore[import-untyped]
import h2.errors  # type: ignore[import-untyped]
import h2.events  # type: ignore[import-untyped]
import h2.exceptions  # type: ignore[import-untyped]
import h2.settings  # type: ignore[import-untyped]

from trio_broker._version import __version__
from trio_broker.errors import BrokerError, ConnectionLost

MESSAGE_MAX_BYTES = 64 * 1024 * 1024
"""The largest reply taken: a bound on memory, far above what a broker keeps by default."""

_WINDOW_BYTES = 1024 * 1024  # what a stream may send before its reader takes it
_CONNECTION_WINDOW_BYTES = 2**30  # no reader holds up another: each stream's own window is the bound
_PREFIX_BYTES = 5  # compressed flag, length (gRPC over HTTP/2, "Length-Prefixed-Message")
_RETRY_AFTER_S = 1.0


class Trailers(NamedTuple):
    """The server's last word on a call."""

    status: int
    message: str
    details: str
    """``grpc-status-details-bin`` as it came: base64; empty when there was none."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One call: what has been received of it, and how it ended."""

    stream_id: int
    sent: bool = False
    """The whole request has gone out."""
    started: bool = False
    """Response headers have arrived."""
    messages: deque[bytes] = field(default_factory=deque)
    end: Trailers | BrokerError | None = None
    """None while the call is open."""
    partial: bytearray = field(default_factory=bytearray)
    """The beginning of a message."""
    held_bytes: int = 0
    """Received and not yet given back to the server's window."""


class _Connection(h2.connection.H2Connection):  # type: ignore[misc]  # h2 has no types
    def _receive_goaway_frame(self, frame: object) -> tuple[list[object], list[object]]:
        """h2 takes GOAWAY for the end, but calls in flight go on (RFC 9113, 6.8): a draining broker answers them."""
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code  # type: ignore[attr-defined]
        event.last_stream_id = frame.last_stream_id  # type: ignore[attr-defined]
        return [], [event]


class Wire:
    """One connection. ``outgoing()`` has the bytes to write after any other method was called."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._h2 = _Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        codes = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=True, initial_values={codes.ENABLE_PUSH: 0, codes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES}
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)
        self._exchanges: dict[int, Exchange] = {}
        self.greeted = False
        """The server's SETTINGS have arrived: it speaks HTTP/2."""
        self._closed = ""  # why no new call can be made, if none can

    @property
    def calls_max(self) -> int:
        """How many calls the server lets be open at once."""
        return int(self._h2.remote_settings.max_concurrent_streams)

    def outgoing(self) -> bytes:
        """Take the bytes to write."""
        return bytes(self._h2.data_to_send())

    def request(self, path: str, timeout_s: float | None) -> Exchange:
        """Open a call; its message goes by `send`. At most ``calls_max`` may be open.

        Raises:
            ConnectionLost: this connection takes no new calls. Retryable.
        """
        if self._closed:
            raise never_reached(self._closed)
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"trio-broker-python/{__version__}"),
        ]
        if timeout_s is not None:
            headers.append(("grpc-timeout", write_timeout(timeout_s)))
        try:
            exchange = Exchange(self._h2.get_next_available_stream_id())
        except h2.exceptions.NoAvailableStreamIDError:  # after 2**30 calls
            self._closed = "this connection has used up its stream ids; connect again"
            raise never_reached(self._closed) from None
        self._h2.send_headers(exchange.stream_id, headers)
        self._exchanges[exchange.stream_id] = exchange
        return exchange

    def send(self, exchange: Exchange, data: memoryview) -> int:
        """Send as much of ``data`` as flow control lets through, and the end with its last byte; say how much."""
        window = self._h2.local_flow_control_window(exchange.stream_id)
        sent = 0
        while sent < min(window, len(data)):
            chunk = data[sent : min(sent + self._h2.max_outbound_frame_size, window)]
            sent += len(chunk)
            exchange.sent = sent == len(data)
            self._h2.send_data(exchange.stream_id, bytes(chunk), end_stream=exchange.sent)
        return sent

    def take(self, exchange: Exchange) -> list[bytes]:
        """Take the messages that have arrived, and let the server send as much again."""
        messages = list(exchange.messages)
        exchange.messages.clear()
        self._give_back(exchange)
        return messages

    def leave(self, exchange: Exchange) -> None:
        """Tell the server that nobody waits for this call any more. Does nothing when both sides have ended it."""
        if exchange.end is None or not exchange.sent:  # a server may answer before it has read the whole request
            with suppress(h2.exceptions.StreamClosedError):
                self._h2.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
        self._give_back(exchange)
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
        """Take bytes from the server; return the calls that have news.

        Raises:
            ConnectionLost: the server does not keep to HTTP/2; the connection is of no more use.
        """
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise ConnectionLost(f"the server does not speak HTTP/2 as it should: {error}") from error
        changed: dict[int, Exchange] = {}
        for event in events:
            if isinstance(event, h2.events.ConnectionTerminated):
                changed.update(self._go_away(event))
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self.greeted = True
            elif exchange := self._exchanges.get(getattr(event, "stream_id", 0)):
                self._on_stream(event, exchange)
                changed[exchange.stream_id] = exchange
            elif isinstance(event, h2.events.DataReceived):  # of a call that was left: the window is shared
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return list(changed.values())

    def _on_stream(self, event: object, exchange: Exchange) -> None:
        match event:
            case h2.events.DataReceived():
                self._on_data(exchange, event.data, event.flow_controlled_length)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._on_headers(exchange, dict(event.headers), last=event.stream_ended is not None)
            case h2.events.StreamReset(error_code=h2.errors.ErrorCodes.REFUSED_STREAM):
                self._end(exchange, never_reached("the broker refused the call: too many are open"))
            case h2.events.StreamReset():
                self._end(exchange, ConnectionLost(f"the broker broke off the call ({_name(event.error_code)})"))
            case h2.events.StreamEnded():  # trailers, which hold the status, would have ended the exchange
                self._end(exchange, ConnectionLost("the call ended without a status"))

    def _on_headers(self, exchange: Exchange, headers: dict[bytes, bytes], *, last: bool) -> None:
        status = headers.get(b":status", b"200")
        if status != b"200" or not headers.get(b"content-type", b"application/grpc").startswith(b"application/grpc"):
            self._break_off(exchange, f"not a gRPC server: it answered HTTP {status.decode(errors='replace')}")
        elif not last:
            exchange.started = True
        elif not (code := headers.get(b"grpc-status", b"")).isdigit():
            self._end(exchange, ConnectionLost("the call ended without a status"))
        else:
            message = unquote(headers.get(b"grpc-message", b"").decode("ascii", "replace"))
            details = headers.get(b"grpc-status-details-bin", b"").decode("ascii", "replace")
            self._end(exchange, Trailers(int(code), message, details))

    def _on_data(self, exchange: Exchange, data: bytes, flow_controlled_bytes: int) -> None:
        exchange.held_bytes += flow_controlled_bytes
        partial = exchange.partial
        partial += data
        while len(partial) >= _PREFIX_BYTES:
            size = int.from_bytes(partial[1:_PREFIX_BYTES])
            if partial[0] or size > MESSAGE_MAX_BYTES:
                why = "it is compressed, unasked" if partial[0] else f"its {size} bytes are over {MESSAGE_MAX_BYTES}"
                self._break_off(exchange, f"the broker sent a message that cannot be read: {why}")
                return
            if len(partial) < _PREFIX_BYTES + size:
                break
            exchange.messages.append(bytes(partial[_PREFIX_BYTES : _PREFIX_BYTES + size]))
            del partial[: _PREFIX_BYTES + size]
        if not exchange.messages:  # no reader can take a part: a message larger than the window must get in
            self._give_back(exchange)

    def _go_away(self, event: object) -> dict[int, Exchange]:
        """No new calls (RFC 9113, 6.8). Those above the last stream id were never begun; the others go on."""
        code, last = _name(event.error_code), event.last_stream_id  # type: ignore[attr-defined]
        self._closed = f"the broker is closing this connection ({code}); connect again"
        ended = {stream_id: exchange for stream_id, exchange in self._exchanges.items() if stream_id > last}
        for exchange in ended.values():
            self._end(exchange, never_reached(self._closed))
        return ended

    def _break_off(self, exchange: Exchange, why: str) -> None:
        self.leave(exchange)
        exchange.end = ConnectionLost(why)

    def _give_back(self, exchange: Exchange) -> None:
        held_bytes, exchange.held_bytes = exchange.held_bytes, 0
        if held_bytes:
            self._h2.acknowledge_received_data(held_bytes, exchange.stream_id)

    def _end(self, exchange: Exchange, end: Trailers | BrokerError) -> None:
        exchange.end = end
        self._exchanges.pop(exchange.stream_id, None)


def frame(message: bytes) -> memoryview:
    """Return a message as `Wire.send` takes it: with its length before it."""
    return memoryview(b"\0" + len(message).to_bytes(_PREFIX_BYTES - 1) + message)


def write_timeout(timeout_s: float) -> str:
    """Write a timeout for ``grpc-timeout``: a unit, and at most eight digits."""
    for per_second, unit in ((1_000_000, "u"), (1_000, "m"), (1, "S")):
        if (value := round(timeout_s * per_second)) < 10**8:
            return f"{max(value, 1)}{unit}"
    return "99999999S"


def never_reached(why: str) -> ConnectionLost:
    """Return the error of a call that the broker has not begun: trying again is safe."""
    error = ConnectionLost(why)
    error.retry_after_s = _RETRY_AFTER_S
    return error


def _name(code: int) -> str:
    try:
        return str(h2.errors.ErrorCodes(code).name)
    except ValueError:
        return f"HTTP/2 error {code}"
