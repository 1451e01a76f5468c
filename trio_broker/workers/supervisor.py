"""The process in front of the workers: it starts them, keeps their number, tells of them, and stops them.

Owns:      how many workers there are, when one is started again, signals, the pages, the exit code.
Not here:  one worker (member.py), who gets which connection (doorman.py), a broker (trio_broker/serve.py).
Threads:   the trio thread.

Starting: pages (alive, not ready) -> workers -> gRPC listener, with the first that is ready -> `ready`, with the last.
Stopping: every worker drains as a broker by itself does; when none takes connections any more, the listener is closed;
when all have ended the process does, with exit code 0 if all had that.
"""

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import structlog
import trio

from metrics import Readiness, WorkersMetrics, build_plain_registry, merge, serve_http
from metrics.limits import memory_limit_bytes, memory_used_bytes, resident_bytes
from trio_broker.config import Config
from trio_broker.front import listening, telling
from trio_broker.line_budget import LineBudget
from trio_broker.logs import Started
from trio_broker.notation import parse_tcp
from trio_broker.rpc.listeners import format_address
from trio_broker.tasktree import describe_process
from trio_broker.workers.doorman import Doorman
from trio_broker.workers.member import Member, WorkerFailed
from trio_broker.workers.pauses import Pauses

LAST_RESORT_S: Final = 4.0
"""A worker that has not ended so long after the grace period is killed. It ends itself before, if it can."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

log = structlog.get_logger()


async def supervise(config: Config, budget: LineBudget) -> int:
    """Run ``config.workers`` workers until SIGTERM or SIGINT; return the exit code.

    A second signal kills them and ends the process at once, with exit code 1; with SIGUSR1 all log what they are doing,
    and with SIGHUP they read their certificates again, if there are any.

    Raises:
        OSError: an address is taken or cannot be resolved; the text names it and the flag.
        WorkerFailed: the workers cannot start as asked.
    """
    handled = (*SIGNALS, signal.SIGHUP) if config.tls_cert else SIGNALS
    with trio.open_signal_receiver(*handled) as signals:
        code = await _Supervisor(config, budget).run(signals)
    log.info("stopped")
    budget.renew()
    return code


def worker_memory_bytes(config: Config) -> int:
    """Return what each worker may use: an even share of what is left now of ``--memory-max`` or the container's limit.

    What this process uses is not theirs; nor what others use of the same container.
    """
    if config.memory_max:
        room_bytes = config.memory_max - resident_bytes()
    else:
        room_bytes = memory_limit_bytes() - memory_used_bytes()
    return max(1, room_bytes // config.workers)


class _Supervisor:
    def __init__(self, config: Config, budget: LineBudget) -> None:
        self._config = config
        self._budget = budget
        self._began = time.perf_counter()
        self._settings: dict[str, Any] = config.model_dump(mode="json") | {
            "workers": 1,
            "memory_max": worker_memory_bytes(config),
        }
        self._members: dict[int, Member] = {}
        """Those that run, by their number."""
        self._doorman = Doorman(self._members)
        self._metrics = WorkersMetrics(config.workers, self._count_ready)
        self._one_ready = trio.Event()
        self._all_ready = trio.Event()
        self._listens = trio.Event()
        self._grpc = ""
        self._announced = False
        self._signalled = False
        self._stopping = trio.Event()
        self._exit_code = 0
        self._failure: WorkerFailed | OSError | None = None

    async def run(self, signals: AsyncIterator[int]) -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._await_signals, signals)
            nursery.start_soon(self._budget.keep_renewing)
            with telling("--metrics-listen"):
                address, registry = parse_tcp(self._config.metrics_listen), build_plain_registry(self._metrics)
                metrics_at = await nursery.start(serve_http, *address, registry, self.readiness, self._gather)
            nursery.start_soon(self._serve)
            nursery.start_soon(self._announce, format_address(metrics_at))
            nursery.start_soon(self._kill_in_time)
            async with trio.open_nursery() as workers:
                for number in range(self._config.workers):
                    workers.start_soon(self._keep, number)
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        return self._exit_code

    # -- the workers ------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Keep one worker running, until all are to stop."""
        pauses = Pauses()
        while not self._stopping.is_set():
            began = trio.current_time()
            code: int | None = None
            failure: WorkerFailed | OSError | None
            try:
                code, failure = await self._run_one(number)
            except OSError as error:  # no memory, or no process, for one more
                failure = error
            if self._stopping.is_set():
                self._exit_code = self._exit_code or (1 if code else 0)
                return
            if failure is not None and not self._announced:
                self._fail(failure)  # so will the others: as asked it cannot be done
                return
            pause_s = pauses.after(trio.current_time() - began)
            why = {} if failure is None else {"why": str(failure)}
            log.warning("worker_ended", worker=number, exit_code=code, again_in_s=pause_s, **why)
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
            if not self._stopping.is_set():
                self._metrics.restarts[str(number)] += 1

    async def _run_one(self, number: int) -> tuple[int, WorkerFailed | None]:
        """Run one worker process to its end; return its exit code, and why it has given up, if it said so."""
        member = await Member.start(number, self._settings)
        self._members[number] = member
        if self._stopping.is_set():
            member.stop()
        try:
            return await member.run(self._hear), member.failure
        finally:
            del self._members[number]
            self._doorman.hear()

    def _hear(self) -> None:
        """A worker has told something."""
        self._doorman.hear()
        ready = sum(member.told is not None for member in self._members.values())
        if ready:
            self._one_ready.set()
        if ready == self._config.workers:
            self._all_ready.set()

    def _count_ready(self) -> int:
        return sum(member.readiness().ready for member in self._members.values())

    # -- the world --------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Listen from when the first worker is ready, until none takes connections any more."""
        await self._one_ready.wait()
        try:
            with listening(self._config.listen) as listener:
                self._grpc = format_address(listener.getsockname())
                self._listens.set()
                await self._accept(listener)
        except OSError as error:
            self._fail(error)

    async def _accept(self, listener: socket.socket) -> None:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(self._doorman.accept, listener)
            await self._stopping.wait()
            await self._doorman.wait_closed()
            accepting.cancel_scope.cancel()

    async def _announce(self, metrics: str) -> None:
        """Say once that all are ready."""
        await self._all_ready.wait()
        await self._listens.wait()
        self._announced = True
        told = [member.told for member in self._members.values() if member.told]
        if not told:
            return
        Started(
            config=self._config,
            durability=told[0].durability,
            shared=told[0].shared,
            grpc=self._grpc,
            metrics=metrics,
            memory_max_bytes=sum(each.memory_max_bytes for each in told),
            connections_max=sum(each.connections_max for each in told),
            subscribers_max=sum(each.subscribers_max for each in told),
            ready_after_s=time.perf_counter() - self._began,
        ).announce()

    def readiness(self) -> Readiness:
        """Say how the workers are. With one that is ready calls are served: no other is given connections."""
        each = {n: self._members[n].readiness() if n in self._members else None for n in range(self._config.workers)}
        ready = [readiness for readiness in each.values() if readiness and readiness.ready]
        lines = [f"worker {n}: {readiness.detail if readiness else 'starting again'}" for n, readiness in each.items()]
        facts = (*lines, *(ready[0].facts if ready else ()))
        if self._stopping.is_set():
            return Readiness(ready=False, detail="draining", facts=facts)
        if not self._listens.is_set() and ready:
            return Readiness(ready=False, detail="starting", facts=facts)
        if not ready:
            return Readiness(ready=False, detail="no worker is ready", facts=facts)
        all_of_them = len(ready) == len(each)
        detail = "ready" if all_of_them else f"ready, with {len(ready)} of {len(each)} workers"
        return Readiness(ready=True, detail=detail, facts=facts)

    async def _gather(self) -> None:
        """Ask all workers for their metrics. Who does not answer in time has none."""
        packs: dict[int, bytes] = {}

        async def ask(number: int, member: Member) -> None:
            if packed := await member.gather():
                packs[number] = packed

        async with trio.open_nursery() as asking:
            for number, member in self._members.items():
                asking.start_soon(ask, number, member)
        self._metrics.told = merge({str(number): packs[number] for number in sorted(packs)})

    # -- the end ----------------------------------------------------------------------------------------------

    async def _await_signals(self, signals: AsyncIterator[int]) -> None:
        """The first signal to stop begins it, the second ends everything at once."""
        async for number in signals:
            if number == signal.SIGUSR1:
                log.warning("process_described", stack=describe_process())
                for member in self._members.values():
                    member.describe()
                continue
            if number == signal.SIGHUP:
                for member in self._members.values():
                    member.reload()
                continue
            log.info("signal", name=signal.Signals(number).name)
            if self._signalled:
                self._kill()
                os._exit(1)
            self._signalled = True
            self._stop()

    def _fail(self, failure: WorkerFailed | OSError) -> None:
        self._failure = self._failure or failure
        self._stop()

    def _stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            for member in self._members.values():
                member.stop()

    async def _kill_in_time(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self._config.drain_delay + self._config.grace + LAST_RESORT_S)
        log.warning("workers_stuck", workers=sorted(self._members))
        self._kill()

    def _kill(self) -> None:
        for member in self._members.values():
            member.kill()
