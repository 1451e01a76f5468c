"""F13: brokers that do not reach each other, and both reach the database, which alone decides."""

import time
from collections.abc import Callable

import psutil
import pytest
import trio
from blackhole import Blackhole
from e2e_broker import BrokerProcess, eventually

from .cluster import Cluster, cluster
from .oracle import FAULT_S, Oracle, rounds

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
ROUND = 200
"""Publishes acknowledged before the partition, in each round of it, and after it."""


def peer_port(broker: BrokerProcess) -> int:
    """Where a broker listens for others: the one of its ports that it told nobody of."""
    told = {int(address.rpartition(":")[2]) for address in (broker.address, broker.metrics_address)}
    sockets = broker.system().net_connections("tcp")
    (port,) = {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN} - told
    return port


async def all_hear(brokers: Cluster, others: int) -> None:
    """Wait until every broker hears so many others."""
    for broker in brokers.running():
        line = f"replicas: {others} of 1 others are heard"
        await trio.to_thread.run_sync(eventually, lambda: line in broker.get("/readyz")[1], True)  # noqa: B023


@pytest.mark.parametrize(("hints", "cut"), [("wake-ups", Blackhole.reset), ("polling alone", Blackhole.abandon)])
async def test_brokers_that_do_not_reach_each_other_deliver_what_the_other_commits_all_the_same(
    postgres_url: str, hints: str, cut: Callable[[Blackhole], object]
) -> None:
    with (
        trio.fail_after(SAFETY_S + FAULT_S),
        Blackhole("127.0.0.1", 0) as one,
        Blackhole("127.0.0.1", 0) as other,
        Blackhole.before(postgres_url) as listening,
    ):
        flags = ("--store-listen", listening.through(postgres_url))
        advertised = [("--advertise", f"127.0.0.1:{hole.port}") for hole in (one, other)]
        async with cluster(postgres_url, *flags, own_flags=advertised) as brokers:
            for broker, hole in zip(brokers.running(), (one, other), strict=True):
                hole.lead_to(peer_port(broker))
            oracle = Oracle(brokers)
            async with oracle.at_work():
                await all_hear(brokers, 1)
                await oracle.more(ROUND)
                if hints == "polling alone":
                    listening.hold()
                    listening.cut()
                for hole in (one, other):
                    hole.hold()
                    cut(hole)
                for _ in rounds(least=1):
                    await oracle.more(ROUND)
                for hole in (one, other, listening):
                    hole.cut()
                    hole.release()
                await brokers.all_ready(time.monotonic())
                await all_hear(brokers, 1)
                await oracle.more(ROUND)
            assert not oracle.errors()
