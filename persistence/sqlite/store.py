"""The facade over one SQLite file.

Owns:      which work goes to which connection, and the order in which it waits.
Not here:  SQL (reading.py, writing.py, sweeping.py), what is opened (opening.py).
Threads:   the trio thread; everything that blocks goes to a worker thread, by persistence/threads.py.
"""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

from persistence import threads
from persistence.facade import (
    Conflict,
    Durability,
    ExpiredId,
    Head,
    InvalidId,
    Key,
    Limits,
    NewMessage,
    Outcome,
    Page,
    PoolUse,
    Record,
    Register,
    Store,
    Swept,
)
from persistence.sqlite import purging, reading
from persistence.sqlite.opening import Database, open_database
from persistence.sqlite.pool import ReaderPool
from persistence.sqlite.sweeping import sweep
from persistence.sqlite.writing import EXPIRATION_MAX_S

LIMITS = Limits(
    lanes=1,  # a file has one writer at a time
    flush_messages_max=16_384,
    flush_bytes_max=64 * 1024 * 1024,
    expiration_max_s=EXPIRATION_MAX_S,
)

LOCK_WAIT_SHARE = 0.5
"""How much of the commit timeout a lock of another process is waited for. An append that never got it wrote nothing,
and must say so before the broker gives up waiting and has to call the outcome unknown."""


@asynccontextmanager
async def open_sqlite(
    url: str, *, exclusive: bool, migrate: bool, commit_timeout_s: float, clock: Callable[[], int]
) -> AsyncGenerator[Store]:
    """Open the file that ``url`` names for the length of the block. See `persistence.open_store`.

    Leaving the block waits at most ``commit_timeout_s``: then a thread stays behind, to close the file and give up its
    lock as soon as the disk lets it.
    """
    opening = partial(
        open_database,
        url,
        exclusive=exclusive,
        migrate=migrate,
        busy_timeout_s=commit_timeout_s * LOCK_WAIT_SHARE,
        clock=clock,
    )
    database = await threads.to_the_end(opening)
    store = SQLiteStore(database, clock)
    async with threads.closing_within(commit_timeout_s, store.close, database.file.path):
        yield store


class SQLiteStore(Store):
    """One connection writes, a few read."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._writing = threads.Worker("sqlite-writer")
        self._reading = ReaderPool(database.readers, database.file.path)
        self._writer = database.writer
        self._clock = clock

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        return await self._writing.run(self._writer.append, batch)

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        return await self._reading.run(reading.read_page, self._clock, subject, after_id, max_messages, max_bytes)

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        return await self._reading.run(reading.get_messages, self._clock, keys)

    async def head(self, subject: str) -> Head:
        return await self._reading.run(reading.read_head, self._clock, subject)

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        return await self._reading.run(reading.read_heads, [*subjects])

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        return await self._reading.run(reading.list_subjects, after, limit)

    async def purge(self, subject: str, until_id: int) -> int:
        return await self._writing.run(purging.purge, self._writer, self._clock, subject, until_id)

    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        return await self._writing.run(purging.delete_subject, self._writer, self._clock, subject, last_id)

    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        return await self._writing.run(purging.restore, self._writer, subject, records, last_id)

    async def load(self, name: str) -> Register | None:
        return await self._reading.run(reading.load_register, name)

    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        return await self._reading.run(reading.list_registers, prefix)

    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        return await self._writing.run(self._writer.compare_and_set, name, value, version)

    async def delete(self, name: str, *, version: int) -> bool:
        return await self._writing.run(self._writer.delete, name, version)

    async def sweep(self) -> Swept:
        return await self._writing.run(sweep, self._writer, self._database.file.path, self._clock())

    async def now(self) -> int:
        await self._reading.run(self._ask)
        return self._clock()

    def limits(self) -> Limits:
        return LIMITS

    def pools(self) -> Sequence[PoolUse]:
        return self._writing.use("write"), self._reading.use()

    def durability(self) -> Durability:
        return Durability(
            kind=f"SQLite {sqlite3.sqlite_version}", setting="journal_mode=wal synchronous=full", durable=True
        )

    async def close(self) -> None:
        """Close the file once no thread uses it. A checkpoint; cancelled, it leaves a thread behind that does so."""
        await self._writing.close(self._close)

    def _ask(self, connection: sqlite3.Connection) -> None:
        self._database.file.check()
        reading.ask(connection)

    def _close(self) -> None:
        self._reading.collect()
        self._database.close()
