"""The facade over one PostgreSQL database.

Owns:      which work goes to which connection.
Not here:  SQL (flush.py, reading.py, registers.py, sweeping.py), what is opened (opening.py).
Threads:   the trio thread; everything that blocks goes to another one, by persistence/threads.py.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from persistence import threads
from persistence.errors import OutcomeUnknown, StoreUnavailable
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
    Wakeups,
)
from persistence.postgres import purging, reading, registers
from persistence.postgres.flush import EXPIRATION_MAX_S
from persistence.postgres.opening import Database, open_database
from persistence.postgres.pool import Pool
from persistence.postgres.sweeping import Sweeper
from persistence.postgres.wakeups import POLL_INTERVAL_S, listen

LIMITS = Limits(
    lanes=1,  # two only split the flushes of one broker; other brokers are lanes already
    flush_messages_max=16_384,
    flush_bytes_max=16 * 1024 * 1024,
    expiration_max_s=EXPIRATION_MAX_S,
    shared=True,
)

HEADS_MAX = 5_000
"""So many subjects are asked for by one statement: some 15 ms, and a megabyte of names at most."""


@asynccontextmanager
async def open_postgres(
    url: str, listen_url: str, *, migrate: bool, commit_timeout_s: float, poll_interval_s: float | None
) -> AsyncGenerator[Store]:
    """Open the database that ``url`` names for the length of the block. See `persistence.open_store`.

    Leaving the block waits at most ``commit_timeout_s``; every thread ends by itself soon after that.
    """
    opening = partial(
        open_database,
        url,
        listen_url,
        migrate=migrate,
        commit_timeout_s=commit_timeout_s,
        check_cancelled=trio.from_thread.check_cancelled,
    )
    database = await threads.to_the_end(opening)
    store = PostgresStore(database, POLL_INTERVAL_S if poll_interval_s is None else poll_interval_s)
    async with threads.closing_within(commit_timeout_s, store.close, database.address):
        yield store


class PostgresStore(Store):
    """One connection appends, a few do everything else."""

    def __init__(self, database: Database, poll_interval_s: float) -> None:
        self._writer = database.writer
        self._listen_address = database.listen_address
        self._poll_interval_s = poll_interval_s
        self._writing = threads.Worker("postgres-writer")
        self._pool = Pool(database.address)
        self._sweeper = Sweeper()
        self._given_up = False

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        return await self._writing.run(self._writer.append, batch)

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        return await self._pool.read(reading.read_page, subject, after_id, max_messages, max_bytes)

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        return await self._pool.read(reading.get_messages, keys)

    async def head(self, subject: str) -> Head:
        return await self._pool.read(reading.read_head, subject)

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        names = [*subjects]
        found: dict[str, int] = {}
        for start in range(0, max(1, len(names)), HEADS_MAX):
            found |= await self._pool.read(reading.read_heads, names[start : start + HEADS_MAX])
        return found

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        return await self._pool.read(reading.list_subjects, after, limit)

    async def purge(self, subject: str, until_id: int) -> int:
        return await self._pool.change(purging.purge, subject, until_id)

    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        return await self._pool.change(purging.delete_subject, subject, last_id)

    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        return await self._pool.change(purging.restore, subject, records, last_id)

    async def load(self, name: str) -> Register | None:
        return await self._pool.read(registers.load_register, name)

    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        return await self._pool.read(registers.list_registers, prefix)

    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        return await self._pool.change(registers.compare_and_set, name, value, version)

    async def delete(self, name: str, *, version: int) -> bool:
        return await self._pool.change(registers.delete_register, name, version)

    async def sweep(self) -> Swept:
        return await self._pool.change(self._sweeper.sweep)

    async def now(self) -> int:
        return await self._pool.read(reading.read_clock)

    @asynccontextmanager
    async def wakeups(self, interest: Callable[[], Collection[str]]) -> AsyncGenerator[Wakeups]:  # noqa: ARG002 - all is heard
        async with listen(self._listen_address, self._poll_interval_s) as wakeups:
            yield wakeups

    def give_up(self) -> None:
        self._given_up = True
        unknown = OutcomeUnknown("the broker stops, and waits for the database no longer")
        away = StoreUnavailable(str(unknown))
        self._writing.give_up(unknown, away)
        self._pool.give_up(unknown, away)

    def limits(self) -> Limits:
        return LIMITS

    def pools(self) -> Sequence[PoolUse]:
        return self._writing.use("write"), *self._pool.use()

    def durability(self) -> Durability:
        return self._writer.durability

    async def close(self) -> None:
        """Close the connections once no thread uses them. A checkpoint; cancelled, it leaves threads that do so."""
        if self._given_up:
            await trio.lowlevel.checkpoint()  # threads and connections are left to the end of the process
            return
        await self._writing.close(self._writer.close)
        await self._pool.close()
