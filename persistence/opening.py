"""Open a store by its URL.

Owns:      which scheme is which store.
Not here:  how a store opens (persistence/memory.py, persistence/sqlite/).
Threads:   the trio thread only.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio

from persistence.errors import CannotOpen
from persistence.facade import Store
from persistence.memory import MemoryStore
from persistence.sqlite.store import open_sqlite


@asynccontextmanager
async def open_store(
    url: str,
    *,
    exclusive: bool = False,
    migrate: bool = True,
    commit_timeout_s: float = 10.0,
    clock: Callable[[], int] | None = None,
) -> AsyncGenerator[Store]:
    """Open the store at ``url`` for the length of the ``async with`` block. A checkpoint.

    Args:
        url: ``memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``.
        exclusive: refuse when another process has opened this store exclusively (SQLite: the broker's file lock).
        migrate: create or upgrade the schema; otherwise a missing or old one is `CannotOpen`.
        commit_timeout_s: how long one append may take before it is given up.
        clock: for tests only: the store's clock in microseconds, where the store has none of its own.

    Raises:
        CannotOpen: with what is wrong and what to do.
    """
    scheme = url.partition(":")[0]
    if url == "memory:":
        await trio.lowlevel.checkpoint()
        yield MemoryStore(clock or wall_clock_us)
    elif scheme == "sqlite":
        async with open_sqlite(
            url, exclusive=exclusive, migrate=migrate, commit_timeout_s=commit_timeout_s, clock=clock or wall_clock_us
        ) as store:
            yield store
    else:
        raise CannotOpen(
            f"no store is called {scheme!r}; write memory:, sqlite:///relative.db or sqlite:////absolute.db"
        )


def wall_clock_us() -> int:
    """Return this machine's time in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
