"""What is done for the calls of one client: which are taken, and when their handlers run.

Owns:      `Calls`: bounds on open calls, the groups and feeds of a read, deadlines.
Not here:  how handlers are run (handlers.py), the socket (transport.py), one call (call.py).
Threads:   the trio thread.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

import trio
from purerpc import Status

from trio_broker.rpc import handlers
from trio_broker.rpc.application import Job
from trio_broker.rpc.aside import Aside, Threads
from trio_broker.rpc.call import Call
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.handlers import Method
from trio_broker.rpc.health import NAME as HEALTH
from trio_broker.rpc.identity import Identity
from trio_broker.rpc.inflow import PER_READ_BYTES

if TYPE_CHECKING:
    from trio_broker.rpc.accepting import Origin
    from trio_broker.rpc.server import Server

READ_BYTES = 64 * 1024
"""What one read of a socket takes at most, and what a group of calls may have in its messages beside the last one."""


class Calls(ABC):
    """The `trio_broker.rpc.application.Application` of a connection's calls; `Transport` is one with a socket."""

    connection: Connection
    peer: str
    connection_id: str
    _nursery: trio.Nursery
    _aside: Aside

    def __init__(self, server: Server, origin: Origin | None, refusal: Status | None) -> None:
        self.server = server
        self.refusals = server.refusals
        self.read_at = time.perf_counter()
        self.at_once_bytes = PER_READ_BYTES
        self._origin = origin
        self._refusal = refusal
        self._stirred = 0
        """Tasks of calls that what was read last has started or cancelled: they run after it."""
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

    @property
    @abstractmethod
    def identity(self) -> Identity | None:
        """Who the client is by its certificate."""

    @abstractmethod
    def expire(self, call: Call) -> None:
        """The deadline of a call has passed. Never raises."""

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
            self._stirred += 1
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
            self._stirred += 1
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

    @property
    def threads(self) -> Threads:
        """What all connections compress with."""
        return self.server.threads

    def aside(self, job: Job) -> None:
        """Run a job when its turn has come."""
        self._aside.add(job, self._nursery)

    def over(self, call: Call) -> None:
        """Stop everything that a call had going, and account for it."""
        if call.method is not None and call.method.task_streams:
            self._task_streams -= 1
            self.server.task_streams -= 1
        if call.deadline is not None:
            self.server.deadlines.discard(call)
        if call.scope is not None:
            self._stirred += 1
            call.scope.cancel()
        if call.status is None and call.method is not None and call.method.abandoned is not None:
            call.method.abandoned(call)
        self.server.call_over(call)

    def give_up(self, call: Call, status: Status) -> None:
        """End a call that has no answer yet with ``status``, unless what it had going knows better."""
        if call.status is None:
            abandoned = None if call.method is None else call.method.abandoned
            call.finish((None if abandoned is None else abandoned(call)) or status)

    def _begin_read(self) -> None:
        """Find how many calls the connection may have open while what was read is taken in."""
        limits, origin, own = self.server.limits, self._origin, self._streams
        room = limits.streams_total - self.server.streams + own
        if origin is not None:
            room = min(room, limits.streams_per_address - origin.streams + own)
        self._streams_max = room

    def _end_read(self) -> None:
        """Run the handlers that get all calls of a read together, and feed those that take streams."""
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

    def _count_streams(self) -> None:
        """Account for the calls that are open, once for all that a read or a write has changed."""
        more = len(self.connection.streams) - self._streams
        if more:
            self._streams += more
            self.server.streams += more
            if self._origin is not None:
                self._origin.streams += more


def _asks_for_health(method: Method | None) -> bool:
    """Say whether a call is served whoever makes it: a process that is only full must not be taken for a sick one."""
    return method is not None and method.service == HEALTH and not method.response_streams
