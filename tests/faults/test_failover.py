"""F3: the database fails over to a standby that has all that was acknowledged, and brokers find it."""

import time
from urllib.parse import urlsplit

import trio
from postgres_databases import Databases
from postgres_kit import Outside, set_standbys, until
from postgres_server import PostgresServer

from .cluster import cluster
from .oracle import Oracle

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
ROUND = 200
"""Publishes acknowledged before the primary is killed, and after."""
SYNCHRONOUS = "SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync'"


def url_of_both(one: PostgresServer, other: PostgresServer, url: str) -> str:
    """The URL of a database that is on whichever of two servers takes writes."""
    hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
    return urlsplit(url)._replace(netloc=f"postgres@{hosts}", query="target_session_attrs=read-write").geturl()


async def test_a_failover_to_a_synchronous_standby_loses_nothing_and_ids_go_on() -> None:
    with trio.fail_after(SAFETY_S), PostgresServer() as primary, PostgresServer(standby_of=primary) as standby:
        url = Databases(primary.dsn()).create()
        with Outside(url) as outside:
            set_standbys(outside, "*")
            await until(lambda: outside.do(SYNCHRONOUS))
        both = url_of_both(primary, standby, url)
        async with cluster(both, "--store-grace", "500ms") as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                await oracle.more(ROUND)
                await trio.to_thread.run_sync(primary.kill9)
                await trio.to_thread.run_sync(standby.promote)
                await brokers.all_ready(time.monotonic())
                await oracle.more(ROUND)
            assert set(oracle.errors()) <= {"STORAGE_UNAVAILABLE", "OUTCOME_UNKNOWN"}
            for broker in brokers.running():
                assert not [line for line in broker.log if line.get("event") == "commits_lost"]
