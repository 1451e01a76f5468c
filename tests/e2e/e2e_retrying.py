"""A gRPC client that retries as every gRPC library can: by its service config, with no code of its own.

Owns:      the policy; publishing while something is done to the broker.
Not here:  what is done (the tests).
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import grpc
from e2e_journal import Journal
from e2e_peers import OWN_CONNECTION, SERVICE, Client, GrpcioAio, GrpcioAioClient, T, Task

CALLERS = 20
PATIENCE_S = 120
"""For one scenario; to stop and start a broker is part of it."""
PUBLISHES_MIN = 500
"""Before what is done, and again after."""

POLICY = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.5s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class Retrying(GrpcioAio):
    """grpcio on asyncio, with `POLICY`."""

    def run(self, scenario: Callable[..., Task[T]], *args: object) -> T:
        return asyncio.run(asyncio.wait_for(scenario(self, *args), PATIENCE_S))

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncGenerator[Client]:
        options = (*OWN_CONNECTION, ("grpc.service_config", json.dumps(POLICY)))
        async with grpc.aio.insecure_channel(address, options) as channel:
            yield GrpcioAioClient(channel)


async def publish_meanwhile(peer: Retrying, address: str, journal: Journal, do: Callable[[], None]) -> None:
    """Publish from `CALLERS` at once, on and on; when some are acknowledged, call ``do`` in a thread; then some more.

    Raises:
        CallFailed: as soon as any publish fails, after all retries.
    """
    enough = math.inf
    under_load = asyncio.Event()

    async def call(client: Client, subject: str) -> None:
        while journal.acknowledged < enough:
            await journal.publish(client, subject)
            if journal.acknowledged >= PUBLISHES_MIN:
                under_load.set()

    async with peer.connect(address) as client, asyncio.TaskGroup() as callers:
        for number in range(CALLERS):
            callers.create_task(call(client, journal.subjects[number % len(journal.subjects)]))
        await under_load.wait()
        await asyncio.to_thread(do)
        enough = journal.acknowledged + PUBLISHES_MIN
