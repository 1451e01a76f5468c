"""The facade over one keyspace of a Cassandra cluster.

Owns:      which work goes to which thread, and how long it is waited for.
Not here:  CQL (writing.py, reading.py, registers.py, buckets.py), what is opened (opening.py).
Threads:   the trio thread; everything that blocks goes to another one, by persistence/threads.py.
"""

import builtins
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from persistence import threads
from persistence.cassandra import purging, reading, registers, restoring
from persistence.cassandra.clock import Clock
from persistence.cassandra.database import Database, Patience
from persistence.cassandra.opening import Opened, open_keyspace
from persistence.cassandra.shares import EXPIRATION_MAX_S
from persistence.cassandra.steps import Steps
from persistence.cassandra.wakeups import POLL_INTERVAL_S, Heads, Polling, look_again
from persistence.cassandra.writing import ATTEMPT_SLACK_S, SHARE_BYTES_MAX, Writer
from persistence.errors import OutcomeUnknown, StoreError, StoreUnavailable
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

HEADERS_ROOM_BYTES = 64 * 1024
"""What a message may have besides its body."""
LIMITS = Limits(
    lanes=1,  # the subjects of a flush are appended to at once; two lanes only split flushes (measured)
    flush_messages_max=4_096,  # each may be of a subject of its own, and so a batch of its own
    flush_bytes_max=SHARE_BYTES_MAX,
    expiration_max_s=EXPIRATION_MAX_S,
    shared=True,
    leaves_subjects=True,
    body_max_bytes=SHARE_BYTES_MAX - HEADERS_ROOM_BYTES,
)
READERS = 8
"""One that waits for a node does not hold up the others."""
HEADS_MAX = 1_000
"""So many subjects are asked for within one timeout."""
TIMEOUT_SHARE = 0.5
"""Part of the commit timeout for which anything but an append is waited for."""
SLACK_S = 0.25
"""By so much a thread outstays its caller's deadline: it is the caller's own scope that ends the call."""

R = TypeVar("R")


@asynccontextmanager
async def open_cassandra(
    url: str,
    *,
    migrate: bool,
    commit_timeout_s: float,
    poll_interval_s: float | None,
    clock: Callable[[], int] | None,
) -> AsyncGenerator[Store]:
    """Open the keyspace that ``url`` names for the length of the block. See `persistence.open_store`.

    Leaving the block waits at most ``commit_timeout_s``; every thread ends by itself soon after that.
    """
    nodes_clock = Clock(clock)
    opening = partial(
        open_keyspace,
        url,
        nodes_clock,
        migrate=migrate,
        commit_timeout_s=commit_timeout_s,
        check_cancelled=trio.from_thread.check_cancelled,
    )
    opened = await threads.to_the_end(opening)
    poll_interval_s = POLL_INTERVAL_S if poll_interval_s is None else poll_interval_s
    store = CassandraStore(opened, nodes_clock, commit_timeout_s, poll_interval_s)
    async with threads.closing_within(commit_timeout_s, store.close, opened.address):
        yield store


class CassandraStore(Store):
    """One thread appends, a few do everything else."""

    def __init__(self, opened: Opened, clock: Clock, commit_timeout_s: float, poll_interval_s: float) -> None:
        self._address, self._database, self._durability = opened
        self._clock = clock
        self._writer = Writer(self._database, clock, commit_timeout_s)
        self._writing = threads.Worker("cassandra-writer")
        self._changing = threads.Worker("cassandra-changes")
        self._limiter = threads.Tokens(READERS)
        self._timeout_s = commit_timeout_s * TIMEOUT_SHARE
        self._poll_interval_s = poll_interval_s
        self._closing = trio.CancelScope()

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        return await self._writing.run(self._writer.append, batch)

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        return await self._read(reading.read_page(subject, after_id, max_messages, max_bytes, self._clock))

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        return await self._read_all([reading.get_message(key, self._clock) for key in keys])

    async def head(self, subject: str) -> Head:
        return await self._read(reading.read_head(subject, self._clock))

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        names = [*subjects]
        found: dict[str, int] = {}
        for start in range(0, max(1, len(names)), HEADS_MAX):
            asked = names[start : start + HEADS_MAX]
            last_ids = await self._read_all([reading.read_last_id(subject) for subject in asked])
            found.update((name, last_id) for name, last_id in zip(asked, last_ids, strict=True) if last_id)
        return found

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        return await self._read(reading.list_subjects(after, limit))

    async def purge(self, subject: str, until_id: int) -> int:
        return await self._change(purging.purge(subject, until_id, self._clock))

    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        return await self._change(purging.delete_subject(subject, last_id, self._clock))

    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        attempt_ttl_s = int(self._timeout_s) + ATTEMPT_SLACK_S
        return await self._change(restoring.restore(subject, records, last_id, self._clock, attempt_ttl_s))

    async def load(self, name: str) -> Register | None:
        return await self._read(registers.load_register(name))

    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        return await self._read(registers.list_registers(prefix))

    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        return await self._change(registers.compare_and_set(name, value, version))

    async def delete(self, name: str, *, version: int) -> bool:
        return await self._change(registers.delete_register(name, version))

    async def sweep(self) -> Swept:
        """Do nothing: rows go by their TTL or with a purge, and their space when nodes compact what is on disk."""
        await trio.lowlevel.checkpoint()
        return Swept(removed=0, more=False)

    async def now(self) -> int:
        return await self._read(self._clock.ask())

    @asynccontextmanager
    async def wakeups(self, interest: Callable[[], Collection[str]]) -> AsyncGenerator[Wakeups]:
        await trio.lowlevel.checkpoint()
        yield Polling(interest, self._look_again, self._poll_interval_s)

    def give_up(self) -> None:
        self._closing.cancel()
        unknown = OutcomeUnknown("the broker stops, and waits for the nodes no longer")
        away = StoreUnavailable(str(unknown))
        self._writing.give_up(unknown, away)
        self._changing.give_up(unknown, away)

    def limits(self) -> Limits:
        return LIMITS

    def pools(self) -> Sequence[PoolUse]:
        return self._writing.use("write"), self._changing.use("change"), self._limiter.use("read")

    def durability(self) -> Durability:
        return self._durability

    async def close(self) -> None:
        """Close the connections once nothing is changed any more; reads fail. A checkpoint.

        Cancelled or given up, it leaves threads behind that do so.
        """
        with self._closing:
            await self._writing.close(lambda: None)
            await self._changing.close(self._database.close)

    async def _look_again(self, heads: Heads) -> Heads:
        found = await self._read_all([look_again(subject, head) for subject, head in heads.items()])
        return dict(zip(heads, found, strict=True))

    async def _read(self, steps: Steps[R]) -> R:
        (result,) = await self._read_all([steps])
        return result

    async def _read_all(self, all_steps: Sequence[Steps[R]]) -> builtins.list[R]:
        """Take steps that change nothing, in a thread; leave it behind when cancelled. A checkpoint."""
        with trio.move_on_after(self._timeout_s):
            left_s = trio.current_effective_deadline() - trio.current_time()
            return await threads.read(self._limiter, _run_all, self._database, all_steps, Patience(left_s + SLACK_S))
        raise StoreUnavailable(f"{self._address}: no answer within {self._timeout_s:g} s")

    async def _change(self, steps: Steps[R]) -> R:
        """Take steps that change something, in a thread, to their end. A checkpoint."""
        return await self._changing.run(lambda: self._database.run(steps, Patience(self._timeout_s)))


def _run_all(database: Database, all_steps: Sequence[Steps[R]], patience: Patience) -> list[R]:
    results: list[R] = []
    for result in database.run_all(all_steps, patience):
        if isinstance(result, StoreError):
            raise result
        results.append(result)
    return results
