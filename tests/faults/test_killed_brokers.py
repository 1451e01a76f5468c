"""F1, F21: brokers that are killed or replaced under load, and clients that go on at another one."""

import os
import time

import trio

from .cluster import cluster
from .oracle import Oracle, rounds

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
ROUND = 200
"""Publishes acknowledged before each fault, during it, and after it."""
ROLLED_SUBSCRIBERS = int(os.environ.get("TRIO_BROKER_FAULT_SUBSCRIBERS", "100"))


async def test_kill_9_of_one_broker_after_the_other_costs_nobody_a_message(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with cluster(postgres_url) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                for number in rounds(least=2):
                    await oracle.more(ROUND)
                    await brokers.kill(number % 2)
                    await oracle.more(ROUND)
                    await brokers.start(number % 2)
                    await brokers.all_ready(time.monotonic())
                await oracle.more(ROUND)
            assert oracle.errors()["CONNECTION_LOST"] > 0
            assert oracle.failed() == 0


async def test_a_broker_that_is_killed_while_it_is_the_only_one(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with cluster(postgres_url, brokers=1) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                for _ in rounds(least=1):
                    await oracle.more(ROUND)
                    await brokers.kill(0)
                    await brokers.start(0)
                await oracle.more(ROUND)
            assert oracle.errors()["CONNECTION_LOST"] > 0


async def test_a_rolling_update_of_three_brokers_moves_each_stream_once_and_fails_no_publish(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S + ROLLED_SUBSCRIBERS / 10):
        async with cluster(postgres_url, brokers=3) as brokers:
            oracle = Oracle(brokers, [f"orders.{n}" for n in range(10)])
            async with oracle.at_work(subscribers=ROLLED_SUBSCRIBERS, pause_s=0.03):
                await oracle.more(ROUND)
                for number in range(3):
                    await brokers.replace(number)
                    await oracle.more(ROUND)
            assert {tuple(subscriber.ends) for subscriber in oracle.subscribers} == {("DRAINING",)}
            assert oracle.failed() == 0
            assert set(oracle.errors()) <= {"DRAINING", "CONNECTION_LOST"}
