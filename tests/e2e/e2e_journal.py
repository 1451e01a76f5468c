"""What clients were told, kept beside the broker, to hold against what is stored after a fault.

Owns:      `Journal`; publishing through faults; the comparison.
Not here:  the faults (the tests).
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from itertools import count, cycle, islice

import pytest
from e2e_failure import CallFailed
from e2e_peers import Client, Peer, Task

SUBJECTS = [f"orders.{n}" for n in range(4)]
CONNECTIONS = 4
CALLERS = 200
"""Publishes under way at any time, over all connections."""
READERS = 50
UNASSIGNED = 2**62

NOTHING_APPENDED: set[tuple[str, str | None]] = {
    ("UNAVAILABLE", "STORAGE_UNAVAILABLE"),
    ("RESOURCE_EXHAUSTED", "OVERLOADED"),
}
"""What a broker says of a publish that may safely be tried again."""
CUT_OFF: set[tuple[str, str | None]] = {("UNAVAILABLE", None)}
"""What a gRPC library says when the broker is killed."""
UNKNOWN = CUT_OFF | {("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")}


class Journal:
    """What the clients were told, over all rounds."""

    def __init__(self, subjects: Sequence[str] = SUBJECTS) -> None:
        self.subjects = subjects
        self.bodies: dict[str, dict[int, bytes]] = {subject: {} for subject in subjects}
        self.unchecked: dict[str, dict[int, bytes]] = {subject: {} for subject in subjects}
        """Those of the last round."""
        self.refused: set[bytes] = set()
        """Those of which the broker said that nothing was appended."""
        self.last_ids = dict.fromkeys(subjects, 0)
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


async def publish_until_failed(
    peer: Peer,
    addresses: Sequence[str],
    journal: Journal,
    acknowledged: int,
    fault: Callable[[], None],
    expected: set[tuple[str, str | None]],
) -> None:
    """Publish on all connections and subjects; let ``fault`` happen after so many acknowledgements, and feel it.

    Every caller goes on until one of its publishes fails afterwards, in one of the ways that are ``expected``.
    """
    fault_at = journal.acknowledged + acknowledged

    async def call(client: Client, subject: str) -> None:
        while True:
            try:
                await journal.publish(client, subject)
            except CallFailed as failure:
                if failure.told not in expected:
                    raise
                if journal.acknowledged >= fault_at:
                    return
            else:
                if journal.acknowledged == fault_at:
                    fault()

    await _from_everywhere(peer, addresses, journal, call)


async def publish_through(
    peer: Peer, addresses: Sequence[str], journal: Journal, acknowledged: int, fault: Callable[[], None]
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

    await _from_everywhere(peer, addresses, journal, call)


async def _from_everywhere(
    peer: Peer, addresses: Sequence[str], journal: Journal, call: Callable[[Client, str], Task[None]]
) -> None:
    """Let `CALLERS` make calls over `CONNECTIONS` connections, or over one to each of more addresses than that."""
    async with AsyncExitStack() as stack:
        connections = max(CONNECTIONS, len(addresses))
        clients = [
            await stack.enter_async_context(peer.connect(address)) for address in islice(cycle(addresses), connections)
        ]
        subjects = journal.subjects
        await peer.together(
            [call(clients[n % connections], subjects[n // connections % len(subjects)]) for n in range(CALLERS)]
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
