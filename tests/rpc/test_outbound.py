"""A model of sending: whatever the order of pushes, windows and ends, everything arrives, once, in order."""

from h2_peer import Peer, parse, settings
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame, SettingsFrame
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_broker.rpc import frames
from trio_broker.rpc.limits import Limits

LIMITS = Limits(write_max_bytes=200, frame_max_bytes=64, streams_max=1000)
HEADERS = b"\x88"
TRAILERS = b"\x89"


class Sending(RuleBasedStateMachine):
    """A client with windows, which checks each byte, and streams that are pushed to or drained from sources."""

    def __init__(self):
        super().__init__()
        self.peer = Peer(LIMITS)
        self.pushed: dict[int, bytes] = {}
        """What was given to each stream, in order, whether it has left or not."""
        self.sourced: dict[int, list[bytes]] = {}
        """What the sources of streams that have one still hold."""
        self.arrived: dict[int, bytes] = {}
        self.endings: dict[int, str] = {}
        """How each stream that is over, or will be, ends."""
        self.ended: dict[int, str] = {}
        self.window = frames.WINDOW_INITIAL
        self.initial = frames.WINDOW_INITIAL
        self.windows: dict[int, int] = {}
        self.next_id = 1

    # what the server does

    def live(self):
        return [stream_id for stream_id in self.pushed if stream_id not in self.endings]

    @rule(source=st.booleans())
    def open(self, source):
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.peer.open(stream_id, end=True).send_headers(HEADERS)
        self.pushed[stream_id] = self.arrived[stream_id] = b""
        self.windows[stream_id] = self.initial
        if source:
            self.sourced[stream_id] = self.peer.streams[stream_id].source

    @precondition(live)
    @rule(pick=st.integers(0, 99), size=st.integers(0, 300))
    def push(self, pick, size):
        stream_id = self.live()[pick % len(self.live())]
        stream = self.peer.streams[stream_id]
        begin = len(self.pushed[stream_id])
        message = bytes((begin + index) % 251 for index in range(size))
        self.pushed[stream_id] += message
        if stream_id in self.sourced:
            self.sourced[stream_id].append(message)
            self.peer.connection.mark(stream)
        else:
            stream.send(message)

    @precondition(live)
    @rule(pick=st.integers(0, 99), trailers=st.booleans())
    def end(self, pick, trailers):
        stream_id = self.live()[pick % len(self.live())]
        stream = self.peer.streams[stream_id]
        while self.sourced.get(stream_id):  # a source ends when it has given everything
            stream.send(self.sourced[stream_id].pop(0))
        trailers = trailers or not stream.queued_bytes  # END_STREAM by itself needs a DATA frame to be on
        self.endings[stream_id] = "trailers" if trailers else "data"
        stream.end(TRAILERS if trailers else b"")

    # what the client does

    @rule(increment=st.integers(1, 500))
    def open_connection_window(self, increment):
        self.window += increment
        self.peer.connection.receive(frames.window_update(0, increment))

    def unfinished(self):
        return [stream_id for stream_id in self.pushed if stream_id not in self.ended]

    @precondition(unfinished)
    @rule(pick=st.integers(0, 99), increment=st.integers(1, 500))
    def open_stream_window(self, pick, increment):
        stream_id = self.unfinished()[pick % len(self.unfinished())]
        self.windows[stream_id] += increment
        self.peer.connection.receive(frames.window_update(stream_id, increment))

    @rule(size=st.sampled_from([0, 1, 10, 100, 1000]))
    def change_initial_window(self, size):
        self.take(everything=True)  # so that what is on its way was sent under the old windows
        self.peer.connection.receive(settings({frames.INITIAL_WINDOW_SIZE: size}))
        self.windows = {stream_id: window + size - self.initial for stream_id, window in self.windows.items()}
        self.initial = size

    @precondition(unfinished)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick):
        stream_id = self.unfinished()[pick % len(self.unfinished())]
        self.take(everything=True)
        if stream_id in self.peer.connection.streams:
            self.endings[stream_id] = self.ended[stream_id] = "cancelled"
            self.peer.connection.receive(frames.reset(stream_id, frames.CANCEL))

    @rule(everything=st.booleans())
    def take(self, everything):
        connection = self.peer.connection
        before = connection.send_window
        for frame in self.peer.received() if everything else parse(connection.take()):
            self.check(frame)
        assert connection.send_window <= before

    def check(self, frame):
        match frame:
            case DataFrame():
                assert frame.stream_id not in self.ended
                assert len(frame.data) <= min(LIMITS.frame_max_bytes, frames.FRAME_MAX_BYTES)
                self.arrived[frame.stream_id] += frame.data
                self.windows[frame.stream_id] -= len(frame.data)
                self.window -= len(frame.data)
                assert self.window >= 0
                assert self.windows[frame.stream_id] >= 0 or not frame.data
                if "END_STREAM" in frame.flags:
                    self.ended[frame.stream_id] = "data"
            case HeadersFrame():
                if "END_STREAM" in frame.flags:
                    assert frame.stream_id not in self.ended
                    self.ended[frame.stream_id] = "trailers"
            case SettingsFrame() | RstStreamFrame():
                pass

    @invariant()
    def windows_agree(self):
        connection = self.peer.connection
        if not connection._frames:
            assert connection.send_window == self.window
            for stream_id, stream in connection.streams.items():
                assert stream.send_window == self.windows[stream_id]

    @invariant()
    def what_arrived_is_a_beginning_of_what_was_pushed(self):
        for stream_id, arrived in self.arrived.items():
            assert self.pushed[stream_id].startswith(arrived)

    @invariant()
    def nobody_waits_who_could_send(self):
        """After everything was taken, who has bytes left has no window."""
        connection = self.peer.connection
        if not connection._frames and not connection._dirty:
            for stream_id, stream in connection.streams.items():
                waiting = len(self.pushed[stream_id]) - len(self.arrived[stream_id])
                assert not waiting or min(stream.send_window, connection.send_window) <= 0

    def teardown(self):
        """Open every window: everything arrives, and every stream that ended is over."""
        self.take(everything=True)
        self.window = frames.WINDOW_MAX
        self.peer.connection.receive(frames.window_update(0, frames.WINDOW_MAX - self.peer.connection.send_window))
        self.change_initial_window(10_000_000)
        self.take(everything=True)
        for stream_id, pushed in self.pushed.items():
            if self.endings.get(stream_id) != "cancelled":
                assert self.arrived[stream_id] == pushed
        assert self.ended == self.endings
        connection = self.peer.connection
        assert sorted(connection.streams) == sorted(self.live())
        connection.drop_all()
        assert (connection.streams, connection._blocked) == ({}, {})
        assert connection.take() == b""
        assert not connection._dirty


TestSending = Sending.TestCase
TestSending.settings = hypothesis_settings(deadline=None, max_examples=100, stateful_step_count=40)
