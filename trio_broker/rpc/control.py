"""How an HTTP/2 connection and its streams end, and the frames that steer them (RFC 9113).

Owns:      the open streams and how each ends, GOAWAY and draining, PRIORITY, RST_STREAM, SETTINGS, PING and
           WINDOW_UPDATE, and the budget against floods of them.
Not here:  frames as bytes, DATA and HEADERS (connection.py), what leaves and when (outbound.py).
Threads:   none. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.frames import ConnectionFailed, StreamFailed
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.outbound import Outbound
from trio_broker.rpc.stream import Stream

OnFrame = Callable[[int, int, bytes], None]
"""Takes the flags, the stream's id and the payload of a frame."""

_DRAIN_PING = b"draining"
_LIFE_PING = b"anybody?"
_GOAWAY_TEXT_MAX_BYTES = 100
"""How much of what a peer says for people is kept."""


class Control(Outbound):
    """The part of a connection that is not about requests."""

    def __init__(self, limits: Limits, on_output: Callable[[], None], budgets: Budgets | None) -> None:
        super().__init__(limits, on_output, budgets)
        self.streams: dict[int, Stream] = {}
        self.last_stream_id = 0
        self.failed = False
        """The connection ended by an error, ours or the peer's: write what is left and close."""
        self.failure = ""
        """Why, if it was ours: the error that GOAWAY named."""
        self.calmed = False
        """It was ours, and for too much or too slow: ENHANCE_YOUR_CALM."""
        self.peer_goaway = ""
        """The error that the peer's GOAWAY named, if it sent one."""
        self.settled = False
        """The peer's first SETTINGS have arrived."""
        self._draining = False
        self._goaway_last: int | None = None
        """What the final GOAWAY named: streams above it are ignored."""
        self._reset_ids: dict[int, None] = {}  # a dict for a set that keeps its order
        self._calm: float = limits.control_burst
        self._pings: float = limits.ping_burst
        self._acks_due = 1
        """SETTINGS and PINGs that the peer has yet to acknowledge."""
        self._updates = 0
        self._granted = frames.WINDOW_INITIAL
        """What the peer has let us send so far."""
        self.age_s = 0.0
        """Seconds that the owner has told to `forgive`."""

    # -- the connection's end ---------------------------------------------------------------------------------

    def fail(self, code: int, text: str) -> None:
        """End the connection with an error (section 5.4.1). Every open stream is dropped."""
        if not self.failed:
            self.failed = True
            self.failure = f"{frames.error_name(code)}: {text}"
            self.calmed = code == frames.ENHANCE_YOUR_CALM
            last = self.last_stream_id if self._goaway_last is None else self._goaway_last
            self.write(frames.goaway(last, code, text))
            self.drop_all()

    def drop_all(self) -> None:
        """The connection is gone: end every stream. Nothing is sent."""
        for stream in list(self.streams.values()):
            self.drop(stream)

    def drain(self) -> None:
        """Begin to close: the peer opens no new streams, those that are open go on.

        In two steps (section 6.8), so that no request that is under way is lost: GOAWAY with the highest id and
        a PING; when its answer shows that the peer has seen it, `drain_now`.
        """
        if not self._draining:
            self._draining = True
            self._acks_due += 1
            self.write(
                frames.goaway(frames.STREAM_ID_MAX, frames.NO_ERROR) + frames.frame(frames.PING, 0, 0, _DRAIN_PING)
            )

    def ping(self) -> None:
        """Ask the peer whether it is there (section 6.7)."""
        self._acks_due += 1
        self.write(frames.frame(frames.PING, 0, 0, _LIFE_PING))

    def drain_now(self) -> None:
        """The second step of `drain`: streams that are opened from here on are ignored; the peer may retry them."""
        if self._goaway_last is None:
            self._goaway_last = self.last_stream_id
            self.write(frames.goaway(self.last_stream_id, frames.NO_ERROR))

    @property
    def finished(self) -> bool:
        """Close the socket once everything is written."""
        return self.failed or (self._goaway_last is not None and not self.streams)

    def forgive(self, seconds: float) -> None:
        """Time has passed: the peer may send some more control frames."""
        self.age_s += seconds
        limits = self.limits
        self._calm = min(limits.control_burst, self._calm + seconds * limits.control_per_s)
        self._pings = min(limits.ping_burst, self._pings + seconds * limits.pings_per_s)

    # -- a stream's end ---------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A peer that gets answers may also cancel, ping and change its settings.

        grpc-go sends a PING for nearly each write of DATA that it gets, to learn how much it should ask for.
        """
        if self._calm < self.limits.control_burst:
            self._calm += 1
        if self._pings < self.limits.ping_burst:
            self._pings += 1

    def take(self) -> bytes:
        """Return what is to be written now; empty when there is nothing, or no window for it."""
        window = self.send_window
        data = super().take()
        if self.send_window < window:
            self.answered()
        return data

    def end_stream(self, stream: Stream) -> None:
        """Send the end of a stream whose queue is empty; empty trailers: its last DATA frame carried END_STREAM."""
        if stream.trailers:
            self.write(frames.headers(frames.END_STREAM, stream.id, stream.trailers))
        self.ended(stream)

    def ended(self, stream: Stream) -> None:
        """Our side of a stream was ended. What the peer still sends for it is not wanted (section 8.1)."""
        if not stream.remote_closed:
            self.write(frames.reset(stream.id, frames.NO_ERROR))
            self._remember(stream.id)
        self._close(stream)

    def drop(self, stream: Stream) -> None:
        """End a stream without sending anything. What waited for it is dropped."""
        stream.local_closed = True
        stream.queue.clear()
        self.queued_bytes -= stream.queued_bytes
        stream.account.held_bytes -= stream.queued_bytes
        stream.queued_bytes = 0
        self._remember(stream.id)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        if not stream.closed:
            stream.closed = True
            del self.streams[stream.id]
            self.forget(stream)
            stream.on_closed()

    def _remember(self, stream_id: int) -> None:
        self._reset_ids[stream_id] = None
        if len(self._reset_ids) > self.limits.remembered_resets_max:
            del self._reset_ids[next(iter(self._reset_ids))]

    def spend(self, count: int = 1) -> None:
        """Count something that costs the peer less than it costs us (section 10.5)."""
        self._calm -= count
        if self._calm < 0:
            raise ConnectionFailed(frames.ENHANCE_YOUR_CALM, "too many control frames or resets")

    # -- frames -----------------------------------------------------------------------------------------------

    def control_frames(self) -> dict[int, OnFrame]:
        """Return what takes each kind of frame."""
        return {
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
        }

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        """Section 6.3: deprecated, checked and ignored."""
        if not stream_id:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise StreamFailed(stream_id, frames.FRAME_SIZE_ERROR, "PRIORITY must be 5 bytes")
        if frames.unpack_u32(payload)[0] & frames.STREAM_ID_MAX == stream_id:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "a stream depends on itself")
        self.spend()

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        """Section 6.4. A reset at once, before we answered, is what "rapid reset" is made of: those are counted."""
        if len(payload) != 4:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "RST_STREAM must be 4 bytes")
        if not stream_id or stream_id > self.last_stream_id or not stream_id & 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.spend()  # we were quicker, and our answer has forgiven it; more than one is a flood
            return
        rapid = not stream.responded and self.age_s - stream.born_s < self.limits.rapid_reset_s
        self.drop(stream)
        self._reset_ids.pop(stream_id, None)  # after its own reset the peer may send nothing (section 5.1)
        if rapid:
            self.spend()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.5."""
        if stream_id:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            self._acknowledged()
            return
        if len(payload) % 6:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "SETTINGS must be multiples of 6 bytes")
        self.spend()
        window = self.peer_window
        for name, value in frames.iter_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
                window = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_MAX_BYTES <= value < 1 << 24:
                    raise ConnectionFailed(frames.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")
                self.peer_frame_max = min(value, self.limits.frame_max_bytes)
            elif name == frames.ENABLE_PUSH and value > 1:
                raise ConnectionFailed(frames.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
        if window != self.peer_window:
            self._change_peer_window(window)  # once for the frame: it touches every stream
            self.spend(len(self.streams) >> 4)
        self.settled = True
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _change_peer_window(self, size: int) -> None:
        """Section 6.9.2: applies to the open streams too, whose windows may become negative."""
        change = size - self.peer_window
        self.peer_window = size
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > frames.WINDOW_MAX:
                raise ConnectionFailed(frames.FLOW_CONTROL_ERROR, "a window above 2^31-1")
        self.unblock_all()

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        raise ConnectionFailed(frames.PROTOCOL_ERROR, "PUSH_PROMISE from a client")  # section 8.4

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.7."""
        if stream_id:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "PING must be 8 bytes")
        if not flags & frames.ACK:
            self._pings -= 1
            if self._pings < 0:
                raise ConnectionFailed(frames.ENHANCE_YOUR_CALM, "too_many_pings")  # gRFC A8
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
            return
        self._acknowledged()
        if payload == _DRAIN_PING and self._draining:
            self.drain_now()

    def _acknowledged(self) -> None:
        """The peer may acknowledge what we have sent; more is a flood like others."""
        if self._acks_due:
            self._acks_due -= 1
        else:
            self.spend()

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        """Section 6.8: the peer will open no more streams; those that are open go on."""
        if stream_id:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "GOAWAY too short")
        self.spend()
        code, text = frames.unpack_u32(payload, 4)[0], payload[8 : 8 + _GOAWAY_TEXT_MAX_BYTES]
        self.peer_goaway = f"{frames.error_name(code)} {text!r}"

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        """Section 6.9."""
        if len(payload) != 4:
            raise ConnectionFailed(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE must be 4 bytes")
        increment = frames.unpack_u32(payload)[0] & frames.WINDOW_MAX
        if increment:
            self._updates += 1
            if self._updates > self._granted - self.send_window:  # more of them than bytes of DATA that we have sent
                self.spend()
        if not stream_id:
            self.send_window += increment
            self._granted += increment
            if not increment or self.send_window > frames.WINDOW_MAX:
                code = frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR
                raise ConnectionFailed(code, f"the connection's window by {increment}")
            self.opened()
            return
        if stream_id > self.last_stream_id or not stream_id & 1:
            raise ConnectionFailed(frames.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if not increment:
            raise StreamFailed(stream_id, frames.PROTOCOL_ERROR, "a window by 0")
        stream.send_window += increment
        if stream.send_window > frames.WINDOW_MAX:
            raise StreamFailed(stream_id, frames.FLOW_CONTROL_ERROR, "a window above 2^31-1")
        self.unblock(stream)
