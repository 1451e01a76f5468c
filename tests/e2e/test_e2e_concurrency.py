"""Eight clients that publish, subscribe and fetch at the same time, through each gRPC library, on a durable store."""

from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from e2e_broker import BrokerProcess, sqlite_url
from e2e_peers import Client, Peer, Stream

CLIENTS = 8
MESSAGES = 1_000
"""What each client publishes: every other message to a subject that all share, the rest to one of its own."""
CALLERS = 5
"""How many of a client's calls are under way at once, besides its subscriptions."""
SHARED_READERS = 2
FETCHED_EVERY = 10


@pytest.fixture
def roomy_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """All clients share one Python process with the test: none shall be cut for reading slowly."""
    everything = str(CLIENTS * MESSAGES)
    with BrokerProcess(sqlite_url(tmp_path_factory.mktemp("store")), "--subscriber-messages", everything) as process:
        yield process
        process.stop()


class Journal:
    """What the clients were told and heard of one subject: the body under each id."""

    def __init__(self, subject: str, count: int) -> None:
        self.subject = subject
        self.count = count
        self.published: dict[int, bytes] = {}
        self.heard: list[dict[int, bytes]] = []

    async def publish(self, client: Client, body: bytes) -> None:
        id_ = (await client.publish(self.subject, body, keep=True)).id
        assert id_ not in self.published
        self.published[id_] = body
        if id_ % FETCHED_EVERY == 0:
            fetched = await client.fetch(self.subject, id_)
            assert (fetched.id, fetched.body) == (id_, body)

    async def listen(self, stream: Stream) -> None:
        """Read all that is published; it comes from id 1 on without a hole."""
        heard: dict[int, bytes] = {}
        self.heard.append(heard)
        for id_ in range(1, self.count + 1):
            message = await stream.receive()
            assert message.id == id_
            heard[id_] = message.body

    def check(self) -> None:
        assert sorted(self.published) == list(range(1, self.count + 1))
        assert len(set(self.published.values())) == self.count
        assert all(heard == self.published for heard in self.heard)


async def call(client: Client, work: Iterator[tuple[Journal, bytes]]) -> None:
    """Be one caller of a client."""
    for journal, body in work:
        await journal.publish(client, body)


def test_eight_clients_publish_subscribe_and_fetch_at_once(
    roomy_broker: BrokerProcess, peer: Peer, subject: str
) -> None:
    shared = Journal(f"{subject}.shared", CLIENTS * MESSAGES // 2)
    own = [Journal(f"{subject}.{n}", MESSAGES // 2) for n in range(CLIENTS)]

    async def scenario(peer: Peer) -> None:
        async with AsyncExitStack() as stack:
            tasks = []
            for n in range(CLIENTS):
                client = await stack.enter_async_context(peer.connect(roomy_broker.address))
                for journal in (own[n], shared)[: 2 if n < SHARED_READERS else 1]:
                    stream = await stack.enter_async_context(client.subscribe(journal.subject))
                    tasks.append(journal.listen(stream))
                work = iter([((own[n], shared)[m % 2], b"%d of client %d" % (m, n)) for m in range(MESSAGES)])
                tasks += [call(client, work) for _ in range(CALLERS)]
            await peer.together(tasks)

    peer.run(scenario)
    for journal in (shared, *own):
        journal.check()
    assert len(shared.heard) == SHARED_READERS
