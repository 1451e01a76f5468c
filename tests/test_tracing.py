"""What traces keep while calls come and go. What they say of them: tests/e2e/test_e2e_traces.py."""

from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from opentelemetry.sdk.trace import TracerProvider

from trio_broker import connect, open_broker
from trio_broker.errors import BrokerError, ExpiredId
from trio_broker.rpc import handlers
from trio_broker.rpc.call import Call
from trio_broker.rpc.server import Server
from trio_broker.rpc.status import Refusals
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


async def test_nothing_is_kept_of_a_fetch_that_is_over_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a task, which begins a little later than the call: a deadline or a shortage of memory may come between."""
    finish_group = handlers.finish_group

    async def expire_first(calls: list[Call], work: Awaitable[None], refusals: Refusals) -> None:
        for call in calls:
            call.app.expire(call)
        await finish_group(calls, work, refusals)

    monkeypatch.setattr(handlers, "finish_group", expire_first)
    tracing = Tracing(TracerProvider(shutdown_on_exit=False), "memory")
    async with served(tracing) as address, connect(address) as client:
        with pytest.raises(BrokerError):
            await client.fetch("orders", 1)
        await trio.testing.wait_all_tasks_blocked()
    assert tracing._spans == {}
