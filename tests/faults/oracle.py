"""The one oracle of all faults: clients at work on a cluster, and at the end what they were told held against the log.

Owns:      `Oracle`: starting publishers and subscribers, waiting for load, the final checks; how long faults last.
Not here:  a client (clients.py); brokers and what they leave in the database (cluster.py); the faults (the tests).
Threads:   the trio thread only.

What it holds everybody to: what was acknowledged, and was to be kept, is there under its id; no id is given twice; a
body is there once, unless it was sent again without a key after an outcome that was not known; every broker shows the
same log; every subscriber has each kept message of its subject once, in order, and was told of every other id.
"""

import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count, takewhile

import trio

from .clients import Publisher, Subscriber, Told, connected
from .cluster import Cluster

FAULT_S = float(os.environ.get("TRIO_BROKER_FAULT_SECONDS", "3"))
"""How long a fault lasts that may last as long as one likes."""
FETCHES = 20
"""How many messages of a subject are also fetched one by one."""


class Oracle:
    def __init__(self, cluster: Cluster, subjects: Sequence[str] = ("orders.0", "orders.1")) -> None:
        self.told = {subject: Told() for subject in subjects}
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.acknowledged = 0
        self._cluster = cluster
        self._subjects = subjects
        self._advanced = trio.Event()

    @asynccontextmanager
    async def at_work(
        self, *, publishers: int = 6, subscribers: int = 6, pause_s: float = 0.01, unkeyed_every: int = 3
    ) -> AsyncGenerator[None]:
        """Publish and subscribe for the length of the block, over all subjects and brokers; then check everything.

        One publisher of ``unkeyed_every`` has no idempotency keys; 0: all have. The brokers must be well when the block
        ends.
        """
        async with trio.open_nursery() as reading:
            self.subscribers = [
                Subscriber(self._cluster, number, self._subject(number)) for number in range(subscribers)
            ]
            for subscriber in self.subscribers:
                reading.start_soon(subscriber.run)
            async with trio.open_nursery() as writing:
                for number in range(publishers):
                    keyed = not unkeyed_every or (number + 1) % unkeyed_every != 0
                    publisher = Publisher(self._cluster, number, self.told, self.note, keyed=keyed, pause_s=pause_s)
                    self.publishers.append(publisher)
                    writing.start_soon(publisher.run)
                yield
                for publisher in self.publishers:
                    publisher.end()
            await self._check()
            reading.cancel_scope.cancel(reason="everything was read and checked")

    async def more(self, publishes: int, *, delivered: bool = True) -> None:
        """Wait until so many more publishes are acknowledged, and subscribers have all that was acknowledged.

        ``delivered=False``: whether they have it or not.
        """
        enough = self.acknowledged + publishes
        while self.acknowledged < enough:
            await self._advanced.wait()
        for subscriber in self.subscribers if delivered else ():
            await subscriber.reach(max(self.told[subscriber.subject].kept, default=0))

    async def forget(self) -> None:
        """Delete the subjects."""
        async with connected(self._cluster, 0) as client:
            for subject in self._subjects:
                await client.delete_subject(subject)

    def failed(self) -> int:
        """How many publishes failed after all attempts."""
        return sum(len(told.failed) for told in self.told.values())

    def errors(self) -> Counter[str]:
        """Why attempts to publish failed, over all publishers."""
        return sum((publisher.errors for publisher in self.publishers), Counter())

    def note(self) -> None:
        """One more publish was acknowledged."""
        self.acknowledged += 1
        self._advanced.set()
        self._advanced = trio.Event()

    def _subject(self, number: int) -> str:
        return self._subjects[number % len(self._subjects)]

    async def _check(self) -> None:
        for subject, told in self.told.items():
            logs = [await self._log(number, subject) for number in range(len(self._cluster.brokers))]
            assert all(log == logs[0] for log in logs), f"{subject}: brokers show different logs"
            log, last_id = logs[0]
            check_log(subject, told, log, last_id)
            for subscriber in self.subscribers:
                if subscriber.subject == subject:
                    await subscriber.reach(last_id)
                    check_subscriber(subscriber, told, log)

    async def _log(self, number: int, subject: str) -> tuple[dict[int, bytes], int]:
        """What a broker shows of a subject: each kept message by its id, and the last id; some fetched one by one."""
        log: dict[int, bytes] = {}
        async with connected(self._cluster, number) as client:
            at, last_id = 0, 1
            while at < last_id:
                page = await client.fetch_range(subject, after_id=at)
                ids = [message.id for message in page.messages]
                assert all(a < b for a, b in zip([at, *ids], ids, strict=False)), f"{subject}: not in order: {ids}"
                log |= {message.id: message.body for message in page.messages}
                at, last_id = page.scanned_to, page.last_id
            for id_ in [*log][:: len(log) // FETCHES + 1]:
                assert (await client.fetch(subject, id_)).body == log[id_]
        return log, last_id


def rounds(least: int) -> Iterator[int]:
    """Count rounds: so many at least, and then as long as `FAULT_S` is not over."""
    over = time.monotonic() + FAULT_S
    return takewhile(lambda number: number < least or time.monotonic() < over, count())


def check_log(subject: str, told: Told, log: dict[int, bytes], last_id: int) -> None:
    missing = told.kept.items() - log.items()
    assert not missing, f"{subject}: acknowledged and not there, or not so: {missing}"
    assert not told.unkept.keys() & log.keys(), f"{subject}: kept, and was not to be"
    assert max(told.kept.keys() | told.unkept.keys(), default=0) <= last_id
    assert told.sent >= set(log.values()), f"{subject}: nobody sent these"
    times = Counter(log.values())
    assert {body for body, number in times.items() if number > 1} <= told.twice, f"{subject}: there twice"


def check_subscriber(subscriber: Subscriber, told: Told, log: dict[int, bytes]) -> None:
    """It read every id in order, or was told of a gap (`Subscriber`): so what is left is what it got for each."""
    missing = log.items() - subscriber.received.items()
    assert not missing, f"{subscriber.subject}: never delivered, or not so: {missing}"
    bodies = Counter(body for id_, body in subscriber.received.items() if id_ not in log)
    assert bodies.keys() <= told.sent
    assert {body for body, number in bodies.items() if number > 1} <= told.twice
    assert all(told.unkept.get(id_, body) == body for id_, body in subscriber.received.items())
