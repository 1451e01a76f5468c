"""The peer on PostgreSQL: Publish on grpcio.aio that inserts a row for each call, as one would plainly write it.

Owns:      a fair opponent: psycopg's pool of asynchronous connections, and one INSERT .. RETURNING per call, which
           psycopg prepares and which commits by itself. Its ids come from the column: over all subjects, not in the
           order of commits, with gaps after errors. One without these would wait for the lock of a counter.
Not here:  Subscribe, Fetch, headers, expiry. Tuning: the pool has its default size; on two cores, 16, 32 and 64
           connections were no quicker. Its one setting is autocommit: with psycopg's default, three round trips instead
           of one, it answers a quarter fewer calls.
Threads:   asyncio's only; grpcio has its own beneath.

``python -m benchmarks.grpcio_postgres_server URL`` listens and stops as grpcio_server.py does.
"""

import asyncio
import sys

import grpc
from psycopg_pool import AsyncConnectionPool

from benchmarks.grpcio_server import publish_only, serve
from trio_broker._proto import broker_pb2 as pb

_TABLE = """
    CREATE TABLE messages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, subject text NOT NULL, body bytea NOT NULL,
        published_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz NOT NULL
    )
"""
_INSERT = """
    INSERT INTO messages (subject, body, expires_at) VALUES (%s, %s, now() + %s * interval '1 second')
    RETURNING id, published_at
"""


class Broker:
    """The handler."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def publish(self, request: pb.PublishRequest, context: grpc.aio.ServicerContext) -> pb.PublishResponse:
        """Insert, answer."""
        if not request.subject:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no subject")
        row = request.subject, request.body, request.expirationSeconds
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_INSERT, row)
            id_, published_at = await cursor.fetchone()
        response = pb.PublishResponse(id=id_)
        response.published_at.FromDatetime(published_at)
        return response


async def main(url: str) -> None:
    """Serve until SIGTERM."""
    async with AsyncConnectionPool(url, kwargs={"autocommit": True}) as pool:
        async with pool.connection() as connection:
            await connection.execute(_TABLE)
        await serve(publish_only(Broker(pool).publish))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
