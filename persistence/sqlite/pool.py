"""The connections that read, shared by the tasks that want to.

Owns:      lending a connection to a worker thread, and getting it back.
Not here:  what is read (reading.py).
Threads:   the trio thread, except where a docstring says otherwise.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar, TypeVarTuple

from persistence import threads
from persistence.facade import PoolUse
from persistence.sqlite.connection import failure

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


class ReaderPool:
    """A few connections, and as many tokens."""

    def __init__(self, connections: Sequence[sqlite3.Connection], path: Path) -> None:
        self._path = path
        self._connections = tuple(connections)
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for connection in connections:
            self._idle.put(connection)
        self._limiter = threads.Tokens(len(connections))

    async def run(self, fn: Callable[[sqlite3.Connection, *Ts], R], *args: *Ts) -> R:
        """Run ``fn`` with a connection in a worker thread. A checkpoint; when cancelled it leaves the thread behind."""
        return await threads.read(self._limiter, self._lend, fn, *args)

    def use(self) -> PoolUse:
        """Say how busy it is."""
        return self._limiter.use("read")

    def collect(self) -> None:
        """Stop what still runs for callers that are gone, and wait for all connections: nothing can be read after.

        For a worker thread: it blocks.
        """
        for connection in self._connections:
            connection.interrupt()
        for _ in self._connections:
            self._idle.get()

    def _lend(self, fn: Callable[[sqlite3.Connection, *Ts], R], *args: *Ts) -> R:
        """Call ``fn`` with an idle connection, in a worker thread."""
        connection = self._idle.get_nowait()  # there is one: the caller holds a token
        try:
            return fn(connection, *args)
        except sqlite3.Error as error:
            raise failure(error, self._path) from error
        finally:
            self._idle.put(connection)
