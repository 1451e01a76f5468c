"""A gRPC client frame by frame, for what no client library does: flood, stall, break off, ignore what it is told.

Owns:      one socket and its HTTP/2 connection, by the h2 library; gRPC's framing.
Threads:   the caller's; every wait is on the socket, and bounded.
"""

import base64
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote

from e2e_broker import SAFETY_S
from e2e_failure import CallFailed, call_failed
from google.protobuf.message import Message
from grpc import StatusCode
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    PingAcknowledged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes

from trio_broker._proto import broker_pb2 as pb

_PREFIX = struct.Struct(">BI")
_CODES = {str(code.value[0]): code.name for code in StatusCode}
_READ_BYTES = 256 * 1024
_CONNECTION_WINDOW = 2**26
_FRAME_HEADER = 9
_GOAWAY = 7
_LAST_STREAM_AND_CODE = struct.Struct(">II")


def framed(message: bytes) -> bytes:
    return _PREFIX.pack(0, len(message)) + message


def connect_socket(address: str, *, receive_buffer: int | None = None) -> socket.socket:
    """A connected socket whose waits are bounded; ``receive_buffer``: how little the kernel shall take in."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(SAFETY_S)
    sock.connect((host, int(port)))
    return sock


@dataclass
class Exchange:
    """One call, and what has come back for it."""

    stream_id: int
    headers: dict[str, str] | None = None
    data: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] | None = None
    ended: bool = False
    reset: int | None = None
    """The error code of a RST_STREAM."""

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def messages(self) -> list[bytes]:
        """The messages that are there in whole."""
        found = []
        data = bytes(self.data)
        while len(data) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(data)
            assert not compressed
            if len(data) < _PREFIX.size + size:
                break
            found.append(data[_PREFIX.size : _PREFIX.size + size])
            data = data[_PREFIX.size + size :]
        return found

    def received(self) -> list[pb.MessageResponse]:
        return [pb.MessageResponse.FromString(message) for message in self.messages()]

    def failure(self) -> CallFailed | None:
        """How it ended; None: well."""
        assert self.ended, self
        trailers = self.trailers if self.trailers is not None else self.headers
        assert trailers is not None
        code = _CODES[trailers["grpc-status"]]
        if code == "OK":
            return None
        details = trailers.get("grpc-status-details-bin")
        decoded = None if details is None else base64.b64decode(details + "=" * (-len(details) % 4))
        return call_failed(code, unquote(trailers.get("grpc-message", "")), decoded)


class Wire:
    """A connection. ``generous=False``: a call's flow control window is opened by `open_window` only."""

    def __init__(
        self, address: str, *, window: int = 2**20, generous: bool = True, receive_buffer: int | None = None
    ) -> None:
        self.socket = connect_socket(address, receive_buffer=receive_buffer)
        self._address = address
        self._generous = generous
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.increment_flow_control_window(_CONNECTION_WINDOW)
        self._exchanges: dict[int, Exchange] = {}
        self._pongs: set[bytes] = set()
        self._unread = b""
        self.goaways: list[tuple[int, int]] = []
        """Last stream id and error code of each GOAWAY."""
        self.closed = False
        """The broker has closed the connection."""
        self._flush()

    def start(self, path: str, request: Message | bytes, *, timeout: str | None = None, raw: bool = False) -> Exchange:
        """Send a call's whole request; ``timeout`` as grpc-timeout writes it; ``raw``: the bytes as they are."""
        exchange = self.prepare(path, request, timeout=timeout, raw=raw)
        self._flush()
        return exchange

    def prepare(
        self, path: str, request: Message | bytes, *, timeout: str | None = None, raw: bool = False
    ) -> Exchange:
        """Make a call's whole request; it leaves with the next thing that is sent."""
        stream_id = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if timeout is not None:
            headers.append(("grpc-timeout", timeout))
        message = request if isinstance(request, bytes) else request.SerializeToString()
        self.h2.send_headers(stream_id, headers)
        self.h2.send_data(stream_id, message if raw else framed(message), end_stream=True)
        exchange = self._exchanges[stream_id] = Exchange(stream_id)
        return exchange

    def publish(self, subject: str, body: bytes = b"", *, timeout: str | None = None, **fields: object) -> Exchange:
        request = pb.PublishRequest(subject=subject, body=body, **fields)
        return self.start("/broker.Broker/Publish", request, timeout=timeout)

    def publish_together(self, subject: str, count: int, **fields: object) -> list[Exchange]:
        """Publish in one write."""
        request = pb.PublishRequest(subject=subject, **fields)
        exchanges = [self.prepare("/broker.Broker/Publish", request) for _ in range(count)]
        self._flush()
        return exchanges

    def subscribe(self, subject: str, *, timeout: str | None = None, **fields: object) -> Exchange:
        request = pb.SubscribeRequest(subject=subject, **fields)
        return self.start("/broker.Broker/Subscribe", request, timeout=timeout)

    def fetch(self, subject: str, id_: int, *, timeout: str | None = None) -> Exchange:
        return self.start("/broker.Broker/Fetch", pb.FetchRequest(subject=subject, id=id_), timeout=timeout)

    def published(self, exchange: Exchange) -> int:
        """Wait for a publish's id."""
        self.finish(exchange)
        failure = exchange.failure()
        if failure is not None:
            raise failure
        (message,) = exchange.messages()
        return pb.PublishResponse.FromString(message).id

    def failed(self, exchange: Exchange) -> CallFailed:
        """Wait for the end of a call that fails."""
        self.finish(exchange)
        failure = exchange.failure()
        assert failure is not None, "the call ended well"
        return failure

    def finish(self, *exchanges: Exchange) -> None:
        """Wait until calls are over."""
        self.read_until(lambda: all(exchange.over for exchange in exchanges))

    def stand(self, *exchanges: Exchange) -> None:
        """Wait until the response headers of calls are there."""
        self.read_until(lambda: all(exchange.headers is not None for exchange in exchanges))

    def cancel(self, *exchanges: Exchange) -> None:
        """Send RST_STREAM for calls, in one write."""
        for exchange in exchanges:
            self.h2.reset_stream(exchange.stream_id, 8)  # CANCEL
        self._flush()

    def round_trip(self) -> None:
        """Send a PING and wait for its answer: the broker has read all that was sent before."""
        payload = b"%08d" % len(self._pongs)
        self.h2.ping(payload)
        self._flush()
        self.read_until(lambda: payload in self._pongs)

    def open_window(self, exchange: Exchange, size: int) -> None:
        """Let the broker send ``size`` bytes more on a call."""
        self.h2.increment_flow_control_window(size, exchange.stream_id)
        self._flush()

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Send what was prepared; read until it is so. Fails when the broker closes the connection, or is silent."""
        self._flush()
        while not condition():
            assert not self.closed, "the broker closed the connection"
            self._read()

    def read_what_is_there(self) -> None:
        """Read what has come so far: all that was sent before anything that this process has seen on any socket."""
        while select.select([self.socket], [], [], 0)[0] and not self.closed:
            self._read()

    def read_to_the_end(self) -> None:
        """Read until the broker closes the connection; close it too."""
        while not self.closed:
            self._read()
        self.close()

    def close(self) -> None:
        self.socket.close()

    def break_off(self) -> None:
        """Close without a word of HTTP/2 or TCP's own good-bye: the broker's next read fails."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def _flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def _read(self) -> None:
        try:
            data = self.socket.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(self._without_goaways(data)):
            self._on(event)
        self._flush()

    def _without_goaways(self, data: bytes) -> bytes:
        """Return the whole frames that are there, but GOAWAYs: h2 takes one for the end of all streams."""
        self._unread += data
        frames = []
        while len(self._unread) >= _FRAME_HEADER:
            size = _FRAME_HEADER + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < size:
                break
            frame, self._unread = self._unread[:size], self._unread[size:]
            if frame[3] == _GOAWAY:
                self.goaways.append(_LAST_STREAM_AND_CODE.unpack_from(frame, _FRAME_HEADER))
            else:
                frames.append(frame)
        return b"".join(frames)

    def _on(self, event: object) -> None:
        if isinstance(event, PingAcknowledged):
            self._pongs.add(event.ping_data)
        elif isinstance(event, ResponseReceived):
            self._exchanges[event.stream_id].headers = dict(event.headers)
        elif isinstance(event, TrailersReceived):
            self._exchanges[event.stream_id].trailers = dict(event.headers)
        elif isinstance(event, StreamReset):
            self._exchanges[event.stream_id].reset = event.error_code
        elif isinstance(event, StreamEnded):
            self._exchanges[event.stream_id].ended = True
        elif isinstance(event, DataReceived):
            exchange = self._exchanges[event.stream_id]
            exchange.data += event.data
            if self._generous:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
