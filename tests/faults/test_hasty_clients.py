"""F10, F11, F12: clients that cancel, that run out of time, and that do not read."""

import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from statistics import median

import pytest
import trio
from blackhole import Blackhole
from e2e_broker import BrokerProcess, eventually
from e2e_wire import Wire
from postgres_kit import Outside, until

from trio_broker import connect
from trio_broker._proto import broker_pb2 as pb
from trio_broker.message import Draft

from .clients import Subscriber
from .cluster import CONNECTIONS_MAX, cluster
from .storm import KEPT, SUBJECTS, storm

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
STORM = 10_000
MEMORY_MAX_BYTES = 32 * 1024 * 1024
"""How much a broker may grow: the C library gives back what it likes."""
SUBSCRIBERS = 100
WAVE = 50
WAVES = 24
"""While one stalls: together more than may wait for a subscriber."""
WAVES_BEFORE = 8


# -- F10 --------------------------------------------------------------------------------------------------------


async def test_ten_thousand_subscriptions_cancelled_at_random_points_leave_nothing(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S), Outside(postgres_url) as outside:
        async with cluster(postgres_url, "--cache-bytes", "0", brokers=1) as brokers:
            (broker,) = brokers.running()
            system = broker.system()
            async with connect(broker.address) as client:
                for subject in SUBJECTS:
                    await client.publish_batch([Draft(subject, bytes(100), None)] * KEPT)
            descriptors = system.num_fds()
            dice = random.Random(10)
            await trio.to_thread.run_sync(storm, broker.address, STORM // 10, dice)  # what is made once is made here
            await trio.to_thread.run_sync(eventually, broker.subscribers, 0)
            threads, memory_bytes = system.num_threads(), system.memory_info().rss
            await trio.to_thread.run_sync(storm, broker.address, STORM, dice)
            await trio.to_thread.run_sync(eventually, broker.subscribers, 0)
            await brokers.at_rest(postgres_url)
            # the pool of connections may have grown to its size meanwhile
            assert system.num_fds() <= descriptors + CONNECTIONS_MAX
            assert system.num_threads() <= threads + CONNECTIONS_MAX
            assert system.memory_info().rss - memory_bytes < MEMORY_MAX_BYTES
            await trio.to_thread.run_sync(eventually, outside.active, [])


# -- F11 --------------------------------------------------------------------------------------------------------


@contextmanager
def commits_held(outside: Outside) -> Generator[None]:
    """Let every commit of messages wait, when all is done but that, until the block ends."""
    outside.do(
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(11); RETURN NULL; END $$"
    )
    outside.do(
        "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON trio_broker.messages "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()"
    )
    with outside.holding("SELECT pg_advisory_lock(11)"):
        yield


def rows(outside: Outside) -> list[tuple]:
    return outside.do("SELECT id FROM trio_broker.messages")


def check_repeated(broker: BrokerProcess, outside: Outside) -> None:
    """Who repeats the publish at a broker gets the id of the one row that there is."""
    with Wire(broker.address) as wire:
        again = wire.publish("orders", b"once", keep=True, idempotency_key="k")
        wire.finish(again)
        assert again.failure() is None
        (answer,) = again.messages()
        published = pb.PublishResponse.FromString(answer)
        assert published.duplicate
        assert [(published.id,)] == rows(outside)


async def test_a_deadline_between_commit_and_the_databases_answer_and_a_retry_with_the_key(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S), Blackhole.before(postgres_url) as hole, Outside(postgres_url) as outside:
        async with cluster(postgres_url, urls=[hole.through(postgres_url), postgres_url]) as brokers:
            with Wire(brokers[0].address) as wire:
                with commits_held(outside):
                    late = wire.publish("orders", b"once", keep=True, idempotency_key="k", timeout="2S")
                    await until(outside.stuck)
                    hole.hold_replies()
                failure = await trio.to_thread.run_sync(wire.failed, late)
                assert failure.told == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
            await until(lambda: rows(outside))
            await trio.to_thread.run_sync(check_repeated, brokers[1], outside)
            hole.release()
            await trio.to_thread.run_sync(check_repeated, brokers[0], outside)


async def test_a_deadline_between_the_brokers_answer_and_its_client_and_a_retry_with_the_key(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S), Outside(postgres_url) as outside:
        async with cluster(postgres_url) as brokers:
            with Blackhole.before(f"tcp://{brokers[0].address}") as hole:
                async with connect(f"127.0.0.1:{hole.port}") as client:
                    hole.hold_replies()
                    with pytest.raises(trio.TooSlowError), trio.fail_after(1):
                        await client.publish("orders", b"once", None, idempotency_key="k")
            await until(lambda: rows(outside))
            for broker in brokers.running():
                await trio.to_thread.run_sync(check_repeated, broker, outside)


# -- F12 --------------------------------------------------------------------------------------------------------


async def test_one_that_never_reads_among_a_hundred_costs_the_others_nothing(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with cluster(postgres_url) as brokers, connect(brokers[0].address) as publisher:
            healthy = [Subscriber(brokers, number, "orders") for number in range(SUBSCRIBERS - 1)]

            async def wave() -> float:
                began = time.monotonic()
                (*_, last_id) = await publisher.publish_batch([Draft("orders", bytes(100), None)] * WAVE)
                assert isinstance(last_id, int)
                for subscriber in healthy:
                    await subscriber.reach(last_id)
                return time.monotonic() - began

            async with trio.open_nursery() as nursery:
                for subscriber in healthy:
                    nursery.start_soon(subscriber.run)
                await wave()
                alone = [await wave() for _ in range(WAVES_BEFORE)]
                memory_bytes = brokers[0].system().memory_info().rss
                with Wire(brokers[0].address, window=0) as wire:
                    stalled = wire.subscribe("orders")
                    wire.stand(stalled)
                    beside = [await wave() for _ in range(WAVES)]
                    assert brokers[0].system().memory_info().rss - memory_bytes < MEMORY_MAX_BYTES
                    wire.open_window(stalled, 2**26)
                    first = WAVE * (1 + WAVES_BEFORE) + 1
                    await trio.to_thread.run_sync(
                        wire.read_until, lambda: stalled.data.count(bytes(100)) >= WAVE * WAVES
                    )
                    assert [message.id for message in stalled.received()] == [*range(first, first + WAVE * WAVES)]
                print(f"a wave: {median(alone):.3f} s, with one that stalls {median(beside):.3f} s")
                lags = [broker.metric("trio_broker_subscriber_lags_total") for broker in brokers.running()]
                assert lags == [1, 0], "others fell behind too"
                assert all(subscriber.ends == [] for subscriber in healthy)
                nursery.cancel_scope.cancel()
