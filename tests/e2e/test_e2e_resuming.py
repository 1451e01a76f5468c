"""Publishers and subscribers that are cut off at random, and go on where they were.

``TRIO_BROKER_CUTS`` is how often that happens on each store; in the suite not as often as in a trial: 1,000.
"""

import os
from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
from e2e_broker import BrokerProcess

from trio_broker import After, Message, connect
from trio_broker.client import Client
from trio_broker.errors import BrokerError

CUTS = int(os.environ.get("TRIO_BROKER_CUTS", "60"))
SAFETY_S = 30 + CUTS
PUBLISHERS = SUBSCRIBERS = 3
IN_FLIGHT = 20
LIVES_S = 0.1
"""How long a connection lives at most."""


class Trial:
    def __init__(self, address: str, subject: str, seed: int) -> None:
        self.cuts = 0
        self.log: list[bytes] = []
        """What the last id was given to, as publishers know it: not in order."""
        self.last_id = 0
        self.received: list[list[Message]] = [[] for _ in range(SUBSCRIBERS)]
        self._address = address
        self._subject = subject
        self._random = Random(seed)
        self._publishing = PUBLISHERS
        self._published = trio.Event()

    async def run(self) -> None:
        with trio.fail_after(SAFETY_S):
            async with trio.open_nursery() as nursery:
                for number in range(PUBLISHERS):
                    nursery.start_soon(self._publish, number)
                for received in self.received:
                    nursery.start_soon(self._subscribe, received)

    async def _publish(self, publisher: int) -> None:
        """Publish one message after the other with keys, several in flight; what has no id is published again."""
        waiting: dict[int, bytes] = {}
        number = 0

        async def publish(client: Client) -> None:
            nonlocal number
            while self.cuts < CUTS or waiting:
                while len(waiting) < IN_FLIGHT and self.cuts < CUTS:
                    waiting[number] = f"{publisher}.{number}".encode()
                    number += 1
                started = [
                    (n, await client.start_publish(self._subject, body, None, idempotency_key=body.decode()))
                    for n, body in waiting.items()
                ]
                for n, publishing in started:
                    published_id = await publishing.id()
                    self.last_id = max(self.last_id, published_id)
                    self.log.append(waiting.pop(n))

        await self._again_and_again(publish)
        self._publishing -= 1
        if not self._publishing:
            self._published.set()

    async def _subscribe(self, received: list[Message]) -> None:
        async def subscribe(client: Client) -> None:
            last_id = received[-1].id if received else 0
            async with client.subscribe(self._subject, start=After(last_id)) as messages:
                while not (self._published.is_set() and received and received[-1].id >= self.last_id):
                    with trio.move_on_after(LIVES_S):
                        received.extend(await messages.receive_some())

        await self._again_and_again(subscribe)

    async def _again_and_again(self, work: Callable[[Client], Awaitable[None]]) -> None:
        """Do it over a connection that is soon cut, and over the next one, until it ends by itself."""
        while True:
            lives_s = self._random.uniform(0.0, LIVES_S) if self.cuts < CUTS else SAFETY_S
            with trio.move_on_after(lives_s) as life:
                async with connect(self._address) as client:
                    await work(client)
                    return
            assert life.cancelled_caught
            self.cuts += 1


@pytest.mark.parametrize("seed", [1])
async def test_who_is_cut_off_goes_on_without_gap_or_duplicate(broker: BrokerProcess, subject: str, seed: int) -> None:
    trial = Trial(broker.address, subject, seed)
    try:
        await trial.run()
    except* BrokerError as group:
        raise AssertionError(f"after {trial.cuts} cuts") from group
    assert trial.cuts >= CUTS
    assert len(trial.log) == len(set(trial.log)) == trial.last_id
    for received in trial.received:
        assert [message.id for message in received] == list(range(1, trial.last_id + 1))
        assert {message.body for message in received} == set(trial.log)
