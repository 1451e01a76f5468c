"""An HTTP/2 client for tests without sockets: it builds bytes, and takes apart what a server's connection sends.

hyperframe and hpack do the taking apart, so that the connection's own code is not its judge.
"""

from collections.abc import Sequence

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from trio_broker.rpc import frames
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.stream import Stream

CODES = {
    getattr(frames, name): name
    for name in (
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "ENHANCE_YOUR_CALM",
    )
}
Fields = Sequence[tuple[str | bytes, str | bytes]]
REQUEST: Fields = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/toy.Toy/Echo"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


class Head:
    """What the recording streams' parser makes of header fields."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        lengths = [int(value) for name, value in fields if name == b"content-length"]
        self.content_length = lengths[0] if lengths else None


class Recorder(Stream):
    """A stream that writes down what happens to it; its body is taken at once, unless told otherwise."""

    __slots__ = ("events", "hold", "source")

    def __init__(self, connection: Connection, stream_id: int, *, hold: bool = False) -> None:
        super().__init__(connection, stream_id)
        self.events: list[object] = []
        self.hold = hold
        self.source: list[bytes] = []
        self.more = self.take_source

    def on_headers(self, head: Head) -> None:
        self.events.append("headers")

    def on_data(self, data: bytes) -> None:
        self.events.append(data)
        if not self.hold:
            self.take(len(data))

    def on_end(self) -> None:
        self.events.append("end")

    def on_closed(self) -> None:
        self.events.append("closed")

    def take_source(self, credit: int) -> bytes:
        taken = b""
        while self.source and len(taken) < credit:
            taken += self.source.pop(0)
        return taken


class Peer:
    """A client and the connection it talks to.

    Args:
        limits: the connection's.
        connect: send the preface and SETTINGS, and forget what the server says to them.
        hold: streams keep what they are sent (`Stream.take` is left to the test).
    """

    def __init__(self, limits: Limits | None = None, *, connect: bool = True, hold: bool = False) -> None:
        self.announced = 0
        self.streams: dict[int, Recorder] = {}
        """Every stream the server made, also those that are over."""
        self.hold = hold
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.connection = self.make_connection(limits or Limits())
        if connect:
            self.send(frames.PREFACE, settings())

    def make_connection(self, limits: Limits) -> Connection:
        return Connection(self._new_stream, Head, self._on_output, limits)

    def _new_stream(self, connection: Connection, stream_id: int) -> Recorder:
        stream = self.streams[stream_id] = Recorder(connection, stream_id, hold=self.hold)
        return stream

    def _on_output(self) -> None:
        self.announced += 1

    def send(self, *data: bytes) -> list[Frame]:
        """Let the server receive bytes; return what it says then."""
        self.connection.receive(b"".join(data))
        return self.received()

    def received(self) -> list[Frame]:
        """Return the frames that the server has to send."""
        output = b""
        while data := self.connection.take():
            output += data
        return parse(output)

    def told(self, *data: bytes) -> list[str]:
        """Like `send`, in words: see `words`."""
        return [words(each) for each in self.send(*data)]

    def block(self, fields: Fields = REQUEST) -> bytes:
        return self.encoder.encode(fields)

    def headers(self, stream_id: int, fields: Fields = REQUEST, *, end: bool = False) -> bytes:
        """Return a HEADERS frame that is complete."""
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        return frames.frame(frames.HEADERS, flags, stream_id, self.block(fields))

    def open(self, stream_id: int, *, end: bool = False) -> Recorder:
        """Open a stream that the server takes; return the server's end of it."""
        self.connection.receive(self.headers(stream_id, end=end))
        assert stream_id in self.connection.streams
        return self.streams[stream_id]


def data(stream_id: int, body: bytes = b"", *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream_id, body)


def settings(values: dict[int, int] | None = None) -> bytes:
    return frames.settings(values or {})


SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.ACK, 0)


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    return frames.frame(frames.PING, flags, 0, payload)


def parse(output: bytes) -> list[Frame]:
    """Take apart whole frames."""
    found = []
    while output:
        frame, length = Frame.parse_frame_header(memoryview(output[:9]))
        assert len(output) >= 9 + length, "the server sent a part of a frame"
        frame.parse_body(memoryview(output[9 : 9 + length]))
        found.append(frame)
        output = output[9 + length :]
    return found


def words(frame: Frame) -> str:
    """Describe a frame in one line: ``DATA 1 b'..' END_STREAM``, ``RST_STREAM 1 CANCEL``, ``GOAWAY 7 NO_ERROR``."""
    kind = type(frame).__name__.removesuffix("Frame")
    kind = {"RstStream": "RST_STREAM", "GoAway": "GOAWAY", "WindowUpdate": "WINDOW_UPDATE"}.get(kind, kind.upper())
    match frame:
        case RstStreamFrame():
            return f"{kind} {frame.stream_id} {CODES[frame.error_code]}"
        case GoAwayFrame():
            last = "max" if frame.last_stream_id == frames.STREAM_ID_MAX else frame.last_stream_id
            return f"{kind} {last} {CODES[frame.error_code]}"
        case WindowUpdateFrame():
            return f"{kind} {frame.stream_id} {frame.window_increment}"
        case DataFrame():
            return " ".join((f"{kind} {frame.stream_id} {frame.data!r}", *sorted(frame.flags)))
        case HeadersFrame():
            return " ".join((f"{kind} {frame.stream_id}", *sorted(set(frame.flags) - {"END_HEADERS"})))
        case SettingsFrame():
            return " ".join((kind, *sorted(frame.flags)))
        case _:
            return " ".join((kind, *sorted(frame.flags)))
