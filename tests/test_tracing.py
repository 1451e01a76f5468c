"""What traces keep while calls come and go. What they say of them: tests/e2e/test_e2e_traces.py."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from opentelemetry.sdk.trace import TracerProvider

from trio_broker import connect, open_broker
from trio_broker.errors import ExpiredId
from trio_broker.rpc.server import Server
from trio_broker.service.servicer import BrokerService
from trio_broker.tracing import Tracing


@asynccontextmanager
async def served(tracing: Tracing) -> AsyncGenerator[str]:
    """Serve a traced broker for the length of the block, which gets the address."""
    async with open_broker("memory:") as broker, trio.open_nursery() as nursery:
        server = Server(on_call_over=tracing.over)
        server.add_service(BrokerService(broker, tracing=tracing).service)
        port = await nursery.start(server.serve_async)
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def test_nothing_is_kept_of_a_call_that_is_over() -> None:
    tracing = Tracing(TracerProvider(shutdown_on_exit=False), "memory")
    async with served(tracing) as address, connect(address) as client:
        async with client.subscribe("orders") as messages:
            id_ = await client.publish("orders", b"x", 0)
            await anext(messages)
            assert len(tracing._spans) == 1
        with pytest.raises(ExpiredId):
            await client.fetch("orders", id_)
        with trio.move_on_after(0):
            await client.publish("orders", b"cancelled")
        await client.publish("orders", b"y", None)
    assert tracing._spans == {}
