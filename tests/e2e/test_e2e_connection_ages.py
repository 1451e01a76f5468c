"""Connections that reach their age while messages are published: nobody misses one, and nobody gets one twice."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess
from e2e_failure import CallFailed
from e2e_peers import PEERS, Client, Peer

from trio_broker import After, Draft, Message
from trio_broker.client import Client as OwnClient
from trio_broker.client import connect
from trio_broker.errors import BrokerError, ConnectionLost, Draining

AGES = ("--connection-max-age", "300ms", "--connection-max-age-grace", "200ms")
SUBSCRIBERS = 10
MOVES = 4
"""How often each subscriber is to be moved."""
END = b"the end"


class Trial:
    """A publisher and subscribers with the project's own client, which connect again whenever they are asked to."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.published: list[bytes] = []
        """What is acknowledged, in order."""
        self.received: list[list[Message]] = [[] for _ in range(SUBSCRIBERS)]
        self.moves = [0] * SUBSCRIBERS
        self.ends: list[tuple[Draining, dict[str, str]]] = []
        """How streams ended, and the metadata that they should have had."""
        self.refused: list[ConnectionLost] = []
        """New calls on connections that take none."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._again_and_again, self._publish)
            for number in range(SUBSCRIBERS):
                nursery.start_soon(self._again_and_again, partial(self._follow, number))

    async def _again_and_again(self, work: Callable[[OwnClient], Awaitable[bool]]) -> None:
        """Do it over one connection after the other, until it is done."""
        done = False
        while not done:
            try:
                async with connect(self._address) as client:
                    done = await work(client)
            except ConnectionLost as error:
                self.refused.append(error)

    async def _publish(self, client: OwnClient) -> bool:
        """Publish numbers until everybody has been moved; what is not acknowledged is published again."""
        begin = len(self.published)
        try:
            async with client.publish_stream() as stream:
                while min(self.moves) < MOVES:
                    bodies = [b"%d" % (len(self.published) + place) for place in range(20)]
                    await stream.send([Draft("orders", body, None) for body in bodies])
                    for body in bodies:
                        assert isinstance(await anext(stream), int)
                        self.published.append(body)
        except Draining as error:
            self.ends.append((error, {"acknowledged": str(len(self.published) - begin)}))
            return False
        await client.publish("orders", END, None)
        self.published.append(END)
        return True

    async def _follow(self, number: int, client: OwnClient) -> bool:
        received = self.received[number]
        try:
            async with client.subscribe("orders", start=After(received[-1].id if received else 0)) as messages:
                async for message in messages:
                    received.append(message)
                    if message.body == END:
                        return True
        except Draining as error:
            self.ends.append((error, {"last_delivered_id": str(received[-1].id)} if received else {}))
            self.moves[number] += 1
        return False


async def test_subscribers_and_streams_of_publishes_go_on_over_the_next_connection(database: Path) -> None:
    with BrokerProcess(f"sqlite:///{database}", *AGES) as broker, trio.fail_after(SAFETY_S):
        trial = Trial(broker.address)
        try:
            await trial.run()
        except* BrokerError as group:
            raise AssertionError(f"after {trial.moves} moves") from group
        assert broker.metric("trio_broker_connections_aged_total") >= SUBSCRIBERS * MOVES
        broker.stop()
    assert all(error.retryable for error in trial.refused)
    for error, metadata in trial.ends:
        assert (error.metadata, error.retry_after_s) == (metadata, 0)
    assert trial.published == [*(b"%d" % number for number in range(len(trial.published) - 1)), END]
    for received in trial.received:
        assert [message.id for message in received] == list(range(1, len(trial.published) + 1))
        assert [message.body for message in received] == trial.published


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
