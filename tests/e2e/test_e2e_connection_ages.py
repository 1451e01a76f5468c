"""Connections that reach their age while messages are published: nobody misses one, and nobody gets one twice."""

import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess
from e2e_failure import CallFailed
from e2e_peers import PEERS, Client, Peer

from trio_broker import After, Draft
from trio_broker.client import connect
from trio_broker.errors import BrokerError, ConnectionLost, Draining

AGES = ("--connection-max-age", "300ms", "--connection-max-age-grace", "200ms")
SUBSCRIBERS = 10
MOVES = 4
"""How often each subscriber is to be moved."""
END = b"the end"


async def test_subscribers_and_streams_of_publishes_go_on_over_the_next_connection(database: object) -> None:
    received: list[list[int]] = [[] for _ in range(SUBSCRIBERS)]
    bodies: list[list[bytes]] = [[] for _ in range(SUBSCRIBERS)]
    moves = [0] * SUBSCRIBERS
    published: list[bytes] = []

    async def follow(number: int) -> None:
        mine = received[number]
        while not bodies[number] or bodies[number][-1] != END:
            try:
                async with (
                    connect(broker.address) as client,
                    client.subscribe("orders", start=After(mine[-1] if mine else 0)) as messages,
                ):
                    async for message in messages:
                        mine.append(message.id)
                        bodies[number].append(message.body)
                        if message.body == END:
                            break
            except Draining as error:
                assert error.retry_after_s == 0
                if mine:
                    assert error.metadata == {"last_delivered_id": str(mine[-1])}
                moves[number] += 1
            except ConnectionLost as error:
                assert error.retryable, "a new call on a connection that takes none"

    async def publish() -> None:
        """Publish numbers until everybody has been moved; what is not acknowledged is published again."""
        while True:
            try:
                async with connect(broker.address) as client, client.publish_stream() as stream:
                    acknowledged = len(published)
                    while min(moves) < MOVES:
                        batch = [b"%d" % (len(published) + place) for place in range(20)]
                        await stream.send([Draft("orders", body, None) for body in batch])
                        for body in batch:
                            assert isinstance(await anext(stream), int)
                            published.append(body)
                    await client.publish("orders", END, None)
                    return
            except Draining as error:
                assert error.metadata["acknowledged"] == str(len(published) - acknowledged)
            except ConnectionLost as error:
                assert error.retryable

    with BrokerProcess(f"sqlite:///{database}", *AGES) as broker, trio.fail_after(SAFETY_S):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish)
                for number in range(SUBSCRIBERS):
                    nursery.start_soon(follow, number)
        except* BrokerError as group:
            raise AssertionError(f"after {moves} moves") from group
        assert broker.metric("trio_broker_connections_aged_total") >= SUBSCRIBERS * MOVES
        for ids in received:
            assert ids == list(range(1, len(published) + 2))
        for each in bodies:
            assert each == [*published, END]
        broker.stop()


@pytest.mark.parametrize("name", ["grpcio", "grpcio.aio"])
def test_ordinary_clients_see_nothing_but_streams_that_end(name: str) -> None:
    async def publish(client: Client, moves: list[int]) -> int:
        count = 1
        while min(moves) < 2:
            assert (await client.publish("orders", b"x", keep=True)).id == count
            count += 1
        return (await client.publish("orders", END, keep=True)).id

    async def follow(client: Client, moves: list[int], number: int) -> int:
        last_id, body = 0, b""
        while body != END:
            async with client.subscribe("orders", after_id=last_id) as stream:
                try:
                    while body != END:
                        message = await stream.receive()
                        assert message.id == last_id + 1
                        last_id, body = message.id, message.body
                except CallFailed as failure:
                    assert failure.told == ("UNAVAILABLE", "DRAINING")  # noqa: PT017
                    assert failure.metadata == {"last_delivered_id": str(last_id)}  # noqa: PT017
                    moves[number] += 1
        return last_id

    async def scenario(peer: Peer) -> None:
        moves = [0] * 3
        async with peer.connect(broker.address) as client:
            last_id, *got = await peer.together(
                [publish(client, moves), *(follow(client, moves, number) for number in range(3))]
            )
        assert got == [last_id] * 3

    with BrokerProcess("memory:", *AGES) as broker:
        PEERS[name].run(scenario)
        broker.stop()
