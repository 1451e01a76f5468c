"""Three brokers on one database, or one with two workers: what one of them takes reaches subscribers of all."""

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from random import Random

import pytest
from blackhole import Blackhole
from e2e_broker import BrokerProcess, eventually
from e2e_failure import CallFailed
from e2e_peers import PEERS, Client, Peer, received
from e2e_wire import Exchange, Wire
from postgres_databases import Databases

AIO = PEERS["grpcio.aio"]
DRAINING = ("UNAVAILABLE", "DRAINING")


class Three:
    """Three brokers; one that is stopped or killed is replaced."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url = url
        self._stack = stack
        self.brokers = [self._start() for _ in range(3)]

    def replace(self, broker: BrokerProcess) -> None:
        """Start another one in the place of a broker that has ended."""
        self.brokers[self.brokers.index(broker)] = self._start()

    def wait_linked(self) -> None:
        """Wait until each of them hears both others."""
        for broker in self.brokers:
            eventually(lambda broker=broker: replicas_of(broker), "replicas: 2 of 2 others are heard")  # type: ignore[misc]

    def _start(self) -> BrokerProcess:
        return self._stack.enter_context(BrokerProcess(self._url))


def replicas_of(broker: BrokerProcess) -> str:
    """Return what it says of others when it is asked how it is."""
    return next((line for line in broker.get("/readyz")[1].splitlines() if line.startswith("replicas")), "")


@pytest.fixture(scope="module")
def started(postgres: Databases) -> Iterator[Three]:
    with postgres.new() as url, ExitStack() as stack:
        three = Three(url, stack)
        yield three
        for broker in three.brokers:
            broker.stop()


@pytest.fixture
def three(started: Three) -> Three:
    started.wait_linked()
    return started


async def connect(stack: AsyncExitStack, peer: Peer, three: Three) -> list[Client]:
    return [await stack.enter_async_context(peer.connect(broker.address)) for broker in three.brokers]


def test_what_one_takes_reaches_subscribers_of_the_others(three: Three, subject: str) -> None:
    subjects = [f"{subject}.{n}" for n in range(10)]

    async def scenario(peer: Peer) -> None:
        async with AsyncExitStack() as stack:
            first, *others = await connect(stack, peer, three)
            streams = [
                (name, await stack.enter_async_context(client.subscribe(name)))
                for client in others
                for name in subjects
            ]

            async def publish(name: str) -> None:
                for n in range(20):
                    assert (await first.publish(name, b"%d" % n, keep=True)).id == n + 1

            await peer.together([publish(name) for name in subjects])
            for name, stream in streams:
                got = await received(stream, 20)
                assert [(each.id, each.body) for each in got] == [(n + 1, b"%d" % n) for n in range(20)], name

    AIO.run(scenario)


def test_what_all_take_reaches_all_in_order(three: Three, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with AsyncExitStack() as stack:
            clients = await connect(stack, peer, three)
            streams = [await stack.enter_async_context(client.subscribe(subject)) for client in clients]

            async def publish(client: Client) -> None:
                for _ in range(100):
                    await client.publish(subject, b"x", keep=True)

            await peer.together([publish(client) for client in clients])
            for stream in streams:
                assert [each.id for each in await received(stream, 300)] == list(range(1, 301))

    AIO.run(scenario)


def test_who_subscribes_meanwhile_misses_nothing_that_is_published_after_the_headers(
    three: Three, subject: str
) -> None:
    async def scenario(peer: Peer) -> None:
        async with AsyncExitStack() as stack:
            publisher, *others = await connect(stack, peer, three)
            last_id = 0
            is_over = False

            async def publish() -> None:
                nonlocal last_id
                while not is_over:
                    last_id = (await publisher.publish(subject, b"x", keep=True)).id

            async def subscribe() -> None:
                nonlocal is_over
                for n in range(20):
                    async with others[n % 2].subscribe(subject) as stream:
                        known_id = last_id + 1  # its acknowledgement may be on its way to this process
                        ids = [each.id for each in await received(stream, 5)]
                        assert ids[0] <= known_id + 1
                        assert ids == list(range(ids[0], ids[0] + 5))
                is_over = True

            await peer.together([publish(), subscribe()])

    AIO.run(scenario)


def test_who_has_the_headers_gets_what_any_broker_acknowledges_after_them(postgres_url: str, subject: str) -> None:
    random = Random(1)
    with ExitStack() as stack:
        far = stack.enter_context(Blackhole.before(postgres_url))
        far.slow(0.01)  # the publishers' broker hears late of what the database has
        brokers = [stack.enter_context(BrokerProcess(url)) for url in (far.through(postgres_url), postgres_url)]
        for broker in brokers:
            eventually(lambda broker=broker: replicas_of(broker), "replicas: 1 of 1 others are heard")  # type: ignore[misc]
        publisher, subscriber = (stack.enter_context(Wire(broker.address)) for broker in brokers)
        for _ in range(50):
            began = time.perf_counter()
            before_id = publisher.published(publisher.publish(subject, b"before", keep=True))
            took_s = time.perf_counter() - began
            racing = publisher.publish(subject, b"racing", keep=True)
            time.sleep(took_s * random.random())  # so that the position is looked up about when it commits
            stream = subscriber.subscribe(subject)
            subscriber.stand(stream)
            publisher.read_what_is_there()
            is_late = not racing.over
            racing_id = publisher.published(racing)
            last_id = publisher.published(publisher.publish(subject, b"last", keep=True))
            subscriber.read_until(lambda stream=stream, last_id=last_id: last_id in ids_of(stream))  # type: ignore[misc]
            ids = ids_of(stream)
            assert ids == list(range(ids[0], last_id + 1))
            assert ids[0] > before_id, "what was acknowledged before is not new"
            assert racing_id in ids or not is_late, f"{racing_id} was acknowledged after the headers"
            subscriber.cancel(stream)
        for broker in brokers:
            broker.stop()


def ids_of(stream: Exchange) -> list[int]:
    return [each.id for each in stream.received()]


def test_a_subscriber_of_one_that_drains_resumes_at_another(three: Three, subject: str) -> None:
    first, second, third = three.brokers

    async def scenario(peer: Peer) -> None:
        async with AsyncExitStack() as stack:
            publisher, client, other = await connect(stack, peer, three)
            ids: list[int] = []
            is_over = False

            async def publish() -> None:
                while not is_over:
                    await publisher.publish(subject, b"x", keep=True)

            async def subscribe() -> None:
                nonlocal is_over
                with pytest.raises(CallFailed) as failure:
                    async with client.subscribe(subject) as stream:
                        ids.extend([each.id for each in await received(stream, 20)])
                        second.terminate()
                        while True:
                            ids.append((await stream.receive()).id)
                assert failure.value.told[0] == DRAINING[0]
                async with other.subscribe(subject, after_id=ids[-1]) as stream:
                    ids.extend([each.id for each in await received(stream, 100)])
                is_over = True

            await peer.together([publish(), subscribe()])
            assert ids == list(range(ids[0], ids[0] + len(ids)))

    AIO.run(scenario)
    assert second.wait() == 0
    assert second.errors() == []
    for broker in (first, third):
        eventually(lambda broker=broker: replicas_of(broker), "replicas: 1 of 1 others are heard")  # type: ignore[misc]
    three.replace(second)


def test_one_that_is_killed_is_done_without_and_another_takes_its_place(three: Three, subject: str) -> None:
    first, second, third = three.brokers

    async def publish_at_each(peer: Peer, count: int) -> None:
        async with AsyncExitStack() as stack:
            clients = await connect(stack, peer, three)
            last_id = (await clients[1].publish(subject, b"x", keep=True)).id
            streams = [await stack.enter_async_context(each.subscribe(subject, after_id=last_id)) for each in clients]
            for client in clients:
                for _ in range(count):
                    await client.publish(subject, b"x", keep=True)
            for stream in streams:
                got = [each.id for each in await received(stream, 3 * count)]
                assert got == list(range(last_id + 1, last_id + 1 + 3 * count))

    AIO.run(publish_at_each, 10)
    first.kill()
    for broker in (second, third):
        with Wire(broker.address) as wire:  # at once, though the others have not noticed
            wire.published(wire.publish(subject, b"x", keep=True))
    three.replace(first)
    AIO.run(publish_at_each, 10)
    three.wait_linked()  # when the one that was killed is taken for dead


def test_what_one_worker_takes_reaches_subscribers_of_the_other(postgres_url: str) -> None:
    with BrokerProcess(postgres_url, "--workers", "2") as broker, ExitStack() as stack:
        wires = [stack.enter_context(Wire(broker.address)) for _ in range(2)]
        for wire in wires:  # each is given to the worker that has fewer
            wire.round_trip()
        assert [broker.metric("trio_broker_connections", worker=each) for each in ("0", "1")] == [1, 1]
        streams = [wire.subscribe("orders") for wire in wires]
        for wire, stream in zip(wires, streams, strict=True):
            wire.stand(stream)
        for n in range(20):
            wire = wires[n % 2]
            assert wire.published(wire.publish("orders", b"%d" % n, keep=True)) == n + 1
        for wire, stream in zip(wires, streams, strict=True):
            wire.read_until(lambda stream=stream: len(stream.received()) == 20)  # type: ignore[misc]
            assert [each.id for each in stream.received()] == list(range(1, 21))
        for wire in wires:
            wire.close()
        broker.stop()
