"""What every contract test needs: the stores to try, a clock to turn, short ways to say common things."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import trio
from cassandra_keyspaces import Keyspaces
from postgres_clock import turned_database
from postgres_databases import Databases

from persistence import NO_HEADERS, Appended, Key, NewMessage, Outcome, Record, Store

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


class Clock:
    """The store's clock: stands still until it is told, and tells those that keep one of their own."""

    def __init__(self) -> None:
        self._now_us = START_US
        self._followers: list[Callable[[int], None]] = []

    def __call__(self) -> int:
        return self._now_us

    @property
    def now_us(self) -> int:
        return self._now_us

    @now_us.setter
    def now_us(self, now_us: int) -> None:
        self._now_us = now_us
        for turn in self._followers:
            turn(now_us)

    def advance(self, seconds: float) -> None:
        self.now_us += int(seconds * SECOND_US)

    @contextmanager
    def followed_by(self, turn: Callable[[int], None]) -> Generator[None]:
        """Call ``turn`` with the time, now and at every change, for the length of the block."""
        turn(self._now_us)
        self._followers.append(turn)
        try:
            yield
        finally:
            self._followers.remove(turn)


@dataclass(frozen=True)
class Backend:
    """A kind of store. A new one joins the suite by an entry in `BACKENDS` (conftest.py)."""

    name: str
    new_url: Callable[[Path, Clock], AbstractContextManager[str]]
    """The URL of a new, empty store, given a directory of the test's own and the clock that it has to show."""
    durable: bool
    """Outlives its opener, and other processes may open it too."""
    sweeps: bool = True
    """`Store.sweep` drops what has expired, and counts it; otherwise the database does, by itself and later."""
    lent_url: Callable[[], AbstractContextManager[str]] | None = None
    """The URL of an empty store that other tests had opened before; where that is much faster than a new one."""

    def empty_url(self, directory: Path, clock: Clock) -> AbstractContextManager[str]:
        """The URL of an empty store, new or lent."""
        return self.lent_url() if self.lent_url else self.new_url(directory, clock)

    def swept(self, expired: int) -> int:
        """How many messages `Store.sweep` removes of so many that have expired."""
        return expired if self.sweeps else 0


MEMORY = Backend("memory", lambda directory, clock: nullcontext("memory:"), durable=False)
SQLITE = Backend("sqlite", lambda directory, clock: nullcontext(f"sqlite:///{directory / 'log.db'}"), durable=True)


def postgres_on(databases: Databases) -> Backend:
    """PostgreSQL, on a server that is there; the clock is the database's, and it is turned as the test's is."""

    @contextmanager
    def new_url(directory: Path, clock: Clock) -> Generator[str]:
        with turned_database(databases) as database, clock.followed_by(database.turn):
            yield database.url

    return Backend("postgres", new_url, durable=True)


def cassandra_on(keyspaces: Keyspaces) -> Backend:
    """Cassandra, on a cluster that is there; the store takes the test's clock, and rows expire by their TTL."""
    return Backend(
        "cassandra",
        lambda directory, clock: keyspaces.new(),
        durable=True,
        sweeps=False,
        lent_url=keyspaces.lend,
    )


def message(
    subject: str = "orders",
    body: bytes = b"x",
    expiration_s: int | None = 60,
    headers: Mapping[str, bytes] = NO_HEADERS,
    *,
    key: str = "",
    after: int | None = None,
    group: int = 0,
) -> NewMessage:
    return NewMessage(subject, body, expiration_s, headers, key, after, group)


def ids(appended: Iterable[object]) -> list[int]:
    """The ids of messages of which all were appended."""
    found = []
    for outcome in appended:
        assert isinstance(outcome, Appended), outcome
        found.append(outcome.id)
    return found


def told(outcomes: Iterable[Outcome]) -> list[tuple[str, Outcome]]:
    """Outcomes that can be compared: tuples of different types may be equal."""
    return [(type(outcome).__name__, outcome) for outcome in outcomes]


async def get(store: Store, subject: str, id_: int) -> object:
    (found,) = await store.get([Key(subject, id_)])
    return found


async def read_all(store: Store, subject: str, *, max_messages: int = 100, max_bytes: int = 2**30) -> list[Record]:
    """Follow the pages to the end; no page may stand still."""
    records: list[Record] = []
    after_id = 0
    while True:
        page = await store.read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)
        records += page.records
        if page.scanned_to >= page.last_id:
            return records
        assert page.scanned_to > after_id
        after_id = page.scanned_to


async def sweep_all(store: Store) -> int:
    removed = 0
    while True:
        swept = await store.sweep()
        removed += swept.removed
        if not swept.more:
            return removed


class Peer:
    """Another process that has the store open: tests/contract/peer.py."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._read = b""

    async def tell(self, *command: object) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(command).encode() + b"\n")

    async def hear(self) -> list[object]:
        assert self.process.stdout is not None
        while b"\n" not in self._read:
            received = await self.process.stdout.receive_some()
            assert received, "the peer ended"
            self._read += received
        line, self._read = self._read.split(b"\n", 1)
        answer: list[object] = json.loads(line)
        return answer


@asynccontextmanager
async def open_peers(url: str, count: int) -> AsyncGenerator[Sequence[Peer]]:
    """Start processes that open the store at the same time; all have it open when the block begins."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("peer.py")), url]
    async with trio.open_nursery() as nursery:
        peers = []
        for _ in range(count):
            process = await nursery.start(_run, command)
            peers.append(Peer(process))
        for peer in peers:
            assert await peer.hear() == ["imported"]
        for peer in peers:
            await peer.tell("open")
        for peer in peers:
            assert await peer.hear() == ["open"]
        yield peers
        for peer in peers:
            if peer.process.returncode is None:
                await peer.tell("close")


async def _run(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False, task_status=task_status)
