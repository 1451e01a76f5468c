"""What a connection may take its time for: seen by a look at each, once per second.

Owns:      `Watch`, what one look at a connection remembers for the next; the loop over all connections.
Not here:  deadlines of calls (deadlines.py), the time a client has to come to speak HTTP/2 (transport.py), what is done
           when memory is short (shedding.py).
Threads:   the trio thread. Only `keep_looking` waits.

No task, timer or clock stands behind these limits, and reading, writing and calls do nothing for them: a look compares
what it finds with what the last one found. So each limit is kept to about a second. What was waited for is summed up
in looks, of which each counts for no more than two seconds: a process that was stopped for a minute, or had no CPU,
does not take its clients for dead ones.
"""

from __future__ import annotations

import math
from random import uniform
from typing import TYPE_CHECKING

import trio

from trio_broker.rpc import frames
from trio_broker.rpc.call import Call
from trio_broker.rpc.leaving import AGE_JITTER, let_go

if TYPE_CHECKING:
    from trio_broker.rpc.server import Server
    from trio_broker.rpc.stream import Stream
    from trio_broker.rpc.transport import Transport

LOOK_S = 1.0
LOOKS_AT_ONCE = 500
"""Connections that are looked at before others get their turn."""


async def keep_looking(server: Server) -> None:
    """Look at every connection once per second, until cancelled."""
    before = trio.current_time()
    while True:
        await trio.sleep(LOOK_S)
        now = trio.current_time()
        seconds, before = min(now - before, 2 * LOOK_S), now
        for number, transport in enumerate(list(server.transports), 1):
            transport.look(now, seconds)
            if number % LOOKS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()


class Watch:
    """What is remembered of a connection from one look to the next. Times are seconds of trio's clock."""

    __slots__ = (
        "_ages_at",
        "_answers",
        "_busy_at",
        "_frame_since_s",
        "_frame_waited_s",
        "_last_stream_id",
        "_leaves",
        "_moved_at",
        "_pinged",
        "_quiet_s",
        "_requests",
        "_stalled_at",
        "_stuck_s",
    )

    def __init__(self, now: float, age_s: float) -> None:
        """``age_s``: how old the connection is to become, about."""
        self._ages_at = now + age_s * uniform(1 - AGE_JITTER, 1 + AGE_JITTER) if age_s < math.inf else math.inf  # noqa: S311 - no secret
        self._leaves = False
        self._busy_at = now
        self._last_stream_id = 0
        self._moved_at = (0.0, 0.0)
        self._quiet_s = 0.0
        self._pinged = False
        self._stalled_at = 0.0
        self._stuck_s = 0.0
        """For how long it was seen that the socket, which is to take something, takes nothing."""
        self._frame_since_s: float | None = None
        self._frame_waited_s = 0.0
        self._requests: dict[Stream, float] = {}
        """Calls with one message that has not arrived in whole, and for how long that was seen."""
        self._answers: dict[Stream, tuple[int, float]] = {}
        """Calls whose answers are made, what of them waits, and for how long that was seen not to change."""

    def look(self, transport: Transport, now: float, seconds: float) -> None:
        """Look at a connection, ``seconds`` after the last look, and end what has taken too long."""
        if transport.ends:
            return
        self._look_at_socket(transport, seconds)
        self._look_at_life(transport, seconds)
        self._look_at_frames(transport, seconds)
        connection = transport.connection
        newest, self._last_stream_id = self._last_stream_id, connection.last_stream_id
        if connection.streams or self._requests or self._answers:
            self._look_at_requests(transport, newest, seconds)
            self._look_at_answers(transport, seconds)
        if connection.streams or self._last_stream_id != newest:
            self._busy_at = now
        self._look_at_age(transport, now)

    def _look_at_socket(self, transport: Transport, seconds: float) -> None:
        """Close a connection that takes nothing, whatever the peer says meanwhile."""
        if not transport.stuck or transport.stalled_at != self._stalled_at:
            self._stalled_at, self._stuck_s = transport.stalled_at, 0.0
            return
        self._stuck_s += seconds
        unread_s = transport.server.limits.unread_s
        if self._stuck_s >= unread_s:
            transport.close(f"the client has read nothing for {unread_s:g} s", "unread")

    def _look_at_life(self, transport: Transport, seconds: float) -> None:
        """Ask a peer of whom nothing is heard whether it is there; close one that is silent."""
        limits, connection = transport.server.limits, transport.connection
        moved_at = transport.read_at, transport.stalled_at
        if moved_at != self._moved_at:
            self._moved_at = moved_at
            self._quiet_s = 0.0
            self._pinged = False
            return
        self._quiet_s += seconds
        if self._pinged and self._quiet_s >= limits.keepalive_s + limits.keepalive_timeout_s:
            transport.close(f"no answer to a PING within {limits.keepalive_timeout_s:g} s", "silent")
        elif not self._pinged and self._quiet_s >= limits.keepalive_s and connection.settled:
            self._pinged = True
            connection.ping()

    def _look_at_frames(self, transport: Transport, seconds: float) -> None:
        """A frame that does not end, and a header block that does not ("slow headers")."""
        connection = transport.connection
        since_s = connection.unfinished_since_s
        if since_s is None or since_s != self._frame_since_s:
            self._frame_since_s, self._frame_waited_s = since_s, 0.0
        elif not transport.stuck:  # who does not read is not read from
            self._frame_waited_s += seconds
            if self._frame_waited_s >= transport.server.limits.frame_s:
                connection.fail(frames.ENHANCE_YOUR_CALM, "a frame or a header block took too long")
                transport.flush()

    def _look_at_requests(self, transport: Transport, newest: int, seconds: float) -> None:
        """Requests of one message that do not arrive in whole ("slow bodies")."""
        for call, waited_s in list(self._requests.items()):
            if call.remote_closed or call.closed:
                del self._requests[call]
                continue
            self._requests[call] = waited_s + seconds
            if waited_s + seconds >= transport.server.limits.request_s:
                del self._requests[call]
                transport.expire_request(call)
        streams = transport.connection.streams
        for stream_id in reversed(streams):
            if stream_id <= newest:
                break
            call = streams[stream_id]
            if not call.remote_closed and not (isinstance(call, Call) and call.inbox is not None):
                self._requests[call] = 0.0

    def _look_at_answers(self, transport: Transport, seconds: float) -> None:
        """Answers that are made, and for which the peer gives no window ("zero-window stall")."""
        connection = transport.connection
        if not connection.queued_bytes:
            self._answers.clear()
            return
        answers = self._answers
        self._answers = {}
        for call in list(connection.streams.values()):
            if not (call.local_closed and call.queued_bytes):
                continue
            waiting, waited_s = answers.get(call, (0, 0.0))
            waited_s = waited_s + seconds if waiting == call.queued_bytes else 0.0
            if waited_s >= transport.server.limits.answer_s:
                call.reset(frames.ENHANCE_YOUR_CALM)
            else:
                self._answers[call] = call.queued_bytes, waited_s

    def _look_at_age(self, transport: Transport, now: float) -> None:
        """Let go what has reached its age, or has had no call for long."""
        limits, server = transport.server.limits, transport.server
        if self._leaves:
            return
        if now >= self._ages_at:
            self._leaves = True
            server.connections_aged += 1
            transport.start(let_go, limits.connection_age_grace_s)
        elif now - self._busy_at >= limits.idle_s:
            self._leaves = True
            transport.start(let_go, limits.connection_age_grace_s)
