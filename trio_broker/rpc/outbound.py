"""What a connection has to send, and in which order it leaves (RFC 9113, sections 5.2 and 6.9).

Owns:      control frames that wait to be written, the streams that have something to send, both levels of
           flow control towards the peer.
Not here:  what arrives (connection.py), the socket (transport.py).
Threads:   none: plain data, no I/O, no clock. Nothing here waits.

Control frames leave first and in order. DATA leaves when `take` is called, at most ``write_max_bytes`` at a
time, round robin over the streams, many messages in a frame. A stream that the peer gives no window waits apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.stream import Stream


class Outbound(ABC):
    """The sending half of a connection."""

    def __init__(self, limits: Limits, on_output: Callable[[], None], budgets: Budgets | None) -> None:
        self.limits = limits
        self.budgets = Budgets.of(limits) if budgets is None else budgets
        self.stalled = False
        """The socket takes no more, says the owner: replies wait in their streams, where they are counted."""
        self.peer_window = frames.WINDOW_INITIAL
        """What each new stream may send: the peer's SETTINGS_INITIAL_WINDOW_SIZE."""
        self.send_window = frames.WINDOW_INITIAL
        """What all streams together may send."""
        self.queued_bytes = 0
        """What waits for windows, over all streams."""
        self.peer_frame_max = min(frames.FRAME_MAX_BYTES, limits.frame_max_bytes)
        self._on_output = on_output
        self._announced = False
        self._frames: list[bytes | memoryview] = []
        self._dirty: deque[Stream] = deque()
        self._blocked: dict[int, Stream] = {}

    def write(self, frame: bytes) -> None:
        """Queue a whole frame (or several) that flow control does not bound."""
        self._frames.append(frame)
        if not self._announced:
            self._announced = True
            self._on_output()

    def mark(self, stream: Stream) -> None:
        """Note that a stream has something to send, or may have when asked for `Stream.more`."""
        if not stream.dirty:
            stream.dirty = True
            self._dirty.append(stream)
            if not self._announced:
                self._announced = True
                self._on_output()

    def take(self) -> bytes:
        """Return what is to be written now; empty when there is nothing, or no window for it."""
        if self._dirty:
            # each socket that stalls keeps what was taken for it: little, when many do
            self._pump(1 if self.budgets.outbound.tight else self.limits.write_max_bytes)
        self._announced = False
        queued = self._frames
        if not queued:
            return b""
        data = b"".join(queued) if len(queued) > 1 else bytes(queued[0])
        queued.clear()
        return data

    @property
    def sendable(self) -> bool:
        """`take` has more to give at once."""
        return bool(self._frames) or (bool(self._dirty) and self.send_window > 0)

    @property
    def waiting_bytes(self) -> int:
        """Frames that wait for `take`; what waits for the peer's windows is not among them."""
        return sum(map(len, self._frames))

    def _pump(self, room: int) -> None:
        dirty = self._dirty
        while dirty and room > 0 and (window := self.send_window) > 0:
            stream = dirty.popleft()
            credit = self.peer_frame_max
            if credit > window:
                credit = window
            if credit > stream.send_window:
                credit = max(0, stream.send_window)
            queued = stream.queued_bytes
            if queued < credit and stream.more is not None:
                data = stream.more(credit - queued)
                if not queued and 0 < (size := len(data)) < credit:  # a delivery: not a call more than it needs
                    self._frames += (frames.pack_header(size << 8, 0, stream.id), data)
                    stream.send_window -= size
                    self.send_window = window - size
                    room -= size
                    stream.dirty = False
                    continue
                if data:
                    stream.send(data)
            if not stream.closed:
                room -= self._send_queued(stream, credit)

    def _send_queued(self, stream: Stream, credit: int) -> int:
        """Send as much of what a stream has queued as may leave; return how much."""
        size = stream.queued_bytes
        if credit == 0 and (size or stream.trailers is None):
            self._blocked[stream.id] = stream  # still dirty: only its window brings it back
            return 0
        if size > credit:
            self._dirty.append(stream)
            return self._send_part(stream, credit)
        self._send_all(stream, size)
        if stream.trailers is not None:
            stream.dirty = False
            self.end_stream(stream)
        elif size == credit:
            self._dirty.append(stream)  # it may have more
        else:
            stream.dirty = False
            stream.on_room()
        return size

    def _send_all(self, stream: Stream, size: int) -> None:
        if not size:
            return
        last = stream.trailers == b""
        self._frames.append(frames.pack_header(size << 8, frames.END_STREAM if last else 0, stream.id))
        self._frames.extend(stream.queue)
        stream.queue.clear()
        stream.queued_bytes = 0
        self.queued_bytes -= size
        stream.account.held_bytes -= size
        stream.send_window -= size
        self.send_window -= size

    def _send_part(self, stream: Stream, size: int) -> int:
        queue = stream.queue
        self._frames.append(frames.pack_header(size << 8, 0, stream.id))
        left = size
        whole = 0
        while len(queue[whole]) <= left:
            left -= len(queue[whole])
            whole += 1
        self._frames += queue[:whole]
        del queue[:whole]
        view = memoryview(queue[0])  # never a copy: many streams may share what they send
        self._frames.append(view[:left])
        queue[0] = view[left:]
        stream.queued_bytes -= size
        self.queued_bytes -= size
        stream.account.held_bytes -= size
        stream.send_window -= size
        self.send_window -= size
        return size

    @abstractmethod
    def end_stream(self, stream: Stream) -> None:
        """Send the end of a stream whose queue is empty."""

    def forget(self, stream: Stream) -> None:
        """A stream is over. Where nothing is sent for want of a window, it would be kept for as long."""
        if stream.dirty and self._blocked.pop(stream.id, None) is None and self.send_window <= 0:
            with suppress(ValueError):  # it is just having its turn
                self._dirty.remove(stream)

    def forget_all(self) -> None:
        """Drop what was never sent."""
        self._frames.clear()
        self._dirty.clear()
        self._blocked.clear()
        self._on_output = _nobody_listens

    def unblock(self, stream: Stream) -> None:
        """The peer opened the window of one stream."""
        if stream.send_window > 0 and self._blocked.pop(stream.id, None) is not None:
            stream.dirty = False
            self.mark(stream)

    def unblock_all(self) -> None:
        """The peer changed the windows of all streams."""
        for stream in list(self._blocked.values()):
            self.unblock(stream)

    def opened(self) -> None:
        """The peer opened the connection's window."""
        if self._dirty and not self._announced:
            self._announced = True
            self._on_output()


def _nobody_listens() -> None:
    """Stand in for the owner of a connection that is closed."""
