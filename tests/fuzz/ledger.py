"""A client's own books of one HTTP/2 connection: what it let the server send, what it was let, what it was told.

Owns:      both levels of flow control in both directions, the order of frames of a stream, HPACK of what is received.
Not here:  what is sent (server.py). Nothing of trio_broker/rpc but the numbers of frames is used, so that the server's
           books are held against others.
"""

from collections.abc import Iterator

import hpack

from trio_broker.rpc import frames
from trio_broker.rpc.connection import Connection

Frame = tuple[int, int, int, bytes]
"""Type, flags, stream and payload."""


class Window:
    """What one side may send: now, and the most since the other side was last heard."""

    def __init__(self, size: int) -> None:
        self.now = self.high = size

    def change(self, by: int) -> None:
        self.now += by
        self.high = max(self.high, self.now)


class Cutter:
    """Takes bytes in any pieces, gives whole frames."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._rest = b""

    def cut(self, data: bytes) -> Iterator[Frame]:
        data = self._rest + data
        if self._skip:
            if len(data) < self._skip:
                self._rest = data
                return
            data, self._skip = data[self._skip :], 0
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3]):
            end = 9 + int.from_bytes(data[:3])
            yield data[3], data[4], int.from_bytes(data[5:9]) & frames.STREAM_ID_MAX, data[9:end]
            data = data[end:]
        self._rest = data

    @property
    def whole(self) -> bool:
        """Nothing is left of a frame that has not ended."""
        return not self._rest


class Ledger:
    """The books of a client; it need not be well-behaved. They are exact for as long as the server has not failed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = Cutter(len(frames.PREFACE))
        self._got = Cutter()
        self._initial = frames.WINDOW_INITIAL
        self._frame_max = frames.FRAME_MAX_BYTES
        self._window = Window(frames.WINDOW_INITIAL)
        self._windows: dict[int, Window] = {}
        self._credit = frames.WINDOW_INITIAL
        self._credits: dict[int, int] = {}
        self._decoder = hpack.Decoder()
        self._block: tuple[int, int, bytes] | None = None
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._gone = False

    # -- what the client sends --------------------------------------------------------------------------------

    def sent(self, data: bytes) -> None:
        """Note bytes that the server is about to receive."""
        for kind, flags, stream_id, payload in self._sent.cut(data):
            if kind == frames.DATA:
                self._credit -= len(payload)
                if stream_id in self._credits:
                    self._credits[stream_id] -= len(payload)
            elif kind == frames.HEADERS:
                if stream_id not in self._windows:
                    self._windows[stream_id] = Window(self._initial)
                    self._credits[stream_id] = self._connection.limits.stream_window_bytes
            elif kind == frames.SETTINGS and not flags & frames.ACK and len(payload) % 6 == 0:
                self._sent_settings(payload)
            elif kind == frames.WINDOW_UPDATE and len(payload) == 4:
                window = self._windows.get(stream_id) if stream_id else self._window
                if window is not None:
                    window.change(int.from_bytes(payload) & frames.WINDOW_MAX)

    def _sent_settings(self, payload: bytes) -> None:
        initial = self._initial
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if name == frames.INITIAL_WINDOW_SIZE:
                initial = value
            elif name == frames.MAX_FRAME_SIZE:
                self._frame_max = max(self._frame_max, value)
        for window in self._windows.values():
            window.change(initial - self._initial)
        self._initial = initial

    # -- what the server sends --------------------------------------------------------------------------------

    def got(self, data: bytes) -> None:
        """Check what the server has sent, all of it so far, and its own books."""
        for kind, flags, stream_id, payload in self._got.cut(data):
            assert not self._gone, "a frame after the GOAWAY of an error"
            assert (self._block is not None) == (kind == frames.CONTINUATION), "a header block was interrupted"
            assert len(payload) <= self._frame_max, f"a frame of {len(payload)} bytes"
            if kind == frames.DATA:
                self._got_data(flags, stream_id, len(payload))
            elif kind == frames.HEADERS:
                assert stream_id in self._windows, "HEADERS on a stream that was not opened"
                assert stream_id not in self._ended, "HEADERS after the end"
                self._block = flags, stream_id, payload
            elif kind == frames.CONTINUATION:
                assert self._block is not None
                assert self._block[1] == stream_id
                self._block = self._block[0], stream_id, self._block[2] + payload
            elif kind == frames.RST_STREAM:
                assert stream_id
                self._ended.add(stream_id)
            elif kind == frames.WINDOW_UPDATE:
                self._got_credit(stream_id, int.from_bytes(payload))
            elif kind == frames.GOAWAY:
                self._gone = int.from_bytes(payload[4:8]) != frames.NO_ERROR
            if flags & frames.END_HEADERS and kind in (frames.HEADERS, frames.CONTINUATION):
                self._got_block()
        assert self._got.whole, "the server sent a part of a frame"
        for window in (self._window, *self._windows.values()):
            window.high = window.now
        if not self._connection.failed:
            self._compare()

    def _got_data(self, flags: int, stream_id: int, size: int) -> None:
        assert stream_id in self._begun, "DATA before HEADERS"
        assert stream_id not in self._ended, "DATA after the end"
        for window in (self._window, self._windows[stream_id]):
            assert size <= max(window.high, 0), f"DATA of {size} bytes for a window of {window.high}"
            window.high -= size
            window.now -= size
        if flags & frames.END_STREAM:
            self._ended.add(stream_id)

    def _got_credit(self, stream_id: int, more: int) -> None:
        assert 0 < more <= frames.WINDOW_MAX, "a window by nothing, or by too much"
        if not stream_id:
            self._credit += more
            assert self._credit <= frames.WINDOW_MAX
        else:
            self._credits[stream_id] += more
            assert self._credits[stream_id] <= self._connection.limits.stream_window_bytes, "more than is announced"

    def _got_block(self) -> None:
        assert self._block is not None
        (flags, stream_id, block), self._block = self._block, None
        fields = self._decoder.decode(block, raw=True)
        names = [name for name, _ in fields]
        if stream_id not in self._begun:
            assert names[0] == b":status"
            self._begun.add(stream_id)
        else:
            assert flags & frames.END_STREAM, "headers twice"
            assert b":status" not in names
        assert all(name == name.lower() and b"\n" not in value and b"\r" not in value for name, value in fields)
        if flags & frames.END_STREAM:
            self._ended.add(stream_id)

    def _compare(self) -> None:
        connection = self._connection
        assert connection.send_window == self._window.now >= 0, "the connection's window"
        assert connection._receive_window == self._credit >= 0, "what the connection lets us send"
        for stream_id, stream in connection.streams.items():
            assert stream.send_window == self._windows[stream_id].now, "a stream's window"
            assert stream.receive_window == self._credits[stream_id] >= 0, "what a stream lets us send"
            assert stream_id not in self._ended, "a stream that has ended is kept"
