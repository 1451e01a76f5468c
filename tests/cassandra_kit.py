"""What the tests of the Cassandra store share: writers that note what they were told, and the check that it is true."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from postgres_kit import ids, message

from persistence import (
    Failed,
    NewMessage,
    Outcome,
    OutcomeUnknown,
    Page,
    Record,
    Store,
    StoreError,
    StoreUnavailable,
    open_store,
)
from persistence.cassandra.store import CassandraStore


@asynccontextmanager
async def opened(url: str, *, commit_timeout_s: float = 10.0) -> AsyncGenerator[CassandraStore]:
    """A store whose subject ``orders`` has one message."""
    async with open_store(url, commit_timeout_s=commit_timeout_s) as store:
        assert isinstance(store, CassandraStore)
        assert ids(await store.append([message(body=b"first")])) == [1]
        yield store


async def append(store: Store, *batch: NewMessage) -> list[Outcome]:
    """Append; what is raised becomes the outcome of each message."""
    try:
        return await store.append(batch)
    except StoreError as error:
        return [Failed(error)] * len(batch)


@dataclass(eq=False)
class Told:
    """What writers were told of the messages of one subject, by body."""

    ids: dict[bytes, int] = field(default_factory=dict)
    unknown: set[bytes] = field(default_factory=set)
    not_appended: set[bytes] = field(default_factory=set)

    def note(self, batch: Sequence[NewMessage], outcomes: Sequence[Outcome]) -> None:
        for new, outcome in zip(batch, outcomes, strict=True):
            if not isinstance(outcome, Failed):
                (self.ids[new.body],) = ids([outcome])
            elif isinstance(outcome.error, OutcomeUnknown):
                self.unknown.add(new.body)
            else:
                assert isinstance(outcome.error, StoreUnavailable)
                self.not_appended.add(new.body)

    async def check(self, store: Store, subject: str = "orders") -> None:
        """The log has no gap and nothing twice; all that was acknowledged, and else only what is unknown."""
        stored = [(record.id, record.body) for record in await read_on(store, subject)]
        assert [id_ for id_, _ in stored] == list(range(1, len(stored) + 1))
        bodies = {body: id_ for id_, body in stored}
        assert len(bodies) == len(stored)
        assert self.ids.items() <= bodies.items()
        assert bodies.keys() - self.ids.keys() <= self.unknown
        assert not bodies.keys() & self.not_appended


async def read_on(store: Store, subject: str) -> list[Record]:
    """Read a log of any length."""
    records: list[Record] = []
    page = Page([], 0, 1)
    while page.scanned_to < page.last_id:
        page = await store.read(subject, page.scanned_to, max_messages=1_000, max_bytes=2**20)
        records += page.records
    return records


class Writer:
    """Appends batches to a subject, one after another, whose bodies nobody else has."""

    def __init__(self, name: str, store: Store, told: Told, subject: str = "orders") -> None:
        self._name = name
        self.store = store
        self._told = told
        self._subject = subject
        self.batches = 0

    async def write(self) -> None:
        self.batches += 1
        bodies = [f"{self._name}.{self.batches}.{n}".encode() for n in range(self.batches % 4 + 1)]
        batch = [message(self._subject, body) for body in bodies]
        self._told.note(batch, await append(self.store, *batch))


@asynccontextmanager
async def writers(url: str, count: int, told: Told) -> AsyncGenerator[list[Writer]]:
    """Open as many stores as if each were a broker of its own, and a writer on each."""
    async with trio.open_nursery() as nursery:
        stores: list[Store] = [await nursery.start(_open, url) for _ in range(count)]
        yield [Writer(str(number), store, told) for number, store in enumerate(stores)]
        nursery.cancel_scope.cancel()


async def _open(url: str, task_status: trio.TaskStatus[Store]) -> None:
    async with open_store(url) as store:
        task_status.started(store)
        await trio.sleep_forever()
