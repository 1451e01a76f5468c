"""A server's connections, fed with anything, and answered from at any time.

Owns:      what a client and an application may do, and what must hold after each of their moves.
Not here:  the client's own books (ledger.py), handlers (application.py).

The first choices say into what pieces the bytes are cut. Then each choice is a move, of two connections that share
their budgets: mostly frames that are nearly right, for arbitrary bytes seldom get far.
"""

import gzip
import zlib
from collections.abc import Callable

from purerpc import Status, StatusCode

from trio_broker.rpc import frames
from trio_broker.rpc.budget import UNCOUNTED, Budgets
from trio_broker.rpc.call import Call
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.framing import PREFIX_BYTES, framed
from trio_broker.rpc.hpack import literal
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.request import RequestParser

from .application import METHODS, ROUTES, Application
from .choices import Choices
from .ledger import Ledger

LIMITS = Limits(
    streams_max=5,
    message_max_bytes=3000,
    inbound_max_bytes=6000,
    inbound_total_bytes=9000,
    outbound_max_bytes=8000,
    outbound_total_bytes=12_000,
    stream_window_bytes=4000,
    connection_window_bytes=frames.WINDOW_INITIAL,
    write_max_bytes=5000,
    send_high_bytes=2000,
    header_list_max_bytes=600,
    continuations_max=4,
    header_table_bytes=256,
    control_burst=40,
    remembered_resets_max=4,
)
PIECES = [0, 1, 2, 9, 10, 100]
"""Into pieces of how many bytes what a client sends is cut; 0: not at all."""
INCREMENTS = [0, 1, 100, 1000, 65_535, 2**31 - 1]
WINDOWS = [0, 1, 50, 1000, 65_535, 2**31 - 1, 2**31]
SIZES = [0, 1, 100, 1000, 2990, 3000]
HEADERS = [
    (b"grpc-timeout", b"1S"),
    (b"grpc-timeout", b"123456789S"),
    (b"content-length", b"5"),
    (b"x-request-id", b"me"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"data-bin", b"AAEC,AA"),
    (b"data-bin", b"A"),
    (b"grpc-encoding", b"gzip"),
    (b"connection", b"close"),
    (b"Upper", b"case"),
    (b"x", b" space"),
    (b"long", 300 * b"l"),
    (b":path", b"/again"),
    (b"te", b"gzip"),
]
COMPRESSED = [
    *(gzip.compress(bytes(size), mtime=0) for size in (0, 100, 3000, 3001, 1_000_000)),
    *(zlib.compress(bytes(size)) for size in (100, 1_000_000)),
]
"""Messages, and what becomes too large."""
FRAME_SLACK_BYTES = frames.FRAME_MAX_BYTES + frames.FRAME_HEADER_BYTES


class Side:
    """One connection and its client."""

    def __init__(self, budgets: Budgets, piece_bytes: int) -> None:
        self.app = Application()
        self._parser = RequestParser(ROUTES.get)
        self._piece_bytes = piece_bytes
        self._announced = False
        self.connection = Connection(
            lambda connection, stream_id: Call(self.app, connection, stream_id),
            self._parser.parse,
            self._on_output,
            LIMITS,
            budgets,
        )
        self.next_id = 1
        self.ledger = Ledger(self.connection)
        self.read()

    def _on_output(self) -> None:
        assert not self._announced, "announced again before it was taken"
        self._announced = True

    def send(self, data: bytes) -> None:
        """Let the server receive bytes, piece by piece."""
        self.ledger.sent(data)
        step = self._piece_bytes or len(data) or 1
        for begin in range(0, len(data), step):
            self.connection.receive(data[begin : begin + step])

    def read(self) -> bytes:
        """Take all that the server has to send; return it."""
        output = b""
        while True:
            self._announced = False
            if not (data := self.connection.take()):
                break
            output += data
        self.ledger.got(output)
        return output

    def check(self) -> None:
        """What holds at any time."""
        connection, app = self.connection, self.app
        streams = connection.streams.values()
        assert connection.held == sum(stream.held for stream in streams) >= 0
        assert connection.held <= LIMITS.inbound_max_bytes
        assert len(connection._buffer) < FRAME_SLACK_BYTES
        block = connection._block
        assert block is None or block.size == sum(map(len, block.parts)) <= 4 * LIMITS.header_list_max_bytes
        assert len(streams) <= LIMITS.streams_max
        assert len(connection._reset_ids) <= LIMITS.remembered_resets_max
        assert connection._decoder._table_size <= LIMITS.header_table_bytes
        assert connection.queued_bytes == sum(stream.queued_bytes for stream in streams) >= 0
        for stream in streams:
            assert stream.queued_bytes == sum(map(len, stream.queue))
            assert stream.credited >= 0
            assert len(stream.part or b"") <= LIMITS.message_max_bytes + PREFIX_BYTES
        assert set(connection._blocked) <= set(connection.streams)
        assert app.over_calls == {call for call in app.calls if call.closed}
        assert {call for call in app.calls if not call.closed} <= set(streams)
        assert all(source.closed == source.call.closed for source in app.sources)

    def lose(self) -> None:
        """The socket is closed."""
        self.connection.drop_all()
        self.check()
        self.connection.release()
        assert len(self.app.over_calls) == len(self.app.calls)
        assert all(source.closed == 1 for source in self.app.sources)
        assert (self.connection.streams, self.connection.held, self.connection.queued_bytes) == ({}, 0, 0)


class Session:
    """Two connections of a server, and the choices of what happens to them."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.budgets = Budgets.of(LIMITS)
        self._piece_bytes = PIECES[choices.below(len(PIECES))]
        self.sides = [Side(self.budgets, self._piece_bytes) for _ in range(2)]
        self.now = 0

    @property
    def side(self) -> Side:
        return self.sides[self.now]

    def some_stream(self) -> int:
        """A stream that is open, was, or may be yet."""
        return 1 + 2 * self.choices.below(self.side.next_id // 2 + 2)

    def some_call(self) -> Call | None:
        calls = self.side.app.calls[-8:]
        return calls[self.choices.below(len(calls))] if calls else None

    def size(self) -> int:
        return SIZES[self.choices.below(len(SIZES))]

    # -- the client -------------------------------------------------------------------------------------------

    def greet(self) -> None:
        self.side.send(frames.PREFACE + frames.settings({}))

    def send_raw(self) -> None:
        self.side.send(self.choices.piece())

    def send_frame(self) -> None:
        kind, flags = self.choices.below(12), self.choices.number(1)
        stream_id = self.choices.below(2) * self.some_stream()
        self.side.send(frames.frame(kind, flags, stream_id, self.choices.piece()))

    def request(self) -> None:
        """A call that is nearly right; ``how``: what is odd of it."""
        choices, side = self.choices, self.side
        how = choices.number(1)
        path = METHODS[choices.below(len(METHODS))].encode()
        kind = how >> 6
        fields = [(b":method", b"GET" if kind == 3 and how & 4 else b"POST"), (b":scheme", b"http"), (b":path", path)]
        fields.append((b"content-type", b"text/plain" if kind == 3 else b"application/grpc"))
        fields += [(b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip")] * (kind == 2)
        fields += [HEADERS[choices.below(len(HEADERS))] for _ in range(how & 3)]
        block = b"".join(b"\x40" * (how >> 2 & 1) + literal(*field)[how >> 2 & 1 :] for field in fields)
        body = b"".join(framed(bytes(self.size())) for _ in range(how >> 3 & 1))
        end = bool(how & 0x10)
        if how & 0x20:
            self._send_parts(side.next_id, block)
        else:
            flags = frames.END_STREAM if end and not body else 0
            side.send(frames.headers(flags, side.next_id, block))
        if body:
            side.send(frames.frame(frames.DATA, frames.END_STREAM if end else 0, side.next_id, body))
        side.next_id += 2

    def _send_parts(self, stream_id: int, block: bytes) -> None:
        count = 2 + self.choices.below(6)
        step = max(1, len(block) // count)
        parts = [block[at : at + step] for at in range(0, len(block), step)]
        for place, part in enumerate(parts):
            flags = frames.END_HEADERS if place == len(parts) - 1 else 0
            self.side.send(frames.frame(frames.CONTINUATION if place else frames.HEADERS, flags, stream_id, part))

    def header_block(self) -> None:
        """Any bytes for a header block."""
        flags, stream_id = self.choices.number(1) | frames.END_HEADERS, self.side.next_id
        if self.choices.below(2):
            stream_id = self.some_stream()
        else:
            self.side.next_id += 2
        self.side.send(frames.frame(frames.HEADERS, flags & ~frames.PADDED, stream_id, self.choices.piece()))

    def body(self) -> None:
        """A message, or the beginning of one, perhaps padded, perhaps compressed."""
        how, stream_id = self.choices.number(1), self.some_stream()
        message = framed(bytes(self.size()))
        if how & 32:
            message = framed(COMPRESSED[self.choices.below(len(COMPRESSED))])
        if how & 2:
            message = b"\1" + message[1:]
        if how & 4:
            message = message[: 1 + len(message) * self.choices.number(1) // 256]
        if how & 16:
            message = message[self.choices.number(1) :]
        flags = how & frames.END_STREAM
        if how & 8:
            padding = self.choices.number(1)
            message, flags = bytes([padding]) + message + bytes(padding), flags | frames.PADDED
        self.side.send(frames.frame(frames.DATA, flags, stream_id, message))

    def trailers(self) -> None:
        fields = literal(b"x", b"y") if self.choices.below(2) else literal(b":status", b"200")
        self.side.send(frames.headers(frames.END_STREAM, self.some_stream(), fields))

    def reset(self) -> None:
        self.side.send(frames.reset(self.some_stream(), frames.CANCEL))

    def open_window(self) -> None:
        stream_id = self.choices.below(2) * self.some_stream()
        self.side.send(frames.window_update(stream_id, INCREMENTS[self.choices.below(len(INCREMENTS))]))

    def settings(self) -> None:
        name, value = 1 + self.choices.below(8), WINDOWS[self.choices.below(len(WINDOWS))]
        self.side.send(frames.settings({name: value, frames.INITIAL_WINDOW_SIZE: WINDOWS[self.choices.below(6)]}))

    def ping(self) -> None:
        payload = b"draining" if self.choices.below(2) else b"12345678"
        self.side.send(frames.frame(frames.PING, self.choices.below(2), 0, payload))

    # -- the application --------------------------------------------------------------------------------------

    def reply(self) -> None:
        if call := self.some_call():
            call.reply(bytes(self.size()))

    def stream(self) -> None:
        call = self.some_call()
        if call is None or call.method is None or call.method.name in ("Drain", "Feed"):
            return  # their sources alone give something
        if call.queued_bytes <= LIMITS.send_high_bytes:  # otherwise a handler waits
            call.send_head()
            call.send(framed(bytes(self.size())))

    def finish(self) -> None:
        if call := self.some_call():
            status = Status(StatusCode.OK) if self.choices.below(2) else Status(StatusCode.ABORTED, "ü %\n" * 9)
            call.finish(status)

    def take_message(self) -> None:
        call = self.some_call()
        if call and call.inbox:
            message = call.inbox.popleft()
            assert len(message) <= LIMITS.message_max_bytes
            call.taken(message)

    def push(self) -> None:
        sources = self.side.app.sources[-4:]
        if sources:
            source = sources[self.choices.below(len(sources))]
            if len(source.messages) < 20:
                source.push(bytes(self.size()))

    def retire(self) -> None:
        for source in self.side.app.sources[-2:]:
            if not source.closed:
                source.retire()

    def shed(self) -> None:
        if call := self.some_call():
            call.shed(Status(StatusCode.RESOURCE_EXHAUSTED, "no memory"))

    def cancel(self) -> None:
        """The application ends the stream, as its transport does when it gives up."""
        if call := self.some_call():
            call.reset(frames.CANCEL)

    # -- the server -------------------------------------------------------------------------------------------

    def read(self) -> None:
        self.side.connection.stalled = False
        self.side.read()

    def stall(self) -> None:
        self.side.connection.stalled = True

    def time_passes(self) -> None:
        self.side.connection.forgive(self.choices.number(1) / 100)

    def drain(self) -> None:
        if not self.side.connection.failed:
            (self.side.connection.drain_now if self.choices.below(2) else self.side.connection.drain)()

    def work_aside(self) -> None:
        """What is left to threads is done."""
        self.side.app.work_aside()

    def other_side(self) -> None:
        self.now = 1 - self.now

    def lose(self) -> None:
        self.side.lose()
        self.sides[self.now] = Side(self.budgets, self._piece_bytes)

    # -- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds after each move."""
        inbound, outbound = self.budgets
        assert inbound.held_bytes == sum(side.connection.inbound_bytes for side in self.sides)
        # the beginning of a frame is kept without asking
        most = LIMITS.inbound_total_bytes + len(self.sides) * FRAME_SLACK_BYTES
        assert 0 <= inbound.held_bytes <= most, f"{inbound.held_bytes} bytes of requests are held"
        streams = [stream for side in self.sides for stream in side.connection.streams.values()]
        assert outbound.held_bytes == sum(each.queued_bytes for each in streams if each.account is outbound)
        assert UNCOUNTED.held_bytes == sum(each.queued_bytes for each in streams if each.account is UNCOUNTED)
        for side in self.sides:
            side.check()

    def end(self) -> None:
        """All connections are lost: nothing is left."""
        for side in self.sides:
            side.read()
            side.lose()
        assert self.budgets.inbound.held_bytes == self.budgets.outbound.held_bytes == UNCOUNTED.held_bytes == 0


MOVES: list[Callable[[Session], None]] = [
    *[Session.send_raw, Session.send_frame, Session.request, Session.header_block, Session.body, Session.trailers],
    *[Session.reset, Session.open_window, Session.settings, Session.ping],
    *[Session.reply, Session.stream, Session.finish, Session.take_message, Session.push, Session.retire],
    *[Session.shed, Session.cancel, Session.read, Session.stall, Session.time_passes, Session.drain],
    *[Session.other_side, Session.lose, Session.greet, Session.work_aside],
]
"""Numbered by their place: a new one goes to the end, so that what was found stays what it is."""


def server(data: bytes) -> None:
    """Play what the bytes say. Raises AssertionError, or whatever it was that should not have been raised."""
    UNCOUNTED.held_bytes = 0  # an input that failed before has left its own
    choices = Choices(data)
    session = Session(choices)
    greeted = choices.below(4)
    for number in range(2):
        if greeted >> number & 1 == 0:
            session.now = number
            session.greet()
    session.now = 0
    while choices.left:
        MOVES[choices.below(len(MOVES))](session)
        session.check()
    session.end()
