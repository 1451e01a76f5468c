"""A client that hypothesis steers, legally and not, against a connection of calls that are answered at any time."""

from grpc_peer import GrpcPeer
from h2_peer import data, settings
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from purerpc import Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits

LIMITS = Limits(
    streams_max=5,
    message_max_bytes=500,
    inbound_max_bytes=1000,
    stream_window_bytes=600,
    write_max_bytes=1000,
    control_burst=40,
    remembered_resets_max=8,
)
PICK = st.integers(0, 99)


class Client(RuleBasedStateMachine):
    """Moves of the client and of the application; whatever they are, the connection's books balance."""

    def __init__(self):
        super().__init__()
        self.peer = GrpcPeer(LIMITS)
        self.next_id = 1

    def alive(self):
        return not self.peer.connection.failed

    def some_stream(self, pick):
        """A stream that is open, was, or may be yet."""
        return 1 + 2 * (pick % (self.next_id // 2 + 2))

    def send(self, *frames_):
        self.peer.connection.receive(b"".join(frames_))

    # the client

    @precondition(alive)
    @rule(
        method=st.sampled_from(["Echo", "Collect", "Nothing"]),
        messages=st.lists(st.binary(max_size=30), max_size=2),
        end=st.booleans(),
        timeout=st.booleans(),
    )
    def call(self, method, messages, end, timeout):
        more = [("grpc-timeout", "1S")] if timeout else []
        self.send(self.peer.request(self.next_id, *messages, method=method, end=end, more=more))
        self.next_id += 2

    @precondition(alive)
    @rule(
        what=st.sampled_from([(":method", "GET"), ("content-type", "text/plain"), ("connection", "close"), ("X", "y")])
    )
    def call_badly(self, what):
        fields = {":method": "POST", ":scheme": "http", ":path": "/toy.Toy/Echo", **dict([what])}
        self.send(self.peer.headers(self.next_id, list(fields.items()), end=True))
        self.next_id += 2

    @precondition(alive)
    @rule(pick=PICK, size=st.integers(0, 700), cut=st.integers(1, 700), end=st.booleans())
    def body(self, pick, size, cut, end):
        self.send(data(self.some_stream(pick), framed(bytes(size))[:cut], end=end))

    @precondition(alive)
    @rule(pick=PICK)
    def trailers(self, pick):
        if self.some_stream(pick) < self.next_id:
            self.send(self.peer.headers(self.some_stream(pick), [("x", "y")], end=True))

    @precondition(alive)
    @rule(pick=PICK)
    def cancel(self, pick):
        self.send(frames.reset(self.some_stream(pick), frames.CANCEL))

    @precondition(alive)
    @rule(pick=PICK, increment=st.sampled_from([0, 1, 1000, 2**31 - 1]))
    def open_stream_window(self, pick, increment):
        self.send(frames.window_update(self.some_stream(pick), increment))

    @precondition(alive)
    @rule(increment=st.sampled_from([1, 1000, 100_000]))
    def open_connection_window(self, increment):
        self.send(frames.window_update(0, increment))

    @precondition(alive)
    @rule(size=st.sampled_from([0, 1, 50, 65_535, 2**31 - 1]))
    def change_windows(self, size):
        self.send(settings({frames.INITIAL_WINDOW_SIZE: size}))

    @precondition(alive)
    @rule(
        kind=st.integers(0, 10),
        flags=st.integers(0, 255),
        pick=PICK,
        payload=st.one_of(st.binary(max_size=20), st.sampled_from([bytes(4), bytes(5), bytes(6), bytes(8)])),
    )
    def anything(self, kind, flags, pick, payload):
        self.send(frames.frame(kind, flags, pick % self.next_id, payload))

    # the application

    def calls(self):
        return self.peer.app.calls

    @precondition(calls)
    @rule(pick=PICK, size=st.sampled_from([0, 10, 1000, 100_000]))
    def reply(self, pick, size):
        self.calls()[pick % len(self.calls())].reply(bytes(size))

    @precondition(calls)
    @rule(pick=PICK, size=st.sampled_from([0, 10, 1000]))
    def stream(self, pick, size):
        call = self.calls()[pick % len(self.calls())]
        if call.queued_bytes < 10_000:  # a handler waits
            call.send_head()
            call.send(framed(bytes(size)))

    @precondition(calls)
    @rule(pick=PICK, code=st.sampled_from([StatusCode.OK, StatusCode.ABORTED]))
    def finish(self, pick, code):
        self.calls()[pick % len(self.calls())].finish(Status(code, "why"))

    @precondition(calls)
    @rule(pick=PICK)
    def take_message(self, pick):
        call = self.calls()[pick % len(self.calls())]
        if call.inbox:
            call.taken(call.inbox.popleft())

    @rule()
    def give_up(self):
        self.peer.connection.drain()

    # what is sent

    @rule()
    def read(self):
        """hyperframe and hpack, and the order of frames, are checked by `GrpcPeer.answer`."""
        self.peer.answer(0)

    # what always holds

    @invariant()
    def books_balance(self):
        connection = self.peer.connection
        open_calls = [call for call in self.peer.app.calls if not call.closed]
        assert connection.held == sum(stream.held for stream in connection.streams.values())
        assert connection.held <= LIMITS.inbound_max_bytes + LIMITS.message_max_bytes
        assert len(connection.streams) <= LIMITS.streams_max
        assert set(open_calls) <= set(connection.streams.values())
        assert set(connection._blocked) <= set(connection.streams)
        assert all(stream.dirty for stream in connection._blocked.values())
        assert all(stream.dirty for stream in connection._dirty)
        for stream in connection.streams.values():
            assert stream.send_window <= frames.WINDOW_MAX
            assert stream.receive_window <= frames.WINDOW_MAX
            assert stream.queued_bytes == sum(map(len, stream.queue))
            assert len(stream.part or b"") <= LIMITS.message_max_bytes + 5 + LIMITS.stream_window_bytes
        assert connection.send_window <= frames.WINDOW_MAX
        assert len(connection._reset_ids) <= LIMITS.remembered_resets_max

    @invariant()
    def every_call_is_over_once(self):
        over = self.peer.app.over_calls
        assert len(over) == len(set(over))
        assert set(over) == {call for call in self.peer.app.calls if call.closed}

    def teardown(self):
        connection = self.peer.connection
        connection.drop_all()
        self.every_call_is_over_once()
        assert (connection.streams, connection._blocked, connection.held) == ({}, {}, 0)
        self.peer.answer(0)
        assert not connection._dirty


TestClient = Client.TestCase
TestClient.settings = hypothesis_settings(deadline=None, max_examples=100, stateful_step_count=40)
