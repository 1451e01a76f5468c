"""The tests' three Cassandra nodes go on without one of them, and not without two."""

import pytest
from cassandra import Unavailable, WriteTimeout
from cassandra.cluster import NoHostAvailable
from cassandra_cluster import CassandraCluster
from cassandra_keyspaces import Keyspaces, connected, keyspace_of

pytestmark = pytest.mark.cluster

LOST = (NoHostAvailable, Unavailable, WriteTimeout)


def test_a_quorum_goes_on_and_less_than_one_does_not(cassandra_cluster: CassandraCluster) -> None:
    first, second, third = cassandra_cluster.nodes
    with Keyspaces(cassandra_cluster.url()) as keyspaces, keyspaces.new() as url, connected(first.url()) as session:
        replication = "{'class': 'NetworkTopologyStrategy', 'datacenter1': 3}"
        session.execute(f"CREATE KEYSPACE {keyspace_of(url)} WITH replication = {replication}")
        session.set_keyspace(keyspace_of(url))
        session.execute("CREATE TABLE kept (n int PRIMARY KEY)")

        def insert(n: int) -> bool:
            return session.execute("INSERT INTO kept (n) VALUES (%s) IF NOT EXISTS", [n]).was_applied

        assert insert(1)
        with third.frozen():
            session.execute("INSERT INTO kept (n) VALUES (0)")
        third.kill9()
        cassandra_cluster.settle()
        assert insert(2)
        second.kill9()
        with pytest.raises(LOST):  # a timeout: it has not found out yet
            insert(3)
        cassandra_cluster.settle()
        with pytest.raises(LOST):
            insert(4)

        cassandra_cluster.revive()
        assert not insert(1)
        assert not insert(2)
        assert insert(5)


def test_nodes_restart_one_after_the_other(cassandra_cluster: CassandraCluster) -> None:
    for node in cassandra_cluster.nodes:
        node.restart()
    cassandra_cluster.settle()
