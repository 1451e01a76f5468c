"""The only ways into a thread for blocking drivers.

Owns:      whether a thread's work is finished or left behind when its caller is cancelled; the order of waiting.
Not here:  connections, and how many there are (each store).
Threads:   called from the trio thread; ``fn`` runs in another one.

Waiting for a connection happens in trio (cancellable, first come first served, visible), not in a thread: a pool has
one limiter with as many tokens as connections, and what is changed one at a time has a `Worker`.
"""

import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple, cast

import outcome
import trio

from persistence.facade import PoolUse

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

log = logging.getLogger(__name__)


class _Job:
    __slots__ = ("args", "fn", "task")

    def __init__(self, task: trio.lowlevel.Task, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.task: trio.lowlevel.Task | None = task
        """Who waits for it; None: nobody any more."""
        self.fn = fn
        self.args = args


class Worker:
    """A thread of its own, for what is done one at a time and runs to its end, such as writing.

    Measured against `trio.to_thread.run_sync` with a limiter of one, on SQLite: a quarter less CPU and time for a
    lone commit, a tenth less under load. A commit is short, and handing it over is much of it.
    """

    def __init__(self, name: str) -> None:
        """Start the thread, inside a trio run. `close` ends it."""
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._current: _Job | None = None
        self._line = trio.lowlevel.ParkingLot()
        self._refusal: Exception | None = None
        self._turns = 0
        self._waited_s = 0.0
        # a daemon: a driver that hangs must not keep the process
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, fn: Callable[[*Ts], R], *args: *Ts) -> R:
        """Call ``fn`` in the thread after what came before; return or raise what it does. A checkpoint.

        Cancelled while it waits for its turn, nothing happens. Once begun it is never abandoned: it would commit with
        nobody told. So a trio deadline does not bound it; the database's own timeout must.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._current is not None and self._refusal is None:
            began = time.perf_counter()
            await self._line.park()  # until whoever is done passes the turn on
            self._waited_s += time.perf_counter() - began
        if self._refusal is not None:
            raise self._refusal
        self._turns += 1
        self._current = _Job(trio.lowlevel.current_task(), fn, args)
        self._jobs.put(self._current)
        result: R = await trio.lowlevel.wait_task_rescheduled(_go_on)
        return result

    def use(self, name: str) -> PoolUse:
        """Say how busy it is, as a pool of one."""
        busy = self._current is not None
        return PoolUse(name, 1, int(busy), len(self._line), self._turns, self._waited_s)

    def give_up(self, begun: Exception, waiting: Exception) -> None:
        """Let go who waits, for good: with ``begun`` whose ``fn`` runs, with ``waiting`` everybody else.

        The thread is left with what it does: that may still happen.
        """
        self._refusal = waiting
        if self._current is not None and self._current.task is not None:
            task, self._current.task = self._current.task, None
            trio.lowlevel.reschedule(task, outcome.Error(begun))
        self._line.unpark_all()

    async def close(self, last: Callable[[], None]) -> None:
        """Call ``last`` in the thread after what it is doing, and let it end. A checkpoint.

        Cancelled, it leaves the thread behind, which still does so. Nothing may be run afterwards.
        """
        job = _Job(trio.lowlevel.current_task(), last, ())

        def leave_behind(_raise_cancel: object) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._jobs.put(job)
        self._jobs.put(None)
        await trio.lowlevel.wait_task_rescheduled(leave_behind)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result = outcome.capture(job.fn, *job.args)
            with suppress(trio.RunFinishedError):  # nobody is left to tell; what `close` has put is still to be done
                self._token.run_sync_soon(self._hand_back, job, result)
            del job, result  # while the thread waits, nothing of its last job stays in memory

    def _hand_back(self, job: _Job, result: outcome.Outcome[Any]) -> None:
        if self._line:
            self._line.unpark()  # it stays taken: nobody comes in between
        else:
            self._current = None
        if job.task is not None:
            trio.lowlevel.reschedule(job.task, result)


def _go_on(_raise_cancel: object) -> trio.lowlevel.Abort:
    """Let what was begun end, whoever is cancelled."""
    return trio.lowlevel.Abort.FAILED


async def to_the_end(fn: Callable[[*Ts], R], *args: *Ts) -> R:
    """Run ``fn``, which may change something, in a thread to its end, even if the caller is cancelled. A checkpoint."""
    return await trio.to_thread.run_sync(fn, *args)


@asynccontextmanager
async def closing_within(seconds: float, close: Callable[[], Awaitable[None]], place: object) -> AsyncGenerator[None]:
    """Close the store at ``place`` after the block, also when cancelled; leave behind what takes longer."""
    try:
        yield
    finally:
        with trio.move_on_after(seconds, shield=True) as closing:
            await close()
        if closing.cancelled_caught:
            log.warning("store_close_abandoned path=%s after_s=%.1f", place, seconds)


class Tokens:
    """A limiter for `read`, of as many tokens as there are connections, that tells how long was waited for them."""

    def __init__(self, count: int) -> None:
        self._limiter = trio.CapacityLimiter(count)
        self._turns = 0
        self._waited_s = 0.0

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Wait for a token. A checkpoint."""
        began = time.perf_counter()
        await self._limiter.acquire_on_behalf_of(borrower)
        self._turns += 1
        self._waited_s += time.perf_counter() - began

    def release_on_behalf_of(self, borrower: object) -> None:
        """Give a token back."""
        self._limiter.release_on_behalf_of(borrower)

    def use(self, name: str) -> PoolUse:
        """Say how busy the pool is."""
        now = self._limiter.statistics()
        size = int(now.total_tokens)
        return PoolUse(name, size, now.borrowed_tokens, now.tasks_waiting, self._turns, self._waited_s)


async def read(tokens: Tokens, fn: Callable[[*Ts], R], *args: *Ts) -> R:
    """Run ``fn``, which changes nothing, in a thread; leave it behind if the caller is cancelled. A checkpoint.

    A thread left behind keeps its token until it ends. ``fn`` itself takes a connection from the pool and puts it
    back, so that tokens and connections agree; what it returns or raises then is dropped.
    """
    # trio takes any object with these two methods, as its documentation says, but its annotation does not
    limiter = cast("trio.CapacityLimiter", tokens)
    return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True, limiter=limiter)
