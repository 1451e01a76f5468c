"""Brokers on one log that hear of each other by the store alone."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from persistence import open_store
from trio_broker import Broker, New
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.fanout import POLL, WAKEUP


@asynccontextmanager
async def two_brokers(url: str, **settings: float) -> AsyncGenerator[tuple[Broker, Broker]]:
    config = Config.model_validate(settings)
    async with AsyncExitStack() as stack:
        brokers = []
        for _ in range(2):
            store = await stack.enter_async_context(open_store(url, poll_interval_s=config.poll_interval))
            brokers.append(await stack.enter_async_context(run_broker(store, config)))
        yield brokers[0], brokers[1]


async def test_what_one_broker_appends_reaches_subscribers_of_another(postgres_url: str) -> None:
    async with two_brokers(postgres_url) as (ours, theirs), ours.subscribe("a") as messages:
        with trio.fail_after(10):
            for id_ in range(1, 21):
                assert await theirs.publish("a", b"%d" % id_, None) == id_
                message = await messages.receive()
                assert (message.id, message.body) == (id_, b"%d" % id_)
        assert ours.fanout.learned[WAKEUP] + ours.fanout.learned[POLL] == 20


async def test_who_subscribes_gets_what_is_appended_elsewhere_from_then_on(postgres_url: str) -> None:
    async with two_brokers(postgres_url) as (ours, theirs):
        with trio.fail_after(20):
            for round_ in range(1, 31):
                await theirs.publish("a", b"before", None)
                async with ours.subscribe("a", start=New()) as messages:
                    id_ = await theirs.publish("a", b"after", None)
                    assert (await messages.receive()).id == id_ == 2 * round_


async def test_two_brokers_at_once_keep_the_order_of_ids(postgres_url: str) -> None:
    async with (
        two_brokers(postgres_url) as (ours, theirs),
        ours.subscribe("a") as here,
        theirs.subscribe("a") as there,
        trio.open_nursery() as nursery,
    ):

        async def publish(broker: Broker) -> None:
            for _ in range(100):
                await broker.publish("a", b"", None)

        with trio.fail_after(30):
            for broker in (ours, theirs):
                nursery.start_soon(publish, broker)
            for messages in (here, there):
                assert [(await messages.receive()).id for _ in range(200)] == list(range(1, 201))
