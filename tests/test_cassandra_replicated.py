"""Three nodes, three replicas: one may be gone, two may not, and what is told is true all the while."""

import pytest
import trio
from cassandra_cluster import CassandraCluster
from cassandra_keyspaces import Keyspaces
from cassandra_kit import Told, Writer, writers
from postgres_kit import until

from persistence import Key, StoreUnavailable, open_store

pytestmark = pytest.mark.cluster


async def write_on(writer: Writer) -> None:
    while True:
        await writer.write()


async def test_writers_while_one_node_and_then_two_are_gone(cassandra_cluster: CassandraCluster) -> None:
    """Three share a subject, and one has its own: who has to compete may be left in doubt while a node is away."""
    _, second, third = cassandra_cluster.nodes
    shared, own = Told(), Told()
    with Keyspaces(cassandra_cluster.url()) as keyspaces, keyspaces.new() as url:
        async with writers(url, 4, shared) as all_writers, trio.open_nursery() as nursery:
            alone = Writer("alone", all_writers.pop().store, own, "alone")
            for writer in (*all_writers, alone):
                nursery.start_soon(write_on, writer)

            async def go_on() -> None:
                heard = {told: len(told.ids) for told in (shared, own)}
                await until(lambda: all(len(told.ids) > before + 50 for told, before in heard.items()))

            await go_on()
            with third.frozen():  # which the others do not notice for long, and ask it again and again
                await go_on()
            await trio.to_thread.run_sync(third.kill9)
            await go_on()
            await trio.to_thread.run_sync(cassandra_cluster.settle)
            await go_on()
            assert not own.unknown
            assert not own.not_appended
            assert not shared.not_appended

            await trio.to_thread.run_sync(second.kill9)
            await trio.to_thread.run_sync(cassandra_cluster.settle)
            acknowledged = len(shared.ids) + len(own.ids)
            with pytest.raises(StoreUnavailable, match="replicas that are needed are alive"):
                await alone.store.get([Key("alone", 1)])
            await until(lambda: shared.not_appended and own.not_appended)
            assert len(shared.ids) + len(own.ids) == acknowledged

            await trio.to_thread.run_sync(cassandra_cluster.revive)
            await go_on()
            nursery.cancel_scope.cancel()
        async with open_store(url) as store:
            await shared.check(store)
            await own.check(store, "alone")
