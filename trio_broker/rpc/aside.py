"""What is done for the calls of one connection in another thread.

Owns:      `Aside`: the queue of a connection's jobs, and the task that runs them.
Not here:  what the jobs are (inflow.py, outflow.py), the connection (transport.py).
Threads:   the trio thread; a job's work in a thread. zlib lets the trio thread run meanwhile.

One job after the other, and connections in turns: who asks for much waits for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from trio_broker.rpc.application import Job

THREADS = 2
"""Of a server: so many messages are inflated at once, each counted as if it were the largest."""


class Threads:
    """What all connections of a server share: a job has its place before it begins, so it never waits for a thread."""

    def __init__(self) -> None:
        self.places = trio.Semaphore(THREADS)
        self.limiter = trio.CapacityLimiter(THREADS)


class Aside:
    """The jobs of one connection.

    Args:
        threads: shared by all connections.
        take_in: called with what is to be done in the trio thread: it writes what is answered then.
    """

    def __init__(self, threads: Threads, take_in: Callable[[Callable[[Any], None], Any], None]) -> None:
        self._threads = threads
        self._take_in = take_in
        self._jobs: deque[Job] = deque()
        self._runs = False

    def add(self, job: Job, nursery: trio.Nursery) -> None:
        """Let a job have its turn, in ``nursery``."""
        self._jobs.append(job)
        if not self._runs:
            self._runs = True
            nursery.start_soon(self._run)

    async def _run(self) -> None:
        """Run the jobs until there is none. A checkpoint."""
        while self._jobs:
            async with self._threads.places:
                await self._run_one(self._jobs.popleft())
        self._runs = False

    async def _run_one(self, job: Job) -> None:
        begun: list[Callable[[], Any] | None] = []

        def begin(job: Job) -> None:
            begun.append(job.begin())

        self._take_in(begin, job)
        if begun and (work := begun[0]) is not None:
            self._take_in(job.done, await trio.to_thread.run_sync(work, limiter=self._threads.limiter))
