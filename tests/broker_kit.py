"""A broker on a store that a test drives, and calls in tasks of their own."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from trial_store import TrialStore

from trio_broker import Broker, BrokerError
from trio_broker.broker import run_broker
from trio_broker.config import Config


@asynccontextmanager
async def broker_on(store: TrialStore, **settings: object) -> AsyncGenerator[Broker]:
    async with run_broker(store, Config(**settings)) as broker:
        yield broker


class Call:
    """A call in a task of its own: how it ended, once it has."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[object]], *args: object) -> None:
        self.ended: object = "still waits"
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call, *args)

    async def _run(self, call: Callable[..., Awaitable[object]], *args: object) -> None:
        with self.scope:
            try:
                self.ended = await call(*args)
            except BrokerError as error:
                self.ended = type(error)
        if self.scope.cancelled_caught:
            self.ended = "cancelled"
