"""What clients were told, kept beside the broker, to hold against what is stored after a fault.

Owns:      `Journal`; publishing through faults; the comparison.
Not here:  the faults (the tests).
"""

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from itertools import count

import pytest
from e2e_failure import CallFailed
from e2e_peers import Client, Peer

SUBJECTS = [f"orders.{n}" for n in range(4)]
CONNECTIONS = 4
CALLERS = 200
"""Publishes under way at any time, over all connections."""
READERS = 50
UNASSIGNED = 2**62

NOTHING_APPENDED = {("UNAVAILABLE", "STORAGE_UNAVAILABLE"), ("RESOURCE_EXHAUSTED", "OVERLOADED")}
"""What a broker says of a publish that may safely be tried again."""
UNKNOWN = {("UNAVAILABLE", None), ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")}


class Journal:
    """What the clients were told, over all rounds."""

    def __init__(self) -> None:
        self.bodies: dict[str, dict[int, bytes]] = {subject: {} for subject in SUBJECTS}
        self.unchecked: dict[str, dict[int, bytes]] = {subject: {} for subject in SUBJECTS}
        """Those of the last round."""
        self.refused: set[bytes] = set()
        """Those of which the broker said that nothing was appended."""
        self.last_ids = dict.fromkeys(SUBJECTS, 0)
        """What the broker said when it was started again, and so what the next round's ids are above."""
        self.acknowledged = 0
        self._numbers = count()

    async def publish(self, client: Client, subject: str) -> None:
        body = b"message %d" % next(self._numbers)
        lifetime = {"keep": True} if len(body) % 2 else {"expirationSeconds": 3600}
        try:
            id_ = (await client.publish(subject, body, **lifetime)).id
        except CallFailed as failure:
            if failure.told in NOTHING_APPENDED:
                self.refused.add(body)
            raise
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

    await _from_everywhere(peer, address, call)


async def publish_through(
    peer: Peer, address: str, journal: Journal, acknowledged: int, fault: Callable[[], None]
) -> None:
    """Publish on all connections and subjects; let ``fault`` happen half-way; go on until so many are acknowledged."""
    fault_at = journal.acknowledged + acknowledged // 2
    enough = journal.acknowledged + acknowledged

    async def call(client: Client, subject: str) -> None:
        while journal.acknowledged < enough:
            try:
                await journal.publish(client, subject)
            except CallFailed as failure:
                if failure.told not in NOTHING_APPENDED | UNKNOWN:
                    raise
            else:
                if journal.acknowledged == fault_at:
                    fault()

    await _from_everywhere(peer, address, call)


async def _from_everywhere(peer: Peer, address: str, call: Callable[[Client, str], object]) -> None:
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


async def check_whole(peer: Peer, address: str, journal: Journal) -> None:
    """Hold everything that is stored against the journal."""
    for subject, acknowledged in journal.bodies.items():
        stored = await fetch_all(peer, address, subject, range(1, await last_id(peer, address, subject) + 1))
        assert stored.items() >= acknowledged.items()
        assert len(set(stored.values())) == len(stored), "a message was stored twice"
        assert not journal.refused & set(stored.values()), "nothing was appended, it was said"


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
