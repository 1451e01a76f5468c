"""A store whose every operation is timed and counted.

Owns:      `MeasuredStore`; what kind of failure an error of the store is, as a label.
Not here:  the families (metrics/store.py, metrics/messages.py).
Threads:   the trio thread only. A checkpoint where the store's own method is one.
"""

import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

import persistence
from metrics import MessageMetrics, StoreMetrics
from persistence import (
    Appended,
    Conflict,
    Duplicate,
    Durability,
    ExpiredId,
    Failed,
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
from persistence.headers import headers_size_bytes

OPERATIONS: Final = (
    "append",
    "read",
    "get",
    "head",
    "heads",
    "id_before",
    "subjects",
    "load",
    "list",
    "purge",
    "delete_subject",
    "restore",
    "compare_and_set",
    "delete",
    "sweep",
    "now",
)
KINDS: Final = {
    persistence.StoreUnavailable: "unavailable",
    persistence.StoreFull: "full",
    persistence.BadContent: "bad_content",
    persistence.OutcomeUnknown: "outcome_unknown",
}
BUG: Final = "bug"
"""The kind of what no store should raise."""

_BODY = attrgetter("body")
_HEADERS = attrgetter("headers")

Operating = Callable[[str], AbstractContextManager[object]]
"""Told the name of an operation; returns what is around it, such as a span of a trace."""


class MeasuredStore(Store):
    """Does as ``store`` does, and tells the metrics. An operation that is cancelled counts for nothing."""

    def __init__(
        self, store: Store, operations: StoreMetrics, messages: MessageMetrics, operating: Operating = nullcontext
    ) -> None:
        """``operating`` is entered around each operation."""
        self._store = store
        self._operating = operating
        self._operations = operations
        self._messages = messages

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        with self.measuring("append") as measured:
            outcomes = await self._store.append(batch)
        self._operations.flushed(len(batch), measured.seconds)
        self.count(batch, outcomes)
        return outcomes

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        with self.measuring("read"):
            return await self._store.read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        with self.measuring("get"):
            return await self._store.get(keys)

    async def head(self, subject: str) -> Head:
        with self.measuring("head"):
            return await self._store.head(subject)

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        with self.measuring("heads"):
            return await self._store.heads(subjects)

    async def id_before(self, subject: str, time_us: int) -> int:
        with self.measuring("id_before"):
            return await self._store.id_before(subject, time_us)

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        with self.measuring("subjects"):
            return await self._store.subjects(after, limit=limit)

    async def purge(self, subject: str, until_id: int) -> int:
        with self.measuring("purge"):
            return await self._store.purge(subject, until_id)

    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        with self.measuring("delete_subject"):
            return await self._store.delete_subject(subject, last_id)

    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        with self.measuring("restore"):
            return await self._store.restore(subject, records, last_id)

    async def load(self, name: str) -> Register | None:
        with self.measuring("load"):
            return await self._store.load(name)

    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        with self.measuring("list"):
            return await self._store.list(prefix)

    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        with self.measuring("compare_and_set"):
            return await self._store.compare_and_set(name, value, version=version)

    async def delete(self, name: str, *, version: int) -> bool:
        with self.measuring("delete"):
            return await self._store.delete(name, version=version)

    async def sweep(self) -> Swept:
        with self.measuring("sweep"):
            swept = await self._store.sweep()
        self._messages.expired += swept.removed
        if not swept.more:
            self._operations.swept()
        return swept

    async def now(self) -> int:
        with self.measuring("now"):
            return await self._store.now()

    @asynccontextmanager
    async def wakeups(self, interest: Callable[[], Collection[str]]) -> AsyncGenerator[Wakeups]:
        async with self._store.wakeups(interest) as wakeups:
            yield wakeups

    def give_up(self) -> None:
        self._store.give_up()

    def limits(self) -> Limits:
        return self._store.limits()

    def pools(self) -> Sequence[PoolUse]:
        return self._store.pools()

    def durability(self) -> Durability:
        return self._store.durability()

    def measuring(self, operation: str) -> "Measuring":
        """Count what the block does to the store, by how it ends."""
        return Measuring(self._operations, operation, self._operating(operation))

    def count(self, batch: Sequence[NewMessage], outcomes: Sequence[Outcome]) -> None:
        """Count what of a flush was appended, and how some of it failed."""
        named = self._messages.published_of
        if not named and set(map(type, outcomes)) == {Appended}:  # nearly always: without looking at each
            size_bytes = sum(map(len, map(_BODY, batch)))
            if any(map(_HEADERS, batch)):
                size_bytes += sum(headers_size_bytes(new.headers) for new in batch if new.headers)
            self._messages.published += len(batch)
            self._messages.published_bytes += size_bytes
            return
        appended = deduplicated = size_bytes = 0
        failures = set()
        for new, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Appended):
                appended += 1
                size_bytes += len(new.body)
                if new.headers:
                    size_bytes += headers_size_bytes(new.headers)
                if named and new.subject in named:
                    named[new.subject] += 1
            elif isinstance(outcome, Duplicate):
                deduplicated += 1
            elif isinstance(outcome, Failed):
                failures.add(kind_of(outcome.error))
        self._messages.published += appended
        self._messages.published_bytes += size_bytes
        self._messages.deduplicated += deduplicated
        for kind in failures:
            self._operations.failed("append", kind)


class Measuring:
    """A block that is timed and counted. A generator would do, and cost a flush a microsecond more."""

    __slots__ = ("_around", "_began", "_operation", "_operations", "seconds")

    def __init__(self, operations: StoreMetrics, operation: str, around: AbstractContextManager[object]) -> None:
        self.seconds = 0.0
        """How long it took, once it has ended."""
        self._operations = operations
        self._operation = operation
        self._around = around

    def __enter__(self) -> Self:
        self._around.__enter__()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        if isinstance(error, Exception):
            self._operations.failed(self._operation, kind_of(error))
        if error is None or isinstance(error, Exception):
            self._operations.took(self._operation, self.seconds)
        self._around.__exit__(kind, error, traceback)


def kind_of(error: Exception) -> str:
    """Return what kind of failure an error of the store is."""
    return next((kind for error_type, kind in KINDS.items() if isinstance(error, error_type)), BUG)
