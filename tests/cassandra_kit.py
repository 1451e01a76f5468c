"""What tests of the Cassandra store share: writers that note what they were told, the check that it is true, tables."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from cassandra_keyspaces import Keyspaces, keyspace_of
from postgres_kit import ids, message, read_all

from persistence import (
    Failed,
    Key,
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
from persistence.cassandra.buckets import END_ID
from persistence.cassandra.store import CassandraStore

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


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


async def write_on(writer: Writer, batches: int) -> None:
    for _ in range(batches):
        await writer.write()


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


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us


class Tables:
    """Somebody else who looks into the tables."""

    def __init__(self, keyspaces: Keyspaces, url: str) -> None:
        self.execute = keyspaces.execute
        self.name = keyspace_of(url)

    def bases(self) -> list[int]:
        """The buckets of ``orders`` that readers find."""
        rows = self.execute(f"SELECT base_id FROM {self.name}.buckets WHERE subject = 'orders'")
        return sorted(row.base_id for row in rows)

    def chunks(self) -> list[int]:
        """The ids of the rows of messages of ``orders``, whether they are found or not."""
        rows = self.execute(f"SELECT id FROM {self.name}.log WHERE subject = 'orders' ALLOW FILTERING")
        return sorted(row.id for row in rows if row.id is not None and 0 < row.id != END_ID)


async def fill(store: Store, count: int, *, each: int = 1, subject: str = "orders") -> None:
    """Append messages, so many in a flush."""
    for _ in range(count // each):
        await store.append([message(subject)] * each)


async def kept_ids(store: Store, subject: str = "orders") -> list[int]:
    return [record.id for record in await read_all(store, subject)]


async def one(store: Store, id_: int, subject: str = "orders") -> object:
    (found,) = await store.get([Key(subject, id_)])
    return found
