"""The connections that read, shared by the tasks that want to.

Owns:      lending a connection to a worker thread, and getting it back.
Not here:  what is read (reading.py).
Threads:   the trio thread, except `ReaderPool._lend`.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from persistence import threads
from persistence.sqlite.connection import failure

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


class ReaderPool:
    """A few connections, and as many tokens."""

    def __init__(self, connections: Sequence[sqlite3.Connection], path: Path) -> None:
        self._path = path
        self._connections = tuple(connections)
        self._idle = list(connections)
        self._limiter = trio.CapacityLimiter(len(connections))

    async def run(self, fn: Callable[[sqlite3.Connection, *Ts], R], *args: *Ts) -> R:
        """Run ``fn`` with a connection in a worker thread. A checkpoint; when cancelled it leaves the thread behind."""
        return await threads.read(self._limiter, self._lend, fn, *args)

    async def drain(self) -> None:
        """Stop what still runs for callers that are gone, and wait for the connections to come back. A checkpoint."""
        await trio.lowlevel.checkpoint()
        for connection in self._connections:
            connection.interrupt()
        for connection in self._connections:
            await self._limiter.acquire_on_behalf_of(connection)

    def _lend(self, fn: Callable[[sqlite3.Connection, *Ts], R], *args: *Ts) -> R:
        connection = self._idle.pop()  # there is one: the caller holds a token
        try:
            return fn(connection, *args)
        except sqlite3.Error as error:
            raise failure(error, self._path) from error
        finally:
            self._idle.append(connection)
