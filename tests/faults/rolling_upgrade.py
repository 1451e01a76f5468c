"""Brokers behind a Service that are replaced one at a time, as Kubernetes does it, under the eyes of gRPC clients.

Owns:      the clients, the order in which brokers are replaced, what has to come of it; the settings of the brokers.
Not here:  starting brokers, as processes or in containers (test_rolling_upgrade.py).
Threads:   the trio thread; the publishers are in one of their own.
"""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count

import trio
from e2e_peers import Client
from e2e_retrying import Retrying

from .clients import Told
from .cluster import Cluster
from .oracle import Oracle
from .service import LOOK_S, service

ROUNDS = 3
DRAIN_DELAY_S = 3 * LOOK_S
"""For longer than a Service takes to notice; the chart's are 5 s, where it looks every 2 s or so."""
SETTINGS = {"no_migrate": "true", "drain_delay": f"{DRAIN_DELAY_S}s", "grace": "10s"}
"""Of the brokers, as the chart sets them."""
CONNECTIONS = 4
CALLERS = 8
"""Publishers, over all connections."""
PAUSE_S = 0.05
"""Between two publishes of one."""
ROUND = 60
"""Publishes acknowledged before each broker is replaced, and in the end."""
SUBSCRIBERS = 20


class Publishers:
    """Clients by grpcio that know the retry policy of docs/DEPLOY.md, and idempotency keys, and nothing else."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._ending = threading.Event()

    async def run(self, address: str) -> None:
        """Publish until `end`, in a thread of their own. Fails as soon as one publish does, after all retries."""
        try:
            told = self._oracle.told
            await trio.to_thread.run_sync(Retrying().run, self._publish_all, address, told, abandon_on_cancel=True)
        finally:
            self.end()

    def end(self) -> None:
        self._ending.set()

    async def _publish_all(self, peer: Retrying, address: str, told: Mapping[str, Told]) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as callers:
            clients = [await stack.enter_async_context(peer.connect(address)) for _ in range(CONNECTIONS)]
            for number in range(CALLERS):
                callers.create_task(self._publish(clients[number % CONNECTIONS], number, told))

    async def _publish(self, client: Client, caller: int, told: Mapping[str, Told]) -> None:
        for number in count():
            if self._ending.is_set():
                return
            subject = [*told][(caller + number) % len(told)]
            key = f"{caller}.{number}"
            told[subject].sent.add(key.encode())
            id_ = (await client.publish(subject, key.encode(), keep=True, idempotency_key=key)).id
            assert id_ not in told[subject].kept, f"id {id_} of {subject} was given twice"
            told[subject].kept[id_] = key.encode()
            trio.from_thread.run_sync(self._oracle.note)
            await asyncio.sleep(PAUSE_S)


async def upgrade(brokers: Cluster) -> None:
    """Replace all of them, three times over. They have `SETTINGS`."""
    async with service(brokers) as front:
        oracle = Oracle(front, [f"orders.{n}" for n in range(10)])
        publishers = Publishers(oracle)
        async with oracle.at_work(publishers=0, subscribers=SUBSCRIBERS), trio.open_nursery() as publishing:
            publishing.start_soon(publishers.run, front.address(0))
            for _ in range(ROUNDS):
                for number in range(len(brokers.brokers)):
                    await oracle.more(ROUND)
                    await brokers.replace(number)
            await oracle.more(ROUND)
            publishers.end()
        ends = {reason for subscriber in oracle.subscribers for reason in subscriber.ends}
        assert ends == {"DRAINING"}
        assert not any(subscriber.gaps for subscriber in oracle.subscribers)
