"""kill -9 under load, again and again on one file: what was acknowledged is there, and no id is given twice."""

import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess
from e2e_failure import CallFailed
from e2e_peers import PEERS, Client, Peer

ROUNDS = 10
ACKNOWLEDGED_MIN = 1_000
ACKNOWLEDGED_MAX = 1_300
"""The broker is killed when a random number of publishes between these two were acknowledged."""
SUBJECTS = [f"orders.{n}" for n in range(4)]
CONNECTIONS = 4
CALLERS = 200
"""Publishes under way at any time, over all connections."""
READERS = 50
UNASSIGNED = 2**62

AIO = PEERS["grpcio.aio"]


class Journal:
    """What the clients were told, over all rounds."""

    def __init__(self) -> None:
        self.bodies: dict[str, dict[int, bytes]] = {subject: {} for subject in SUBJECTS}
        self.unchecked: dict[str, dict[int, bytes]] = {subject: {} for subject in SUBJECTS}
        """Those of the last round."""
        self.last_ids = dict.fromkeys(SUBJECTS, 0)
        """What the broker said when it was started again, and so what the next round's ids are above."""
        self.acknowledged = 0
        self._numbers = count()

    async def publish(self, client: Client, subject: str) -> None:
        body = b"message %d" % next(self._numbers)
        lifetime = {"keep": True} if len(body) % 2 else {"expirationSeconds": 3600}
        id_ = (await client.publish(subject, body, **lifetime)).id
        assert id_ > self.last_ids[subject], "ids did not go on"
        assert id_ not in self.bodies[subject], "an id was given twice"
        self.bodies[subject][id_] = self.unchecked[subject][id_] = body
        self.acknowledged += 1


async def publish_until_killed(
    peer: Peer, address: str, journal: Journal, acknowledged: int, kill: Callable[[], None]
) -> None:
    """Publish on all connections and subjects; kill the broker after so many acknowledgements, and feel it."""
    kill_at = journal.acknowledged + acknowledged

    async def call(client: Client, subject: str) -> None:
        with pytest.raises(CallFailed) as failure:
            while True:
                await journal.publish(client, subject)
                if journal.acknowledged == kill_at:
                    kill()
        assert failure.value.told == ("UNAVAILABLE", None)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(peer.connect(address)) for _ in range(CONNECTIONS)]
        await peer.together(
            [call(clients[n % CONNECTIONS], SUBJECTS[n // CONNECTIONS % len(SUBJECTS)]) for n in range(CALLERS)]
        )


async def check_recovered(peer: Peer, address: str, journal: Journal) -> None:
    """Fetch all that was acknowledged in the last round; note where the ids go on."""
    for subject, unchecked in journal.unchecked.items():
        assert await fetch_all(peer, address, subject, unchecked) == unchecked
        unchecked.clear()
        journal.last_ids[subject] = await last_id(peer, address, subject)


async def fetch_all(peer: Peer, address: str, subject: str, ids: Iterable[int]) -> dict[int, bytes]:
    bodies = {}
    unread = iter(ids)

    async def read(client: Client) -> None:
        for id_ in unread:
            bodies[id_] = (await client.fetch(subject, id_)).body

    async with peer.connect(address) as client:
        await peer.together([read(client) for _ in range(READERS)])
    return bodies


async def last_id(peer: Peer, address: str, subject: str) -> int:
    async with peer.connect(address) as client:
        with pytest.raises(CallFailed) as failure:
            await client.fetch(subject, UNASSIGNED)
    assert failure.value.reason == "INVALID_ID"
    return int(failure.value.metadata["last_id"])


def test_ten_times_kill_9_under_load_lose_nothing_that_was_acknowledged(
    sqlite_broker: Callable[..., BrokerProcess], database: Path
) -> None:
    journal = Journal()
    dice = random.Random(9)
    for _ in range(ROUNDS):
        with sqlite_broker() as broker:
            AIO.run(check_recovered, broker.address, journal)
            moment = dice.randint(ACKNOWLEDGED_MIN, ACKNOWLEDGED_MAX)
            AIO.run(publish_until_killed, broker.address, journal, moment, partial(os.kill, broker.pid, signal.SIGKILL))
            assert broker.wait() == -signal.SIGKILL
    with sqlite_broker() as broker:
        AIO.run(check_recovered, broker.address, journal)
        for subject, acknowledged in journal.bodies.items():
            stored = AIO.run(fetch_all, broker.address, subject, range(1, journal.last_ids[subject] + 1))
            assert stored.items() >= acknowledged.items()
            assert len(set(stored.values())) == len(stored), "a message was stored twice"
        broker.stop()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
