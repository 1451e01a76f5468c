"""Three Cassandra nodes on one machine: 127.0.0.1, 127.0.0.2 and 127.0.0.3, at the same ports.

Owns:      their places in the cluster; what the nodes know of each other.
Not here:  a node (cassandra_server.py): killing, freezing and starting one are its methods.
Threads:   as of `CassandraServer`; starting all takes 20 to 40 s, and 1.7 GB are taken while they run.
"""

import time
from contextlib import ExitStack
from typing import Self

from cassandra import ConsistencyLevel, OperationTimedOut, ReadTimeout, Unavailable
from cassandra.cluster import NoHostAvailable, Session
from cassandra.policies import FallthroughRetryPolicy
from cassandra.query import SimpleStatement
from cassandra_keyspaces import connected
from cassandra_server import SAFETY_S, CassandraServer, Ports

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")

_EVERYWHERE = SimpleStatement(
    "SELECT view_name FROM system_distributed.view_build_status LIMIT 1",  # which Cassandra keeps three times
    consistency_level=ConsistencyLevel.ALL,
    retry_policy=FallthroughRetryPolicy(),
)


class CassandraCluster:
    """Three running nodes that know each other when the ``with`` block begins; nothing is left of them after.

    Args:
        settings: of every node's cassandra.yaml, as of `CassandraServer`.
    """

    def __init__(self, **settings: object) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.ports = Ports()
            undo.callback(self.ports.close)
            self.nodes = [self._node(number) for number in range(len(ADDRESSES))]
            for node in self.nodes:  # one joining at a time
                undo.enter_context(node)
            self.settle()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._undo.close()

    def url(self, keyspace: str = "") -> str:
        """The URL of a store in a keyspace that every node has."""
        hosts = ",".join(f"{address}:{self.ports.cql}" for address in ADDRESSES)
        return f"cassandra://{hosts}/{keyspace}?replication_factor={len(ADDRESSES)}"

    def revive(self) -> None:
        """Make all nodes run and know each other, however they were left."""
        for node in self.nodes:
            node.revive()
        self.settle()

    def settle(self) -> None:
        """Wait until every running node knows of each other node whether it is up; none may be frozen.

        To find out that one is gone takes them 20 to 30 s.
        """
        running = [node for node in self.nodes if node.is_running]
        until = time.monotonic() + SAFETY_S
        for node in running:
            with connected(node.url()) as session:
                while (seen := _up_as_seen_by(session)) != len(running):
                    assert time.monotonic() < until, f"{node.address} sees {seen} nodes, and {len(running)} run"
                    node.wait_for_log(0.1)  # what it finds out it logs

    def _node(self, number: int) -> CassandraServer:
        return CassandraServer(
            ADDRESSES[number],
            seed=ADDRESSES[0],
            ports=self.ports,
            initial_token=str(number * 2**64 // len(ADDRESSES) - 2**63),
            auto_bootstrap=False,  # there is nothing yet to be taken over
            **self._settings,
        )


def _up_as_seen_by(session: Session) -> int | None:
    """How many nodes are up as the one of this session knows, itself among them; None: it does not know yet."""
    try:
        session.execute(_EVERYWHERE)
    except Unavailable as error:
        return error.alive_replicas
    except (NoHostAvailable, OperationTimedOut, ReadTimeout):
        return None
    return len(ADDRESSES)
