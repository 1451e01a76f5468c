"""One client: its socket, its HTTP/2 connection, and the tasks of its calls, in one nursery.

Owns:      reading, writing, the end of the connection.
Not here:  what is done for its calls (calls.py), the protocol (connection.py, call.py), the listeners and what
           connections share (server.py).
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
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import trio
from purerpc import Status

from trio_broker.rpc import frames
from trio_broker.rpc.aside import Aside
from trio_broker.rpc.call import Call
from trio_broker.rpc.calls import READ_BYTES, Calls
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.identity import Identity
from trio_broker.rpc.inflow import PER_READ_BYTES
from trio_broker.rpc.leaving import turn_away
from trio_broker.rpc.listeners import format_address
from trio_broker.rpc.strangers import BEGIN_BYTES, recognise
from trio_broker.rpc.time_limits import Watch
from trio_broker.rpc.tls import Tls

if TYPE_CHECKING:
    from trio_broker.rpc.accepting import Origin
    from trio_broker.rpc.server import Server
    from trio_broker.rpc.stream import Stream

log = logging.getLogger(__name__)

FIRST_READ_BYTES = 4 * 1024
SHORTEST_READ_BYTES = 128
TURN_S = 0.0005
"""What taking in one read is to cost at most, by what the last one did: then others have their turn.

64 KiB of ordinary calls take some milliseconds, but 64 KiB of the smallest frames, or of large header lists, many times
as long. So the first read of a connection is short, and each that was filled at most doubles the next. Those who
filled their last one take turns (`Server.turn`).
"""
LONG_S = 10 * TURN_S
"""A read that was not filled makes the next ones shorter if it cost more: the end of a large request is no such one."""
TASK_S = 0.0001
"""What a call that has a task is taken to cost besides, when it begins and when it is cancelled."""
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
FIRST_WORD_S = 0.1
"""How long we wait for the client's first bytes before ours: so HTTP/1 is answered in HTTP/1."""
CUT_BY = ("handshake", "flood", "silent", "unread", "no_call", "memory")
"""Which limit closed a connection: see `Server.connections_cut`."""
LINGER_S = 1.0
LINGER_READS = 100
"""How long, and how much, a connection that we end is read and ignored, so that our last words arrive."""


class Transport(Calls):
    """A connected client."""

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
        super().__init__(server, origin, refusal)
        self.peer = _peer(sock)
        self.connection_id = token_hex(6)
        self._socket = sock
        self._end = ""
        """What went wrong first, for the log."""
        self._cut_by = ""
        """Which limit closed it; one of `CUT_BY`."""
        self._tls = None if server.tls is None else Tls(server.tls)
        self._reading = True
        """Output need not be announced: it is flushed when the read is done."""
        self.came_at = self.read_at
        self._watch = Watch(trio.current_time(), server.limits.connection_age_s)
        self._unsent: memoryview | None = None
        self.stalled_at = 0.0
        """When the socket last took a part of what it was to take."""
        self._written = trio.Event()
        self._begun = self._broken = False
        self._reader = trio.CancelScope()
        self._aside = Aside(server.threads, self._take_in)
        self.connection = Connection(
            self._new_call, server.parser.parse, self._on_output, server.limits, server.budgets
        )

    async def run(self) -> None:
        """Serve the client until it leaves, breaks a rule, or the server has drained it. Closes the socket."""
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
                if self._reader.cancelled_caught and not self._end and not self.connection.finished:
                    self._end = f"no HTTP/2 within {self.server.limits.handshake_s:g} s"
                    self._cut_by = "handshake"
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
            log.debug("connection_closed peer=%s connection_id=%s why=%s", self.peer, self.connection_id, self._why())
            if self.connection.calmed:
                self._cut_by = "flood"
            if self._cut_by:
                self.server.connections_cut[self._cut_by] += 1
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
        handshaking, filled = True, False
        read_bytes = FIRST_READ_BYTES
        self._reader.deadline = trio.current_time() + self.server.limits.handshake_s
        if await self._is_strange():
            return
        self.flush()
        while not connection.finished:
            await trio.lowlevel.wait_readable(self._socket)
            if filled:
                await self.server.turn()
            size = TIGHT_BYTES if outbound.tight else read_bytes
            try:
                data = self._socket.recv(size)
            except BlockingIOError:
                continue
            if not data:
                return
            got = len(data)
            filled = got == size  # there may be more
            now = time.perf_counter()
            if self._tls is not None:
                data = self._decrypt(self._tls, data)
            self._stirred = 0
            connection.forgive(now - self.read_at)
            self.read_at = now
            while len(data) > TIGHT_BYTES and outbound.tight:
                self._handle(data[:TIGHT_BYTES])
                data = data[TIGHT_BYTES:]
                await self._caught_up()
            self._handle(data)
            took_s = time.perf_counter() - now + self._stirred * TASK_S
            if filled or (took_s > LONG_S and got > FIRST_READ_BYTES):  # a short one tells little of what bytes cost
                allowed = int(got * TURN_S / took_s)
                read_bytes = max(SHORTEST_READ_BYTES, min(allowed, 2 * read_bytes, READ_BYTES))
            if handshaking and connection.settled:
                handshaking = False
                self._reader.deadline = math.inf
            await self._caught_up()

    async def _is_strange(self) -> bool:
        """Wait for the client's first bytes; answer one that speaks something else than this port does."""
        with trio.move_on_after(FIRST_WORD_S):
            await trio.lowlevel.wait_readable(self._socket)
        try:
            stranger = recognise(self._socket.recv(BEGIN_BYTES, socket.MSG_PEEK), tls=self._tls is not None)
        except BlockingIOError:
            return False
        if stranger is None:
            return False
        self._tls = None
        self._send(stranger.answer)
        self._end = self._end or stranger.why
        return True

    def _decrypt(self, tls: Tls, data: bytes) -> bytes:
        was_shaken = tls.shaken
        data = tls.decrypt(data)
        if tls.shaken and not was_shaken:
            log.debug(
                "connection_encrypted peer=%s connection_id=%s version=%s cipher=%s client=%r",
                *(self.peer, self.connection_id, *tls.agreed),
                self.identity and self.identity.name,
            )
        return data

    def _handle(self, data: bytes) -> None:
        """Take in what was read."""
        self.at_once_bytes = PER_READ_BYTES
        self._take_in(self.connection.receive, data)

    def _take_in(self, take: Callable[[Any], None], given: Any) -> None:  # noqa: ANN401 - what `take` takes
        """Let the connection or a call take something in; write what is answered at once."""
        self._reading = True
        self._begin_read()
        try:
            take(given)
        except Exception as error:  # noqa: BLE001
            self._report(error)
            self._end_calls()
            self.connection.fail(frames.INTERNAL_ERROR, "internal error")
        self._end_read()
        self._reading = False
        self.flush()
        self.server.written()

    @property
    def identity(self) -> Identity | None:
        """Who the client is by its certificate."""
        return None if self._tls is None else self._tls.identity

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
        self.close("it made no call, and another needs its place", "no_call")

    def close(self, why: str, cut_by: str) -> None:
        """Close the connection at once, for a limit of `CUT_BY`. Nothing more is said."""
        self._end, self._cut_by = why, cut_by
        self._broken = True
        self._nursery.cancel_scope.cancel()

    def _why(self) -> str:
        connection = self.connection
        if connection.failure:
            return f"GOAWAY {connection.failure}"
        if connection.finished:
            return "drained"
        end = self._end or "the client closed"
        return f"{end}, after GOAWAY {connection.peer_goaway}" if connection.peer_goaway else end


def _told_of(error: BaseException) -> str:
    return f"TLS failed: {error}" if isinstance(error, ssl.SSLError) else str(error)


def _peer(sock: socket.socket) -> str:
    try:
        return format_address(sock.getpeername())
    except OSError:
        return "gone"
