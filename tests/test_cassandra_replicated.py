"""Three nodes, three replicas: one may be gone, two may not, and what is told is true all the while."""

import pytest
import trio
from cassandra_cluster import CassandraCluster
from cassandra_keyspaces import Keyspaces
from cassandra_kit import Told, Writer, writers
from postgres_kit import until

from persistence import Key, Record, StoreUnavailable, open_store

pytestmark = pytest.mark.cluster


async def write_on(writer: Writer) -> None:
    while True:
        await writer.write()


async def test_writers_while_one_node_and_then_two_are_gone(cassandra_cluster: CassandraCluster) -> None:
    _, second, third = cassandra_cluster.nodes
    told = Told()
    with Keyspaces(cassandra_cluster.url()) as keyspaces, keyspaces.new() as url:
        async with writers(url, 3, told) as all_writers, trio.open_nursery() as nursery:
            for writer in all_writers:
                nursery.start_soon(write_on, writer)

            async def go_on() -> None:
                heard = len(told.ids)
                await until(lambda: len(told.ids) > heard + 100)

            await go_on()
            with third.frozen():  # which the others do not notice for long, and ask it again and again
                await go_on()
            unknown = len(told.unknown)
            await trio.to_thread.run_sync(third.kill9)
            await go_on()
            await trio.to_thread.run_sync(cassandra_cluster.settle)
            await go_on()
            assert len(told.unknown) == unknown
            assert not told.not_appended

            await trio.to_thread.run_sync(second.kill9)
            await trio.to_thread.run_sync(cassandra_cluster.settle)
            acknowledged = len(told.ids)
            with pytest.raises(StoreUnavailable, match="replicas that are needed are alive"):
                await all_writers[0].store.get([Key("orders", 1)])
            await until(lambda: told.not_appended)
            assert len(told.ids) == acknowledged

            await trio.to_thread.run_sync(cassandra_cluster.revive)
            await go_on()
            nursery.cancel_scope.cancel()
        async with open_store(url) as store:
            await told.check(store)
            (last,) = await store.get([Key("orders", max(told.ids.values()))])
            assert isinstance(last, Record)
