"""One client: its socket, its HTTP/2 connection, and the tasks of its calls, in one nursery.

Owns:      reading, writing, starting handlers, the end of the connection.
Not here:  the protocol (connection.py, call.py), the listeners and what connections share (server.py).
Threads:   the trio thread.

The reader feeds what it reads to the connection and writes the answers that are ready at once. What becomes ready
later is written by the server's flusher, once per scheduler tick for all connections. Only when the socket
takes no more is there a writer task, until it does.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import TYPE_CHECKING

import trio
from purerpc import Status

from trio_broker.rpc import frames, handlers
from trio_broker.rpc.call import Call
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.handlers import Method
from trio_broker.rpc.health import NAME as HEALTH
from trio_broker.rpc.leaving import turn_away
from trio_broker.rpc.listeners import format_address
from trio_broker.rpc.time_limits import Watch
from trio_broker.rpc.tls import Tls

if TYPE_CHECKING:
    from trio_broker.rpc.accepting import Origin
    from trio_broker.rpc.server import Server
    from trio_broker.rpc.stream import Stream

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
FIRST_READ_BYTES = 4 * 1024
SHORTEST_READ_BYTES = 1024
TURN_S = 0.0005
"""What taking in one read is to cost at most, by what the last one did: then others have their turn.

64 KiB of ordinary calls take some milliseconds, but 64 KiB of the smallest frames, or of large header lists, many times
as long. So the first read of a connection is short, and each that was filled at most doubles the next.
"""
TIGHT_BYTES = 2 * 1024
"""What is handled of a read before the answers to it are written, while many replies wait already."""
KEEPALIVE = {
    socket.TCP_KEEPIDLE: 30,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 60_000,  # ms
}
"""A peer that vanishes without a word is noticed within a minute, by the kernel (RFC 1122, 4.2.3.6; RFC 5482)."""
NOTSENT_BYTES = 128 * 1024
"""What the kernel takes of a reply before the peer has room for it: its memory counts against a container's limit."""
LINGER_S = 1.0
LINGER_READS = 100
"""How long, and how much, a connection that we end is read and ignored, so that our last words arrive."""


class Transport:
    """A connected client. It is the `trio_broker.rpc.call.Application` of its calls."""

    def __init__(
        self, server: Server, sock: socket.socket, origin: Origin | None = None, *, refusal: Status | None = None
    ) -> None:
        """Take an accepted socket.

        Args:
            server: what is served, and what all connections share.
            sock: the client's; `run` closes it.
            origin: what all connections of the client's address have; None: that does not matter.
            refusal: there is no place for the client: this ends its calls, and it is closed soon.
        """
        self.server = server
        self._origin = origin
        self._refusal = refusal
        self.refusals = server.refusals
        self.peer = _peer(sock)
        self.connection_id = token_hex(6)
        self._socket = sock
        self._end = ""
        """What went wrong first, for the log."""
        self._tls = None if server.tls is None else Tls(server.tls)
        self._nursery: trio.Nursery
        self._reading = True
        """Output need not be announced: it is flushed when the read is done."""
        self.came_at = self.read_at = time.perf_counter()
        self._watch = Watch(trio.current_time(), server.limits.connection_age_s)
        self._task_streams = 0
        self._streams = 0
        """Calls that are open, as of the last read or write."""
        self._streams_max = math.inf
        self._groups: list[list[Call]] = []
        self._open_groups: dict[Method, list[Call]] = {}
        """The last group of each method, which takes more calls."""
        self._grouped_bytes = 0
        self._fed: dict[Call, None] = {}
        """Calls whose feeds are to be told when the read is done."""
        self._unsent: memoryview | None = None
        self.stalled_at = 0.0
        """When the socket last took a part of what it was to take."""
        self._written = trio.Event()
        self._begun = self._broken = False
        self._reader = trio.CancelScope()
        self.connection = Connection(
            self._new_call, server.parser.parse, self._on_output, server.limits, server.budgets
        )

    async def run(self) -> None:
        """Serve the client until it leaves, breaks a rule, or the server has drained it. Closes the socket."""
        logged = self.server.may_log_connection()
        if logged:
            log.debug("connection_opened peer=%s connection_id=%s", self.peer, self.connection_id)
        try:
            if self._socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
                for option, value in KEEPALIVE.items():
                    self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            async with trio.open_nursery() as self._nursery:
                self._begun = True
                self._reading = False
                self.flush()
                if self._refusal is not None:
                    self._nursery.start_soon(turn_away, self)
                try:
                    with self._reader:
                        await self._read()
                except trio.Cancelled:
                    if not self._broken:  # the server stops, and all its tasks hear of it at once: in no certain order
                        self.abandon()
                    raise
                finally:
                    self._end_calls()
                if self._reader.cancelled_caught:
                    self._end = self._end or f"no HTTP/2 within {self.server.limits.handshake_s:g} s"
                await self._farewell()
                self._nursery.cancel_scope.cancel()
        except* OSError as errors:
            # not in a variable: its traceback knows this frame, and a cycle would keep all of the connection
            self._end = self._end or _told_of(errors.exceptions[0])
            self._send(self._take())  # TLS tells the peer why
        finally:
            self._broken = True
            self._keep_unsent(None)
            self._socket.close()
            if logged:
                why = self._why()
                log.debug("connection_closed peer=%s connection_id=%s why=%s", self.peer, self.connection_id, why)
            self.connection.release()

    def _end_calls(self) -> None:
        """End every call. One whose end fails, which is a bug, does not keep the others."""
        while self.connection.streams:
            try:
                self.connection.drop_all()
            except Exception as error:  # noqa: BLE001
                self._report(error)
        self._count_streams()

    def _report(self, error: Exception) -> None:
        """Log a bug, ours or a handler's, which must not reach other connections."""
        log.error("connection_failed peer=%s error=%s", self.peer, type(error).__name__, exc_info=error)

    def crash(self, error: Exception) -> None:
        """End the connection, whose state is not to be trusted any more."""
        self._report(error)
        self._end = "a bug"
        self._broken = True
        self._nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        connection, outbound = self.connection, self.server.budgets.outbound
        handshaking = True
        read_bytes = FIRST_READ_BYTES
        self._reader.deadline = trio.current_time() + self.server.limits.handshake_s
        while not connection.finished:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(TIGHT_BYTES if outbound.tight else read_bytes)
            except BlockingIOError:
                continue
            if not data:
                return
            filled = len(data) == read_bytes
            if self._tls is not None:
                data = self._tls.decrypt(data)
            now = time.perf_counter()
            connection.forgive(now - self.read_at)
            self.read_at = now
            while len(data) > TIGHT_BYTES and outbound.tight:
                self._handle(data[:TIGHT_BYTES])
                data = data[TIGHT_BYTES:]
                await self._caught_up()
            self._handle(data)
            if filled:  # there may be more
                allowed = int(read_bytes * TURN_S / (time.perf_counter() - now))
                read_bytes = max(SHORTEST_READ_BYTES, min(allowed, 2 * read_bytes, READ_BYTES))
            if handshaking and connection.settled:
                handshaking = False
                self._reader.deadline = math.inf
            await self._caught_up()

    def _handle(self, data: bytes) -> None:
        """Take in what was read; write what is answered at once."""
        self._reading = True
        self._streams_max = self._streams_room()
        try:
            self.connection.receive(data)
        except Exception as error:  # noqa: BLE001
            self._report(error)
            self._end_calls()
            self.connection.fail(frames.INTERNAL_ERROR, "internal error")
        self._start_groups()
        self._reading = False
        self.flush()
        self.server.written()

    def _streams_room(self) -> float:
        """Return how many calls the connection may have open while what was read is taken in."""
        limits, origin, own = self.server.limits, self._origin, self._streams
        room = limits.streams_total - self.server.streams + own
        return room if origin is None else min(room, limits.streams_per_address - origin.streams + own)

    def _count_streams(self) -> None:
        """Account for the calls that are open, once for all that a read or a write has changed."""
        more = len(self.connection.streams) - self._streams
        if more:
            self._streams += more
            self.server.streams += more
            if self._origin is not None:
                self._origin.streams += more

    async def _caught_up(self) -> None:
        """Wait for a peer that does not read: it is not read from."""
        while self._unsent is not None and self._unread_bytes() > self._unread_max_bytes():
            await self._written.wait()

    def _unread_bytes(self) -> int:
        return self.outbound_bytes + self.connection.waiting_bytes

    def _unread_max_bytes(self) -> int:
        """What may wait for a peer: less when little more can be kept for all of them together."""
        limits, outbound = self.server.limits, self.server.budgets.outbound
        if not outbound.tight:
            return limits.unsent_max_bytes
        return limits.write_max_bytes if outbound.has_room(0) else 0

    def _start_groups(self) -> None:
        if self._fed:
            fed, self._fed = self._fed, {}
            handlers.feed(fed, self.refusals)
        if self._groups:
            for calls in self._groups:
                begun = handlers.begin_group(calls, self.refusals)
                if begun is not None:
                    self._nursery.start_soon(handlers.finish_group, *begun, self.refusals)
            self._groups.clear()
            self._open_groups.clear()
            self._grouped_bytes = 0

    # -- the application of the calls -------------------------------------------------------------------------

    def _new_call(self, connection: Connection, stream_id: int) -> Call:
        return Call(self, connection, stream_id)

    def opened(self, call: Call) -> None:
        """Start the clocks of a call, and its task if it does not wait for its one message."""
        call.started = self.read_at
        method: Method | None = call.method
        if len(self.connection.streams) > self._streams_max and not _asks_for_health(method):
            call.finish(self.refusals.overloaded("as many calls are open as may be"))
            return
        if self._refusal is not None and not _asks_for_health(method):
            call.finish(self._refusal)
            self.connection.drain()
            return
        if method is not None and method.task_streams:
            server, limits = self.server, self.server.limits
            self._task_streams += 1  # until it is `over`
            server.task_streams += 1
            if self._task_streams > limits.task_streams_max or server.task_streams > limits.task_streams_total:
                call.finish(self.refusals.overloaded(f"too many calls of {method.name} are open"))
                return
        refuse = self.server.refuse
        if refuse is not None and (status := refuse(call)) is not None:
            call.finish(status)
            return
        if call.timeout_s is not None:
            self.server.watch(call, call.timeout_s)
        if method is not None and method.kind == "fed":
            call.inbox = deque()
            handlers.begin_fed(call, self.refusals)
        elif method is not None and method.request_streams:
            call.inbox = deque()
            self._nursery.start_soon(handlers.run_task, call, self.refusals)

    def ready(self, call: Call) -> None:
        """Run the handler of a call whose message is there."""
        method: Method = call.method
        if method.kind == "grouped":
            # A group parses all of its messages, which may take many times their size: of large ones it gets only one.
            self._grouped_bytes += len(call.message)
            group = self._open_groups.get(method)
            if group is None or self._grouped_bytes > READ_BYTES:
                self._grouped_bytes = len(call.message)
                self._open_groups[method] = group = []
                self._groups.append(group)
            group.append(call)
        else:
            run = handlers.run_drained if method.kind == "drained" else handlers.run_task
            self._nursery.start_soon(run, call, self.refusals)

    def began(self, call: Call) -> None:
        """Note when the first message of a response was there."""
        call.first_message_s = time.perf_counter() - call.started

    def hurry(self, call: Call, seconds: float) -> None:
        """Bring the deadline of a call forward."""
        self.server.watch(call, seconds)

    def received(self, call: Call) -> None:
        """Wake the handler of a call that streams."""
        if call.feed is not None:
            self._fed[call] = None
        elif call.wake is not None:
            call.wake()

    def over(self, call: Call) -> None:
        """Stop everything that a call had going, and account for it."""
        if call.method is not None and call.method.task_streams:
            self._task_streams -= 1
            self.server.task_streams -= 1
        if call.deadline is not None:
            self.server.deadlines.discard(call)
        if call.scope is not None:
            call.scope.cancel()
        if call.status is None and call.method is not None and call.method.abandoned is not None:
            call.method.abandoned(call)
        self.server.call_over(call)

    # -- writing ----------------------------------------------------------------------------------------------

    def _on_output(self) -> None:
        if not self._reading and self._unsent is None:
            self.server.flush_soon(self)

    def flush(self) -> None:
        """Write what there is, as far as the socket takes it; the rest is left to a writer task. Never raises."""
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001
            self.crash(error)

    def _flush(self) -> None:
        connection = self.connection
        while self._unsent is None and not self._broken:
            data = self._take()
            if not data:
                break
            sent = self._send(data)
            if sent < len(data):
                self.stalled_at = time.perf_counter()
                self._keep_unsent(memoryview(data)[sent:])
                self._nursery.start_soon(self._write_rest)
            elif not connection.sendable:
                break
        self._count_streams()
        if connection.finished:
            self._reader.cancel()

    def _take(self) -> bytes:
        data = self.connection.take()
        return data if self._tls is None else self._tls.encrypt(data)

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._end = self._end or str(error)
            self._broken = True  # the peer is gone
            self._reader.cancel()
            return len(data)

    def _keep_unsent(self, rest: memoryview | None) -> None:
        """Keep what the socket did not take, counted; None: it has caught up."""
        self.server.budgets.outbound.held_bytes += len(rest or b"") - len(self._unsent or b"")
        self._unsent = rest
        self.connection.stalled = rest is not None

    async def _write_rest(self) -> None:
        """Write what the socket did not take, until it has caught up."""
        while self._unsent is not None and not self._broken:
            await trio.lowlevel.wait_writable(self._socket)
            sent = self._send(self._unsent)
            if sent:
                self.stalled_at = time.perf_counter()
            rest: bytes | memoryview = self._unsent[sent:] or self._take()
            self._keep_unsent(memoryview(rest) if rest else None)
            self.server.written()
            self._written.set()
            self._written = trio.Event()
        self.flush()

    async def _farewell(self) -> None:
        """Let the last bytes arrive: closing a socket with unread input would discard them (RFC 1122, 4.2.2.13)."""
        with trio.move_on_after(LINGER_S):
            while self._unsent is not None and not self._broken:
                await self._written.wait()
            if self._broken:
                return
            if self._tls is not None:
                self._send(self._tls.close())
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(LINGER_READS):
                await trio.lowlevel.wait_readable(self._socket)
                if not self._socket.recv(READ_BYTES):
                    return

    def abandon(self) -> None:
        """The server stops: end every call, write what the socket takes at once, and close. Never raises."""
        self._end = "the server stops"
        try:
            for stream in list(self.connection.streams.values()):
                if isinstance(stream, Call):
                    self.give_up(stream, self.refusals.stopping())
        except Exception as error:  # noqa: BLE001
            self._report(error)
        self.flush()
        self._nursery.cancel_scope.cancel()

    def expire(self, call: Call) -> None:
        """The deadline of a call has passed. Never raises."""
        try:
            self.give_up(call, self.refusals.deadline_exceeded())
            self.flush()
            if not call.closed:  # a window for the rest may never come
                call.reset(frames.CANCEL)
        except Exception as error:  # noqa: BLE001
            self.crash(error)

    def expire_request(self, call: Stream) -> None:
        """A request has not arrived in whole for too long. Never raises."""
        try:
            if isinstance(call, Call) and call.method is not None:
                self.give_up(call, self.refusals.request_too_slow(self.server.limits.request_s))
                self.flush()
            call.reset(frames.CANCEL)
        except Exception as error:  # noqa: BLE001
            self.crash(error)

    def look(self, now: float, seconds: float) -> None:
        """See whether the client takes too long for something: see `Watch.look`. Never raises."""
        try:
            self._watch.look(self, now, seconds)
        except Exception as error:  # noqa: BLE001
            self.crash(error)

    def start(self, step: Callable[[Transport, float], Awaitable[None]], seconds: float) -> None:
        """Run a task that ends with the connection."""
        self._nursery.start_soon(step, self, seconds)

    @property
    def ends(self) -> bool:
        """The connection is being closed, or has yet to begin."""
        return self._broken or not self._begun or self.connection.finished

    @property
    def inbound_bytes(self) -> int:
        """What is held of the client's unfinished requests."""
        return self.connection.inbound_bytes

    @property
    def outbound_bytes(self) -> int:
        """What waits for the client to read it."""
        return len(self._unsent or b"") + self.connection.queued_bytes

    @property
    def stuck(self) -> bool:
        """Something waits for the client's socket to take more, which it last did `stalled_at`."""
        return self._unsent is not None

    @property
    def called(self) -> bool:
        """The client has made a call."""
        return self.connection.last_stream_id > 0

    def evict(self) -> None:
        """Close the connection, of which no call is known, to make room for another."""
        self.close("it made no call, and another needs its place")

    def close(self, why: str) -> None:
        """Close the connection at once. Nothing more is said."""
        self._end = why
        self._broken = True
        self._nursery.cancel_scope.cancel()

    def give_up(self, call: Call, status: Status) -> None:
        """End a call that has no answer yet with ``status``, unless what it had going knows better."""
        if call.status is None:
            abandoned = None if call.method is None else call.method.abandoned
            call.finish((None if abandoned is None else abandoned(call)) or status)

    def _why(self) -> str:
        connection = self.connection
        if connection.failure:
            return f"GOAWAY {connection.failure}"
        if connection.finished:
            return "drained"
        end = self._end or "the client closed"
        return f"{end}, after GOAWAY {connection.peer_goaway}" if connection.peer_goaway else end


def _asks_for_health(method: Method | None) -> bool:
    """Say whether a call is served whoever makes it: a process that is only full must not be taken for a sick one."""
    return method is not None and method.service == HEALTH and not method.response_streams


def _told_of(error: BaseException) -> str:
    return f"TLS failed: {error}" if isinstance(error, ssl.SSLError) else str(error)


def _peer(sock: socket.socket) -> str:
    try:
        return format_address(sock.getpeername())
    except OSError:
        return "gone"
