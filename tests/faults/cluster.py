"""Several brokers on one database, which come and go while clients look for one that runs.

Owns:      starting, killing, restarting and replacing them; where clients connect; whether all are ready.
Not here:  clients (clients.py), what is done to the database (the tests).
Threads:   the trio thread; what waits for a process waits in a thread of trio's.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import psycopg
import trio
from e2e_broker import BrokerProcess, eventually

READY_S = 10
"""How soon every broker is ready once nothing is wrong any more."""
CONNECTIONS_MAX = 6
"""That one broker may have to its database (docs/POSTGRES.md)."""

_BACKENDS = """
SELECT state, wait_event_type FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'trio-broker'
"""

Start = Callable[[int], BrokerProcess]


class Cluster:
    """Brokers by number, the first is 0. Use `cluster` to make one."""

    def __init__(self, stack: ExitStack, count: int, start: Start) -> None:
        self.brokers: list[BrokerProcess | None] = [None] * count
        """None: it does not run."""
        self._stack = stack
        self._start = start

    def __getitem__(self, number: int) -> BrokerProcess:
        broker = self.brokers[number]
        assert broker is not None, f"broker {number} does not run"
        return broker

    def running(self) -> list[BrokerProcess]:
        return [broker for broker in self.brokers if broker is not None]

    def address(self, number: int) -> str | None:
        """Of broker ``number``, or of the next one that runs; None: none does."""
        count = len(self.brokers)
        in_turn = (self.brokers[(number + n) % count] for n in range(count))
        return next((broker.address for broker in in_turn if broker is not None), None)

    async def start(self, number: int) -> None:
        """Start a broker; return when it is ready. One that runs under this number goes on, and is found no more."""
        broker = await trio.to_thread.run_sync(self._start, number)
        self.brokers[number] = self._stack.enter_context(broker)

    async def kill(self, number: int) -> None:
        """kill -9."""
        broker = self[number]
        self.brokers[number] = None
        await trio.to_thread.run_sync(broker.kill)

    async def stop(self, number: int) -> None:
        """SIGTERM; it has to end well."""
        broker = self[number]
        self.brokers[number] = None
        await trio.to_thread.run_sync(broker.stop)

    async def replace(self, number: int) -> None:
        """Start another one, let clients find that one, and stop the first: a rolling update of one broker."""
        old = self[number]
        await self.start(number)
        await trio.to_thread.run_sync(old.stop)

    async def readiness(self, broker: BrokerProcess, status: int) -> None:
        """Wait until ``/readyz`` of a broker answers so."""
        await trio.to_thread.run_sync(eventually, lambda: broker.get("/readyz")[0], status)

    async def all_ready(self, since: float) -> None:
        """Wait until every broker is ready; fail if that takes more than `READY_S` from ``since`` (time.monotonic)."""
        for broker in self.running():
            await self.readiness(broker, 200)
        assert time.monotonic() - since < READY_S

    async def at_rest(self, url: str) -> None:
        """Wait until no backend of a broker is in a transaction or waits for a lock; there are no more than may be."""
        await trio.to_thread.run_sync(eventually, partial(_busy, url), [])
        assert len(_backends(url)) <= CONNECTIONS_MAX * len(self.running())


@asynccontextmanager
async def cluster(
    url: str,
    *flags: str,
    urls: Sequence[str] | None = None,
    own_flags: Sequence[Sequence[str]] | None = None,
    brokers: int = 2,
    environment: Mapping[str, str] | None = None,
) -> AsyncGenerator[Cluster]:
    """Brokers on the database of ``url`` for the length of the block; afterwards nothing of them is left there.

    Args:
        url: what an administrator reaches the database by, whatever happens to the brokers.
        flags: for all brokers.
        urls: for each broker the URL that it gets; otherwise ``brokers`` of them get ``url``.
        own_flags: for each broker.
        brokers: how many, where neither says so.
        environment: what all brokers have besides ours.
    """
    count = len(urls or own_flags or range(brokers))
    stores, more = urls or [url] * count, own_flags or [()] * count
    with ExitStack() as stack:
        made = Cluster(
            stack, count, lambda number: BrokerProcess(stores[number], *flags, *more[number], environment=environment)
        )
        for number in range(len(made.brokers)):
            await made.start(number)
        yield made
        await made.at_rest(url)
        for number, broker in enumerate(made.brokers):
            if broker is not None:
                await made.stop(number)
        await trio.to_thread.run_sync(eventually, partial(_backends, url), [])


def _backends(url: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(_BACKENDS).fetchall()


def _busy(url: str) -> list[tuple]:
    """Those that are in a transaction which does nothing, or wait for a lock."""
    return [row for row in _backends(url) if row[0] not in ("idle", "active") or row[1] == "Lock"]
