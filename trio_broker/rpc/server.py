"""A gRPC server on trio, behind purerpc's public interface.

Owns:      the services, what all connections share (the flusher, the deadlines), draining.
Not here:  one connection (transport.py), who is accepted (accepting.py).
Threads:   the trio thread.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, closing

import purerpc
import trio
from purerpc import Status

from trio_broker.rpc import handlers, shedding
from trio_broker.rpc.accepting import Entrance
from trio_broker.rpc.aside import Threads
from trio_broker.rpc.budget import Budgets
from trio_broker.rpc.call import Call
from trio_broker.rpc.deadlines import LONGEST_S, Deadlines
from trio_broker.rpc.handlers import Method
from trio_broker.rpc.leaving import GOAWAY_WAIT_S
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.listeners import listen_tcp
from trio_broker.rpc.request import RequestParser
from trio_broker.rpc.status import Refusals
from trio_broker.rpc.time_limits import keep_looking
from trio_broker.rpc.transport import CUT_BY, Transport

log = logging.getLogger(__name__)

CallOver = Callable[[Call, float], None]


class Server(purerpc.Server):  # type: ignore[misc] # purerpc is untyped
    """A gRPC server: ``add_service`` as with purerpc, then `serve_on` in a nursery.

    Args:
        host: where `serve_async` listens.
        port: where `serve_async` listens; 0 for any free port.
        tls: encrypt with this, see `trio_broker.rpc.tls.server_context`; None: plaintext.
        limits: what a client may ask of us.
        refusals: the statuses that this layer gives by itself.
        on_call_over: told of each call that ended, and of the seconds it took. `Call.method` is None if there is no
            such method, `Call.status` if the client cancelled or vanished.
        compresses: replies of `trio_broker.rpc.compression.DEFLATE_MIN_BYTES` and more are compressed for clients that
            accept it; without it, those of handlers that are marked so (`trio_broker.rpc.handlers.compressed`).
        on_written: told each time that what there was to say was given to the sockets: once per scheduler tick for all
            connections, and after each read or write of one.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        refusals: Refusals | None = None,
        on_call_over: CallOver | None = None,
        on_written: Callable[[], None] | None = None,
        compresses: bool = False,
    ) -> None:
        super().__init__(port)
        self.tls = tls
        """What new connections are encrypted with; see `encrypt_with`."""
        self.host = host
        self.port: int = port
        self.limits = limits or Limits()
        self.budgets = Budgets.of(self.limits)
        """What all connections hold together."""
        self.refuse: Callable[[Call], Status | None] | None = None
        """Asked for each call by its headers: a status refuses it before its message is received. None: none are."""
        self.accepts = True
        """While this is False, new connections wait to be accepted."""
        self.refusals = refusals or Refusals()
        self.parser = RequestParser(self._route, compresses=compresses)
        self.threads = Threads()
        self.deadlines = Deadlines(0.0)
        self.task_streams = 0
        """Calls of all connections whose responses stream from a task of their own."""
        self.connections_opened = 0
        """Clients that were accepted so far."""
        self.connections_refused = 0
        """Clients that were turned away so far."""
        self.connections_aged = 0
        """Clients that were asked to connect again since their connection had reached its age."""
        self.connections_cut = dict.fromkeys(CUT_BY, 0)
        """Clients that were closed for a limit of `Limits`, by which it was."""
        self._on_call_over = on_call_over
        self._on_written = on_written
        self._methods: dict[str, Method] = {}
        self.entrance = Entrance(self)
        self.streams = 0
        """Calls that are open on all connections, as of the last read or write of each."""
        self.transports: dict[Transport, None] = {}
        """Those that are connected, oldest first: a dict for a set that keeps its order."""
        self._flushes: list[Transport] = []
        self._flusher = trio.lowlevel.ParkingLot()
        self._turns = trio.Lock()
        self._sweep: trio.CancelScope | None = None
        self._accepting = trio.CancelScope()
        self.draining = False
        """Clients are being let go: a new one is told so at once."""
        self._idle = trio.Event()

    # -- serving ----------------------------------------------------------------------------------------------

    async def serve_async(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on the given host and port and serve until cancelled or drained; started with the port."""
        listener = listen_tcp(self.host, self.port)
        self.port = listener.getsockname()[1]

        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve_on, [listener])
            task_status.started(self.port)

    async def serve_on(
        self,
        listeners: Sequence[socket.socket],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the clients of these listening sockets until cancelled or drained. Closes the sockets.

        Started when the services are entered and clients are accepted. When cancelled, calls in flight end with
        `Refusals.stopping` as far as the sockets take it at once.
        """
        with ExitStack() as sockets:
            for listener in listeners:
                sockets.callback(listener.close)
            async with AsyncExitStack() as services, trio.open_nursery() as nursery:
                for name, service in self.services.items():
                    self._bind(name, await services.enter_async_context(service))
                nursery.start_soon(self._flush_loop)
                nursery.start_soon(self._expire_loop)
                nursery.start_soon(keep_looking, self)
                nursery.start_soon(shedding.keep_inbound_free, self)
                nursery.start_soon(shedding.keep_outbound_free, self)
                task_status.started()
                with self._accepting, closing(self.entrance) as entrance:
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(entrance.accept, listener, nursery)
                sockets.close()
                await self._idle.wait()
                nursery.cancel_scope.cancel()

    def _bind(self, name: str, service: purerpc.Service) -> None:
        for method_name, bound in service.methods.items():
            method = handlers.bind(name, method_name, bound.method_fn, bound.signature)
            self._methods[method.path] = method

    def _route(self, path: str) -> Method | None:
        return self._methods.get(path)

    def left(self, transport: Transport) -> None:
        """A connection is closed."""
        self.transports.pop(transport, None)
        if self.draining and not self.transports:
            self._idle.set()

    def encrypt_with(self, tls: ssl.SSLContext) -> None:
        """Use other TLS settings for connections from now on, such as with a renewed certificate.

        Those that are open go on as they are. Sessions are not resumed with other settings: every client shakes hands
        in full once. Not a checkpoint.
        """
        self.tls = tls

    async def drain(self) -> None:
        """Stop accepting, let every client know (GOAWAY), and wait until the last connection is closed.

        Calls in flight go on, for as long as the caller waits: bound it with a deadline. Then `serve_on` returns.
        """
        self.draining = True
        self._accepting.cancel()
        for transport in self.transports:
            transport.connection.drain()
        if not self.transports:
            self._idle.set()
        with trio.move_on_after(GOAWAY_WAIT_S):
            await self._idle.wait()
        for transport in self.transports:
            transport.connection.drain_now()
        await self._idle.wait()

    # -- what goes on -----------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self.transports)

    def calls_in_flight(self) -> Counter[str]:
        """Count the calls of each method that are under way now, all services together."""
        return Counter(
            call.method.name
            for transport in self.transports
            for call in transport.connection.streams.values()
            if isinstance(call, Call) and call.method is not None
        )

    # -- for the connections ----------------------------------------------------------------------------------

    def flush_soon(self, transport: Transport) -> None:
        """Write what a connection has to say in the next scheduler tick, after everything else it may get to say."""
        self._flushes.append(transport)
        if len(self._flushes) == 1:
            self._flusher.unpark()

    async def turn(self) -> None:
        """Wait for the turn of a connection that has more to say: in a scheduler tick it is one's of them, in order.

        So what a tick costs is bounded for everyone else, whatever the number of those. A checkpoint.
        """
        async with self._turns:
            await trio.lowlevel.checkpoint()

    async def _flush_loop(self) -> None:
        while True:
            if self._flushes:
                await trio.lowlevel.checkpoint()
            else:
                await self._flusher.park()  # until the tick after `flush_soon`: what is wanted by then goes too
            flushes, self._flushes = self._flushes, []
            for transport in flushes:
                transport.flush()
            self.written()

    def written(self) -> None:
        """Tell that what there was to say was given to the sockets."""
        if self._on_written is None:
            return
        try:
            self._on_written()
        except Exception:  # accounting's bug, which must not reach the connections
            log.exception("on_written_failed")

    def watch(self, call: Call, timeout_s: float) -> None:
        """End a call when its time is over; the earliest of several times counts."""
        deadline = trio.current_time() + min(timeout_s, LONGEST_S)
        if call.deadline is not None:
            if call.deadline <= deadline:
                return
            self.deadlines.discard(call)
        ends = self.deadlines.add(call, deadline)
        if self._sweep is not None and ends < self._sweep.deadline:
            self._sweep.deadline = ends

    async def _expire_loop(self) -> None:
        while True:
            with trio.CancelScope() as self._sweep:
                if self.deadlines:
                    self._sweep.deadline = self.deadlines.next_tick()
                await trio.sleep_forever()
            for call in self.deadlines.due(trio.current_time()):
                call.app.expire(call)

    def call_over(self, call: Call) -> None:
        """Account for a call."""
        if self._on_call_over is not None:
            self._on_call_over(call, time.perf_counter() - call.started)
