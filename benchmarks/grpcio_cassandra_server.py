"""The peer on Cassandra: Publish on grpcio.aio that inserts a row for each call, as one would write it with care.

Owns:      a fair opponent: one prepared INSERT per call at LOCAL_QUORUM, sent by the driver's own thread to a replica,
           its answer carried into the event loop. It orders nothing: ids are counted in this process, which costs next
           to nothing, and they would begin again after a restart. What is kept in order by the nodes costs far more.
Not here:  Subscribe, Fetch, headers.
Threads:   asyncio's only; grpcio and the driver have their own beneath.

``python -m benchmarks.grpcio_cassandra_server URL`` listens and stops as grpcio_server.py does; URL is that of a store.
"""

import asyncio
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import count
from urllib.parse import urlsplit

import grpc
from cassandra import ConsistencyLevel
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, ResponseFuture, Session
from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy

from benchmarks.grpcio_server import publish_only, serve
from trio_broker._proto import broker_pb2 as pb

_KEYSPACE = "CREATE KEYSPACE {} WITH replication = {{'class': 'NetworkTopologyStrategy', 'replication_factor': 1}}"
_TABLE = """
    CREATE TABLE messages (subject text, id bigint, body blob, published_at timestamp, PRIMARY KEY (subject, id))
"""
_INSERT = "INSERT INTO messages (subject, id, body, published_at) VALUES (?, ?, ?, ?) USING TTL ?"


class Broker:
    """The handler."""

    def __init__(self, execute: Callable[[Sequence[object]], Awaitable[None]]) -> None:
        self._execute = execute
        self._ids: defaultdict[str, Iterator[int]] = defaultdict(partial(count, 1))

    async def publish(self, request: pb.PublishRequest, context: grpc.aio.ServicerContext) -> pb.PublishResponse:
        """Insert, answer."""
        if not request.subject:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no subject")
        id_, now_ns = next(self._ids[request.subject]), time.time_ns()
        await self._execute([request.subject, id_, request.body, now_ns // 1_000_000, request.expirationSeconds])
        response = pb.PublishResponse(id=id_)
        response.published_at.FromNanoseconds(now_ns)
        return response


def connect(url: str) -> tuple[Session, str]:
    """Connect as the broker does; return the session and the name of the keyspace, which is not there yet."""
    parts = urlsplit(url)
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
    )
    cluster = Cluster(
        [parts.hostname],
        port=parts.port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )
    return cluster.connect(), parts.path.removeprefix("/")


def by_asyncio(sent: ResponseFuture) -> asyncio.Future[None]:
    """Return a future of the running loop that is done when the driver's is."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    sent.add_callbacks(
        lambda _rows: loop.call_soon_threadsafe(done.set_result, None),
        lambda error: loop.call_soon_threadsafe(done.set_exception, error),
    )
    return done


async def main(url: str) -> None:
    """Serve until SIGTERM."""
    session, keyspace = connect(url)
    try:
        session.execute(_KEYSPACE.format(keyspace))
        session.set_keyspace(keyspace)
        session.execute(_TABLE)
        insert = session.prepare(_INSERT)
        broker = Broker(lambda values: by_asyncio(session.execute_async(insert, values)))
        await serve(publish_only(broker.publish))
    finally:
        session.cluster.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
