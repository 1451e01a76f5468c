"""A broker process, from its first listener to its exit code.

Owns:      the order of starting and stopping, readiness, signals.
Not here:  settings and the set-up of logging (trio_broker/cli/), what is around the process (trio_broker/front.py),
           and each part itself.
Threads:   the trio thread; while stopping, one timer thread of last resort.

Starting: metrics endpoint (alive, not ready) -> store, once it can be reached -> broker -> gRPC listener -> ready.
Stopping: not ready -> ``drain_delay`` -> GOAWAY -> new publishes are refused -> commits in flight finish and reach
subscribers -> streams end with DRAINING -> connections close -> exit 0. What is still open after ``grace`` is cut.
"""

import gc
import math
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from metrics import Readiness, State
from persistence import Store, StoreUnavailable
from trio_broker._proto.pool import POOL
from trio_broker.broker import Broker, configured_store, run_broker
from trio_broker.call_log import CallLog
from trio_broker.config import MESSAGE_OVERHEAD_BYTES, Config
from trio_broker.front import Alone, Attended, Connections, Front, telling
from trio_broker.line_budget import LineBudget
from trio_broker.logs import Started
from trio_broker.memory import CALL_BYTES, CONNECTION_BYTES, Pressure, guard, use_few_heaps
from trio_broker.metering import Metering
from trio_broker.notation import parse_tcp
from trio_broker.replicas import Replicas, run_replicas
from trio_broker.rpc.call import Call
from trio_broker.rpc.health import Health
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.listeners import format_address, listen_tcp
from trio_broker.rpc.reflection import reflection_services
from trio_broker.rpc.server import Server
from trio_broker.rpc.status import OK
from trio_broker.rpc.tls import server_context
from trio_broker.service.admin import NAME as ADMIN
from trio_broker.service.admin import AdminService
from trio_broker.service.places import Places
from trio_broker.service.servicer import NAME, BrokerService, refuse
from trio_broker.service.statuses import BrokerRefusals
from trio_broker.tasktree import describe_process

if TYPE_CHECKING:
    from trio_broker.tracing import Tracing

YOUNG_OBJECTS = 20_000
"""Objects between two looks of the garbage collector at the young ones. Calls leave no cycles behind, so its looks
find little; at Python's default of 700 they took a fifth of the CPU (docs/BENCHMARKS.md)."""
HEALTH_INTERVAL_S = 0.25
"""How often the health service looks at readiness."""
WATCHES_MAX = 16
"""Health and reflection streams of one connection."""
OPEN_AGAIN_S = 1.0
"""Pause before a store that could not be reached is tried again."""
REMIND_S = 60.0
"""How often a process that waits for its store says so."""
LAST_RESORT_S = 2.0
"""A process that has not ended so long after the grace period is ended: a thread is stuck in the database."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

log = structlog.get_logger()


async def serve(  # noqa: ASYNC128 - `_Process.run` calls it
    config: Config,
    budget: LineBudget,
    front: Front | None = None,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Run a broker until SIGTERM or SIGINT; return the exit code. Started, with the gRPC address, when it is ready.

    A second signal ends the process at once, with exit code 1; SIGUSR1 lets it log what it is doing. ``budget`` is
    renewed every minute. ``front``: what is around it; None: nothing, the process is alone.

    Raises:
        OSError: an address is taken or cannot be resolved, or traces cannot be sent as asked; the text names it and the
            flag or variable.
        persistence.CannotOpen: the store cannot be opened as asked.
    """
    gc.freeze()  # what was imported stays: nobody needs to look at it again
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    use_few_heaps()
    stopping = _Stopping()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_await_signals, signals, stopping)
            async with _tracing(config) as tracing:
                process = _Process(config, budget, tracing, stopping, front or Alone(config))
                await process.run(task_status.started)
            nursery.cancel_scope.cancel()
        log.info("stopped")
        budget.renew()
    return 0


class _Stopping:
    """Whether the process is to stop."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.opening = trio.CancelScope()
        """Cancelled when it is to stop before the store could be opened."""
        self.signalled = False
        """By a signal, that is: another one ends the process at once."""

    def begin(self) -> None:
        self.begun.set()
        self.opening.cancel()


async def _await_signals(signals: AsyncIterator[int], stopping: _Stopping) -> None:
    """The first signal to stop begins it, the second ends the process at once."""
    async for number in signals:
        if number == signal.SIGUSR1:
            log.warning("process_described", stack=describe_process())
            continue
        log.info("signal", name=signal.Signals(number).name)
        if stopping.signalled:
            os._exit(1)
        stopping.signalled = True
        stopping.begin()


class _Process:
    def __init__(
        self, config: Config, budget: LineBudget, tracing: "Tracing | None", stopping: _Stopping, front: Front
    ) -> None:
        self._front = front
        self._stopping = stopping
        self._budget = budget
        self._tracing = tracing
        self._service: BrokerService
        self._call_log = CallLog(config.slow_call, budget)
        self._slow_call_s = config.slow_call
        self._guard = guard(config, self._on_pressure, self._relieve, self._held_bytes)
        self._shares = self._guard.shares(config)
        self._config = config = self._shares.fit(config)
        self._places = Places(self._guard.subscribers_max(config))
        self._server: Server | None = None
        self._began = time.perf_counter()
        self._broker: Broker | None = None
        self._starting = "starting"
        """What /readyz says until there is a broker."""
        self._store: Store | None = None
        self._replicas: Replicas | None = None
        self._draining = False
        self._closing = False
        """The drain delay is over: nobody is accepted any more."""
        self._services = (NAME,) if config.no_admin else (NAME, ADMIN)
        self._health = Health(*self._services)
        self._metering = Metering(config, self._state)

    def readiness(self) -> Readiness:
        if self._draining:
            return Readiness(ready=False, detail="draining")
        if self._broker is None or self._store is None:
            return Readiness(ready=False, detail=self._starting)
        wakeups = {True: "heard", False: "not heard: polling instead", None: "none"}[self._broker.hearing.connected]
        durability = self._store.durability()
        not_durable = "" if durability.durable else f", {durability.meaning}"
        facts: tuple[str, ...] = (
            f"store: {durability.kind} ({durability.setting}){not_durable}",
            f"wake-ups: {wakeups}",
        )
        if self._replicas is not None:
            facts += (f"replicas: {self._replicas.heard} of {self._replicas.known} others are heard",)
        away_s = self._broker.store_away_s()
        if away_s > self._config.store_grace:
            return Readiness(ready=False, detail=f"the store has been away for {away_s:.0f} s", facts=facts)
        if short_s := self._guard.short_s():
            return Readiness(ready=False, detail=f"memory is short since {short_s:.0f} s", facts=facts)
        return Readiness(ready=True, detail="ready", facts=facts)

    def _state(self) -> State:
        """Say what /metrics tells of the process itself; what the broker and the server know is not in it."""
        return State(
            ready=self.readiness().ready,
            draining=self._draining,
            memory_used_bytes=self._guard.used_bytes,
            memory_limit_bytes=self._guard.limit_bytes,
            memory_pressure=bool(self._guard.pressure),
        )

    def _connections(self) -> Connections:
        if (server := self._server) is None:
            return Connections()
        taking = server.accepts and not self._closing
        return Connections(opened=server.connections_opened, open=server.connections, taking=taking)

    async def run(self, started: Callable[[str], None]) -> None:
        with ExitStack() as until_the_end:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._budget.keep_renewing)
                attended = Attended(self._metering.registry(), self.readiness, self._connections, self._stopping.begin)
                with telling("--metrics-listen"):
                    metrics_at = await nursery.start(self._front.attend, attended)
                nursery.start_soon(self._metering.process.keep_measuring)
                async with AsyncExitStack() as opened:
                    store = None
                    with self._stopping.opening:
                        store = await self._open_store(opened)
                    if store is not None:
                        nursery.start_soon(self._give_up_in_time, store)
                        announce = partial(self._announce, store, format_address(metrics_at), started)
                        await self._serve(store, announce, until_the_end)
                nursery.cancel_scope.cancel()

    async def _open_store(self, opened: AsyncExitStack) -> Store:
        """Open the store; try again while it cannot be reached."""
        config = self._config
        began, remind_at = trio.current_time(), -math.inf
        while True:
            try:
                store = await opened.enter_async_context(configured_store(config.store, config))
            except StoreUnavailable as error:
                now = trio.current_time()
                if (starting := f"starting: {error}") != self._starting or now >= remind_at:
                    log.warning("store_away", why=str(error), away_s=round(now - began, 3), retry_s=OPEN_AGAIN_S)
                    self._starting, remind_at = starting, now + REMIND_S
            else:
                self._starting = "starting"
                return store
            await trio.sleep(OPEN_AGAIN_S)

    async def _give_up_in_time(self, store: Store) -> None:
        """Wait for the database no longer than the grace period, also while the store is being closed."""
        await self._stopping.begun.wait()
        await trio.sleep(self._config.drain_delay + self._config.grace)
        store.give_up()

    async def _serve(self, store: Store, announce: Callable[[socket.socket], None], until_the_end: ExitStack) -> None:
        """Serve until a signal comes; then stop."""
        config = self._config
        self._store = store
        tracing = self._tracing
        operating, flushing = (nullcontext, nullcontext) if tracing is None else (tracing.operation, tracing.flush)
        measured = self._metering.measured(store, operating)
        backlog_max_bytes = self._shares.backlog
        async with (
            run_broker(measured, config, backlog_max_bytes=backlog_max_bytes, flushing=flushing) as broker,
            self._among_others(measured, broker),
        ):
            with self._front.listening() as listener:
                self._server = server = self._make_server(broker)
                self._metering.watch(broker, server, self._places)
                async with trio.open_nursery() as serving:
                    await serving.start(server.serve_on, [listener])
                    self._broker = broker
                    serving.start_soon(self._report_health)
                    serving.start_soon(self._guard.run)
                    announce(listener)
                    await self._stopping.begun.wait()
                    last_resort_s = config.drain_delay + config.grace + LAST_RESORT_S
                    until_the_end.enter_context(_last_resort(last_resort_s))
                    await self._stop(server, broker)
                    serving.cancel_scope.cancel()

    @asynccontextmanager
    async def _among_others(self, store: Store, broker: Broker) -> AsyncGenerator[None]:
        """Let the broker and the others on its log hear of each other, where there can be others."""
        config = self._config
        if not store.limits().shared:
            yield
            return
        with telling("--peer-listen"):
            listener = listen_tcp(*parse_tcp(config.peer_listen))
        async with run_replicas(
            store, broker, listener, advertise=config.advertise, peers=config.peers
        ) as self._replicas:
            self._metering.watch_replicas(self._replicas)
            yield

    def _on_pressure(self, pressure: Pressure) -> None:
        """Take in no more than memory allows: from the headers of a call on, before its message is received."""
        if self._server is not None:
            self._server.refuse = partial(refuse, pressure) if pressure else None
            self._service.hold(pressure)
            self._server.accepts = pressure < Pressure.FULL

    def _relieve(self) -> None:
        """Let half of the cache go, and of what waits for subscribers: of those who are farthest behind."""
        if self._broker is not None:
            self._broker.cache.shrink(self._broker.cache.bytes // 2)
            self._broker.fanout.cut_farthest_behind(self._broker.fanout.backlog.bytes // 2)

    def _held_bytes(self) -> int:
        """Return about how much is known to be in use; of a store in memory, which is not counted, all that is used."""
        server, broker, store = self._server, self._broker, self._store
        if server is None or broker is None or store is None:
            return 0
        if store.durability().kind == "memory":
            return self._guard.used_bytes
        waiting = sum(budget.held_bytes for budget in server.budgets)
        clients = server.connections * CONNECTION_BYTES + sum(server.calls_in_flight().values()) * CALL_BYTES
        kept = broker.fanout.backlog.bytes + broker.cache.bytes
        return waiting + broker.committer.queued_bytes + kept + clients

    def _make_server(self, broker: Broker) -> Server:
        config, shares = self._config, self._shares
        message_max_bytes = config.body_max_bytes + MESSAGE_OVERHEAD_BYTES
        usual = Limits()
        server = Server(
            tls=self._tls(),
            limits=Limits(
                connections_max=self._guard.connections_max(config),
                connections_per_address=config.connections_per_address or math.inf,
                idle_s=config.connection_max_idle or math.inf,
                keepalive_s=config.keepalive_time or math.inf,
                keepalive_timeout_s=config.keepalive_timeout,
                connection_age_s=config.connection_max_age or math.inf,
                connection_age_grace_s=config.connection_max_age_grace,
                streams_max=config.streams_per_connection,
                streams_total=self._guard.streams_max(config),
                streams_per_address=config.streams_per_address or math.inf,
                control_burst=max(usual.control_burst, 2 * config.streams_per_connection),
                task_streams_max=WATCHES_MAX,
                message_max_bytes=message_max_bytes,
                inbound_max_bytes=min(usual.inbound_max_bytes, shares.inbound // 2),
                inbound_total_bytes=shares.inbound,
                outbound_max_bytes=min(usual.outbound_max_bytes, shares.replies // 2),
                outbound_total_bytes=shares.replies,
            ),
            refusals=BrokerRefusals(),
            on_call_over=self._call_over,
            on_written=broker.fanout.deliveries.settle,
        )
        self._service = BrokerService(broker, shares.fetches // message_max_bytes, self._tracing, self._places)
        server.add_service(self._service.service)
        server.add_service(self._health.service)
        if ADMIN in self._services:
            server.add_service(AdminService(broker.administration).service)
        for service in reflection_services(POOL, [*self._services, "grpc.health.v1.Health"]):
            server.add_service(service)
        return server

    def _tls(self) -> ssl.SSLContext | None:
        config = self._config
        if not config.tls_cert:
            return None
        client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        return server_context(Path(config.tls_cert), Path(config.tls_key), client_ca)

    def _call_over(self, call: Call, seconds: float) -> None:
        self._metering.call_over(call, seconds)
        if call.status is not OK or seconds >= self._slow_call_s:
            self._call_log.over(call, seconds)
        if self._tracing is not None:
            self._tracing.over(call, seconds)

    def _announce(
        self, store: Store, metrics_address: str, started: Callable[[str], None], listener: socket.socket
    ) -> None:
        """Say what has started."""
        address = format_address(listener.getsockname())
        told = Started(
            config=self._config,
            durability=store.durability(),
            shared=store.limits().shared,
            grpc=address,
            metrics=metrics_address,
            memory_max_bytes=self._guard.limit_bytes,
            connections_max=self._guard.connections_max(self._config),
            subscribers_max=self._places.most,
            ready_after_s=time.perf_counter() - self._began,
        )
        self._front.announce(told)
        started(address)

    async def _report_health(self) -> None:
        """Let the health service say what /readyz says."""
        while True:
            ready = self.readiness().ready
            for name in ("", *self._services):
                self._health.set(name, serving=ready)
            await trio.sleep(HEALTH_INTERVAL_S)

    async def _stop(self, server: Server, broker: Broker) -> None:
        """Drain, for as long as the grace period allows."""
        config = self._config
        self._draining = True
        log.info("stopping", drain_delay_s=config.drain_delay, grace_s=config.grace)
        await trio.sleep(config.drain_delay)
        self._closing = True
        with trio.move_on_after(config.grace) as grace:
            async with trio.open_nursery() as draining:
                draining.start_soon(server.drain)
                await broker.drain()
                self._health.stop()
        if grace.cancelled_caught:
            log.warning("grace_over", grace_s=config.grace)


def _tracing(config: Config) -> "AbstractAsyncContextManager[Tracing | None]":
    if not config.traces:
        return nullcontext()
    from trio_broker.tracing import open_tracing  # it needs an extra

    return open_tracing(config.store)


@contextmanager
def _last_resort(seconds: float) -> Iterator[None]:
    """End the process if the block does not end in time. A thread stuck in a driver cannot be cancelled."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
