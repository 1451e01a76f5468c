"""Open a store by its URL.

Owns:      which scheme is which store.
Not here:  how a store opens (memory.py, sqlite/, postgres/, cassandra/).
Threads:   the trio thread only.
"""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from persistence.errors import CannotOpen
from persistence.facade import Store
from persistence.memory import MemoryStore
from persistence.sqlite.store import open_sqlite

POSTGRES_SCHEMES = ("postgresql", "postgres")


@asynccontextmanager
async def open_store(
    url: str,
    *,
    listen_url: str = "",
    exclusive: bool = False,
    migrate: bool = True,
    commit_timeout_s: float = 10.0,
    poll_interval_s: float | None = None,
    clock: Callable[[], int] | None = None,
) -> AsyncGenerator[Store]:
    """Open the store at ``url`` for the length of the ``async with`` block. A checkpoint.

    Args:
        url: ``memory:``, ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``postgresql://user@host/database``,
            ``cassandra://host1:9042,host2/keyspace``.
        listen_url: PostgreSQL only: where to listen for wake-ups, if ``url`` leads to a pooler, which cannot.
        exclusive: refuse when another process has opened this store exclusively (SQLite: the broker's file lock).
        migrate: create or upgrade the schema; otherwise a missing or old one is `SchemaNotReady`.
        commit_timeout_s: how long one append may take before it is given up.
        poll_interval_s: how often wake-ups ask the heads of subjects, on Cassandra, or hint at anything, on PostgreSQL
            while nothing is heard there; above 0. None: as each store has it, 0.5 and 1 s.
        clock: for tests only: the store's clock in microseconds, where the store has none of its own.

    Raises:
        CannotOpen: with what is wrong and what to do.
        StoreUnavailable: it cannot be reached now.
    """
    scheme = url.partition(":")[0]
    if listen_url and scheme not in POSTGRES_SCHEMES:
        raise CannotOpen("--store-listen is for a --store on PostgreSQL: leave it out")
    if url == "memory:":
        await trio.lowlevel.checkpoint()
        yield MemoryStore(clock or wall_clock_us)
    elif scheme == "sqlite":
        async with open_sqlite(
            url, exclusive=exclusive, migrate=migrate, commit_timeout_s=commit_timeout_s, clock=clock or wall_clock_us
        ) as store:
            yield store
    elif scheme in POSTGRES_SCHEMES:
        with needs_extra("postgres"):
            from persistence.postgres.store import open_postgres
        async with open_postgres(
            url,
            listen_url or url,
            migrate=migrate,
            commit_timeout_s=commit_timeout_s,
            poll_interval_s=poll_interval_s,
        ) as store:
            yield store
    elif scheme == "cassandra":
        with needs_extra("cassandra"):
            from persistence.cassandra.store import open_cassandra
        async with open_cassandra(
            url, migrate=migrate, commit_timeout_s=commit_timeout_s, poll_interval_s=poll_interval_s, clock=clock
        ) as store:
            yield store
    else:
        raise CannotOpen(
            f"no store is called {scheme!r}; write memory:, sqlite:///relative.db, sqlite:////absolute.db, "
            "postgresql://user@host/database or cassandra://host/keyspace"
        )


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Import a store whose driver is an extra of the package, within the block.

    Raises:
        CannotOpen: it is not installed; with the command that does it.
    """
    try:
        yield
    except ImportError as error:
        raise CannotOpen(f'this store needs more packages ({error}): pip install "trio-broker[{name}]"') from error


def wall_clock_us() -> int:
    """Return this machine's time in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
