"""A broker on gRPC in this process, where its tasks, objects and clock can be seen.

Threads:   the trio thread. Clients may be anywhere.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from trio_broker.broker import Broker, open_broker
from trio_broker.rpc.server import Server
from trio_broker.service.servicer import BrokerService


@asynccontextmanager
async def served(store: str, fetches_at_once: int = sys.maxsize) -> AsyncGenerator[tuple[Broker, str]]:
    """Serve for the length of the block, which gets the broker and its address."""
    async with open_broker(store) as broker, trio.open_nursery() as nursery:
        server = Server()
        server.add_service(BrokerService(broker, fetches_at_once).service)
        port = await nursery.start(server.serve_async)
        yield broker, f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()
