"""A broker process, from its first listener to its exit code.

Owns:      the order of starting and stopping, readiness, signals.
Not here:  settings and the set-up of logging (trio_broker/cli/), and each part itself.
Threads:   the trio thread; while stopping, one timer thread of last resort.

Starting: metrics endpoint (alive, not ready) -> store, once it can be reached -> broker -> gRPC listener -> ready.
Stopping: not ready -> ``drain_delay`` -> GOAWAY -> new publishes are refused -> commits in flight finish and reach
subscribers -> streams end with DRAINING -> connections close -> exit 0. What is still open after ``grace`` is cut.
"""

import gc
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from metrics import UNKNOWN_METHOD, CallMetrics, Readiness, StoreMetrics, build_registry, serve_http
from persistence import Store, StoreUnavailable
from trio_broker._proto.pool import POOL
from trio_broker.broker import Broker, configured_store, run_broker
from trio_broker.config import MESSAGE_OVERHEAD_BYTES, Config
from trio_broker.logs import Started
from trio_broker.notation import TcpAddress, UnixAddress, parse_listen
from trio_broker.rpc.call import Call
from trio_broker.rpc.health import Health
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.listeners import format_address, listen_tcp, listen_unix
from trio_broker.rpc.reflection import reflection_services
from trio_broker.rpc.server import Server
from trio_broker.rpc.status import CODE_NAMES
from trio_broker.rpc.tls import server_context
from trio_broker.service.servicer import NAME, BrokerService
from trio_broker.service.statuses import BrokerRefusals

METHODS = ("Publish", "Subscribe", "Fetch", "Check", "List", "Watch", "ServerReflectionInfo")
"""The calls that have a label of their own in the metrics."""
YOUNG_OBJECTS = 20_000
"""Objects between two looks of the garbage collector at the young ones. Calls leave no cycles behind, so its looks
find little; at Python's default of 700 they took a fifth of the CPU (docs/BENCHMARKS.md)."""
HEALTH_INTERVAL_S = 0.25
"""How often the health service looks at readiness."""
OPEN_AGAIN_S = 1.0
"""Pause before a store that could not be reached is tried again."""
LAST_RESORT_S = 2.0
"""A process that has not ended so long after the grace period is ended: a thread is stuck in the database."""

log = structlog.get_logger()


async def serve(  # noqa: ASYNC128 - `_Process.run` calls it
    config: Config, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> int:
    """Run a broker until SIGTERM or SIGINT; return the exit code. Started, with the gRPC address, when it is ready.

    A second signal ends the process at once, with exit code 1.

    Raises:
        OSError: an address is taken or cannot be resolved; the text names it and its flag.
        persistence.CannotOpen: the store cannot be opened as asked.
    """
    gc.freeze()  # what was imported stays: nobody needs to look at it again
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    await _Process(config).run(task_status.started)
    return 0


class _Process:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._began = time.perf_counter()
        self._broker: Broker | None = None
        self._starting = "starting"
        """What /readyz says until there is a broker."""
        self._store: Store | None = None
        self._opening = trio.CancelScope()
        self._draining = False
        self._health = Health(NAME)
        self._metrics = CallMetrics(METHODS, lambda: self._broker.subscribers if self._broker else 0)

    def readiness(self) -> Readiness:
        if self._draining:
            return Readiness(ready=False, detail="draining")
        if self._broker is None or self._store is None:
            return Readiness(ready=False, detail=self._starting)
        wakeups = "heard" if self._broker.hearing.connected else "not heard: polling instead"
        durability = self._store.durability()
        not_durable = "" if durability.durable else ", NOT DURABLE"
        facts = (f"store: {durability.kind} ({durability.setting}){not_durable}", f"wake-ups: {wakeups}")
        away_s = self._broker.store_away_s()
        if away_s > self._config.store_grace:
            return Readiness(ready=False, detail=f"the store has been away for {away_s:.0f} s", facts=facts)
        return Readiness(ready=True, detail="ready", facts=facts)

    async def run(self, started: Callable[[str], None]) -> None:
        config = self._config
        signalled = trio.Event()
        with ExitStack() as until_the_end, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_signals, signals, signalled)
                metrics_listen = parse_listen(config.metrics_listen)
                assert isinstance(metrics_listen, TcpAddress), "the settings see to that"
                with _telling("--metrics-listen"):
                    registry = build_registry(
                        self._metrics, StoreMetrics(lambda: self._broker is None or self._broker.hearing.connected)
                    )
                    metrics_at = await nursery.start(serve_http, *metrics_listen, registry, self.readiness)
                async with AsyncExitStack() as opened:
                    store = None
                    with self._opening:
                        store = await self._open_store(opened)
                    if store is not None:
                        nursery.start_soon(self._give_up_in_time, store, signalled)
                        announce = partial(self._announce, store, format_address(metrics_at), started)
                        await self._serve(store, announce, signalled, until_the_end)
                nursery.cancel_scope.cancel()
        log.info("stopped")

    async def _await_signals(self, signals: AsyncIterator[int], signalled: trio.Event) -> None:
        """The first signal begins to stop, the second ends the process at once."""
        async for number in signals:
            log.info("signal", name=signal.Signals(number).name)
            if signalled.is_set():
                os._exit(1)
            signalled.set()
            self._opening.cancel()

    async def _open_store(self, opened: AsyncExitStack) -> Store:
        """Open the store; try again while it cannot be reached."""
        config = self._config
        while True:
            try:
                store = await opened.enter_async_context(configured_store(config.store, config))
            except StoreUnavailable as error:
                if (starting := f"starting: {error}") != self._starting:
                    log.warning("store_away", why=str(error), retry_s=OPEN_AGAIN_S)
                    self._starting = starting
            else:
                self._starting = "starting"
                return store
            await trio.sleep(OPEN_AGAIN_S)

    async def _give_up_in_time(self, store: Store, signalled: trio.Event) -> None:
        """Wait for the database no longer than the grace period, also while the store is being closed."""
        await signalled.wait()
        await trio.sleep(self._config.drain_delay + self._config.grace)
        store.give_up()

    async def _serve(
        self, store: Store, announce: Callable[[socket.socket], None], signalled: trio.Event, until_the_end: ExitStack
    ) -> None:
        """Serve until a signal comes; then stop."""
        config = self._config
        self._store = store
        async with run_broker(store, config) as broker:
            with _listen(config.listen) as listener:
                server = self._server(broker)
                async with trio.open_nursery() as serving:
                    await serving.start(server.serve_on, [listener])
                    self._broker = broker
                    serving.start_soon(self._report_health)
                    announce(listener)
                    await signalled.wait()
                    last_resort_s = config.drain_delay + config.grace + LAST_RESORT_S
                    until_the_end.enter_context(_last_resort(last_resort_s))
                    await self._stop(server, broker)
                    serving.cancel_scope.cancel()

    def _server(self, broker: Broker) -> Server:
        config = self._config
        server = Server(
            tls=self._tls(),
            limits=Limits(
                streams_max=config.streams_per_connection,
                message_max_bytes=config.body_max_bytes + MESSAGE_OVERHEAD_BYTES,
            ),
            refusals=BrokerRefusals(),
            on_call_over=self._call_over,
        )
        server.add_service(BrokerService(broker).service)
        server.add_service(self._health.service)
        for service in reflection_services(POOL, [NAME, "grpc.health.v1.Health"]):
            server.add_service(service)
        return server

    def _tls(self) -> ssl.SSLContext | None:
        config = self._config
        if not config.tls_cert:
            return None
        client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
        return server_context(Path(config.tls_cert), Path(config.tls_key), client_ca)

    def _call_over(self, call: Call, seconds: float) -> None:
        method = UNKNOWN_METHOD if call.method is None else call.method.name
        self._metrics.ended(method, "CANCELLED" if call.status is None else CODE_NAMES[call.status.int_value], seconds)

    def _announce(
        self, store: Store, metrics_address: str, started: Callable[[str], None], listener: socket.socket
    ) -> None:
        """Say what has started."""
        address = format_address(listener.getsockname())
        ready_after_s = time.perf_counter() - self._began
        shared = store.limits().shared
        Started(self._config, store.durability(), shared, address, metrics_address, ready_after_s).announce()
        started(address)

    async def _report_health(self) -> None:
        """Let the health service say what /readyz says."""
        while True:
            ready = self.readiness().ready
            self._health.set("", serving=ready)
            self._health.set(NAME, serving=ready)
            await trio.sleep(HEALTH_INTERVAL_S)

    async def _stop(self, server: Server, broker: Broker) -> None:
        """Drain, for as long as the grace period allows."""
        config = self._config
        self._draining = True
        log.info("stopping", drain_delay_s=config.drain_delay, grace_s=config.grace)
        await trio.sleep(config.drain_delay)
        with trio.move_on_after(config.grace) as grace:
            async with trio.open_nursery() as draining:
                draining.start_soon(server.drain)
                await broker.drain()
                self._health.stop()
        if grace.cancelled_caught:
            log.warning("grace_over", grace_s=config.grace)


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


@contextmanager
def _listen(address: str) -> Iterator[socket.socket]:
    """Listen where the settings say; remove a unix socket's file afterwards."""
    where = parse_listen(address)
    with _telling("--listen"):
        listener = listen_tcp(*where) if isinstance(where, TcpAddress) else listen_unix(where.path)
    with listener:
        try:
            yield listener
        finally:
            if isinstance(where, UnixAddress):
                Path(where.path).unlink(missing_ok=True)


@contextmanager
def _telling(flag: str) -> Iterator[None]:
    """Add to an address that cannot be listened on the flag that says it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error} ({flag})") from error
