"""F5, F6, F7, F9: a database that answers late, out of order, to nobody who listens, or with its past held open."""

import time
from contextlib import closing
from functools import partial

import psycopg
import pytest
import trio
from blackhole import Blackhole
from e2e_broker import eventually
from e2e_wire import Wire
from postgres_kit import Outside

from trio_broker._proto import broker_pb2 as pb

from .cluster import Cluster, cluster
from .lossy import lossy, require_loss
from .oracle import FAULT_S, Oracle, rounds

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
ROUND = 200
"""Publishes acknowledged before each fault, during it, and after it."""
LOSS = 0.05
"""Of the packets between the broker and its database."""
LATENCY_S = 0.25
"""Each way: half a second for a round trip."""
FLOOD = 900
"""Calls at once: fewer than may be open on one connection."""
DEADLINE_S = 2
SLACK_S = 1
MEMORY_MAX_BYTES = 64 * 1024 * 1024
"""How much a broker may grow while its database is slow."""
FLOOR = 0.2
"""Of the rate of publishing without the snapshot; what is lost is told, and belongs to a quiet machine."""

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"


def flood(address: str) -> None:
    """Make more calls than a slow database can answer: each ends by its deadline."""
    publish = pb.PublishRequest(subject="orders.flood", body=bytes(50), keep=True)
    fetch = pb.FetchRequest(subject="orders.flood", id=1)
    with Wire(address) as wire:
        began = time.monotonic()
        wire.finish(
            *[wire.prepare("/broker.Broker/Publish", publish, timeout=f"{DEADLINE_S}S") for _ in range(FLOOD // 2)],
            *[wire.prepare("/broker.Broker/Fetch", fetch, timeout=f"{DEADLINE_S}S") for _ in range(FLOOD // 2)],
        )
        assert time.monotonic() - began < DEADLINE_S + SLACK_S


@pytest.mark.parametrize("loss", [0.0, LOSS], ids=["slow", "slow and lossy"])
async def test_a_slow_database_holds_publishers_back_and_nothing_else(postgres_url: str, loss: float) -> None:
    with trio.fail_after(SAFETY_S + FAULT_S), Blackhole.before(postgres_url) as hole:
        if loss:
            require_loss(hole.port)
        async with cluster(postgres_url, urls=[hole.through(postgres_url)]) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                await oracle.more(ROUND)
                accepted, memory_bytes = hole.accepted, brokers[0].system().memory_info().rss
                hole.slow(LATENCY_S)
                with lossy(hole.port, loss):
                    for _ in rounds(least=1):
                        await trio.to_thread.run_sync(flood, brokers[0].address)
                        await oracle.more(len(oracle.publishers))
                        assert brokers[0].get("/readyz")[0] == 200
                assert brokers[0].system().memory_info().rss - memory_bytes < MEMORY_MAX_BYTES
                # a deadline ends a query and its connection; who waited has its turn, and its own deadline soon
                assert hole.accepted - accepted <= FLOOD // 20, "connections were made again and again"
                hole.slow()
                await brokers.all_ready(time.monotonic())
                await oracle.more(ROUND)
            assert set(oracle.errors()) <= {"OUTCOME_UNKNOWN", "NOT_APPLIED"}  # out of time


async def test_a_listener_that_is_ended_again_and_again_delays_nothing_and_listens_again(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S + FAULT_S), Outside(postgres_url) as outside:
        async with cluster(postgres_url) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                for _ in rounds(least=3):
                    await oracle.more(ROUND)
                    outside.terminate(*[pid for (pid,) in outside.do(LISTENERS)])
                await oracle.more(ROUND)
                await all_listen(brokers, 1)
            assert not oracle.errors()


async def test_brokers_that_hear_nothing_deliver_what_others_published_all_the_same(postgres_url: str) -> None:
    """Their listeners cannot connect for as long as it takes; the metric says so, and then that they listen again."""
    with trio.fail_after(SAFETY_S + FAULT_S), Blackhole.before(postgres_url) as hole:
        async with cluster(postgres_url, "--store-listen", hole.through(postgres_url)) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                await all_listen(brokers, 1)
                await oracle.more(ROUND)
                hole.hold()
                hole.cut()
                await all_listen(brokers, 0)
                for _ in rounds(least=1):
                    await oracle.more(ROUND)
                await all_listen(brokers, 0)
                assert all(broker.get("/readyz")[0] == 200 for broker in brokers.running())
                hole.cut()
                hole.release()
                await all_listen(brokers, 1)
                await oracle.more(ROUND)
            assert not oracle.errors()


async def all_listen(brokers: Cluster, connected: int) -> None:
    for broker in brokers.running():
        metric = partial(broker.metric, "trio_broker_listen_connected")
        await trio.to_thread.run_sync(eventually, metric, connected)


async def test_ten_publishers_whose_commits_overtake_each_other_are_read_in_order_everywhere(postgres_url: str) -> None:
    with trio.fail_after(SAFETY_S + FAULT_S), Outside(postgres_url) as outside:
        async with cluster(postgres_url) as brokers:
            outside.do(
                "CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(random() * 0.03); RETURN NULL; END $$"
            )
            outside.do(
                "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON trio_broker.messages "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()"
            )
            oracle = Oracle(brokers, ["orders"])
            async with oracle.at_work(publishers=10, subscribers=4, pause_s=0.0):
                for _ in rounds(least=1):
                    await oracle.more(ROUND)
            assert not oracle.errors()


def publishes_per_s(address: str, subject: str) -> float:
    """Publish, one flush after the other, messages that soon expire, for `FAULT_S`."""
    count, began = 0, time.monotonic()
    with Wire(address) as wire:
        while (took_s := time.monotonic() - began) < FAULT_S:
            wire.finish(*wire.publish_together(subject, 10, body=bytes(100), expirationSeconds=1))
            count += 10
    return count / took_s


async def test_a_snapshot_that_stays_open_slows_nobody_much(postgres_url: str) -> None:
    """Vacuum frees nothing meanwhile: neither what is swept nor old versions of the subjects' rows."""
    with trio.fail_after(SAFETY_S + 2 * FAULT_S), Outside(postgres_url) as outside:
        async with cluster(postgres_url) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                before = await trio.to_thread.run_sync(publishes_per_s, brokers[0].address, "orders.before")
                with closing(psycopg.connect(postgres_url, application_name="outside")) as connection:
                    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                    connection.execute("SELECT count(*) FROM trio_broker.messages")
                    during = await trio.to_thread.run_sync(publishes_per_s, brokers[0].address, "orders.during")
                    await oracle.more(ROUND)
                print(f"publishes/s: {before:.0f}, with a snapshot open for {FAULT_S} s {during:.0f}")
                assert during > before * FLOOR
                await trio.to_thread.run_sync(eventually, lambda: swept(outside), True)
            assert not oracle.errors()


def swept(outside: Outside) -> bool:
    """Nothing that has expired is left for more than a few steps."""
    ((left,),) = outside.do(
        "SELECT count(*) FROM trio_broker.messages WHERE expires_at < clock_timestamp() - interval '2 seconds'"
    )
    return left == 0
