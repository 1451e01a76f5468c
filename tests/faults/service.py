"""A Service of Kubernetes in front of a cluster: one address, and behind it the brokers that are ready.

Owns:      the list of endpoints, which follows readiness; passing connections on.
Not here:  the brokers (cluster.py), clients (clients.py).
Threads:   the trio thread; each look at a broker's readiness is in a thread of trio's.

As with the real one, a new connection goes to one of those that were ready when it was looked last, in turn, and stays
there; who is no longer listed keeps the connections that he has.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from http.client import HTTPException
from itertools import count

import trio
from e2e_broker import BrokerProcess

from .cluster import Cluster

LOOK_S = 0.5
"""Between two looks: so late a broker that is no longer ready goes from the list."""
_CHUNK_BYTES = 64 * 1024


class Service:
    """Stands in for a `Cluster` in front of clients: all are given the one address. Use `service` to make one."""

    def __init__(self, cluster: Cluster, address: str) -> None:
        self._ready: list[BrokerProcess] = []
        self._cluster = cluster
        self._address = address
        self._turns = count()

    @property
    def brokers(self) -> list[BrokerProcess | None]:
        return self._cluster.brokers

    def address(self, _number: int) -> str:
        return self._address

    async def look(self) -> None:
        """See who is ready: those that it knows, whatever is done to them, and new ones."""
        known = dict.fromkeys([*self._ready, *self._cluster.running()])
        self._ready = [each for each in known if await self._is_ready(each)]

    async def keep_looking(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            await self.look()

    async def pass_on(self, client: trio.SocketStream) -> None:
        """Serve one connection; refuse it if nobody is ready, or who was ready is gone."""
        async with client:
            if not self._ready:
                return
            host, _, port = self._ready[next(self._turns) % len(self._ready)].address.rpartition(":")
            try:
                broker = await trio.open_tcp_stream(host, int(port))
            except OSError:
                return
            async with broker, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, client, broker, nursery.cancel_scope)
                nursery.start_soon(_pump, broker, client, nursery.cancel_scope)

    async def _is_ready(self, broker: BrokerProcess) -> bool:
        try:
            status, _ = await trio.to_thread.run_sync(broker.get, "/readyz")
        except (OSError, HTTPException):
            return False
        return status == 200


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    """Pass on what comes, until one end is gone."""
    try:
        while data := await source.receive_some(_CHUNK_BYTES):
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass
    both.cancel()


@asynccontextmanager
async def service(cluster: Cluster) -> AsyncGenerator[Service]:
    """One address for the brokers of a cluster, for the length of the block."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Service(cluster, "{}:{}".format(*listeners[0].socket.getsockname()[:2]))
        await made.look()
        nursery.start_soon(partial(trio.serve_listeners, made.pass_on, listeners))
        nursery.start_soon(made.keep_looking)
        yield made
        nursery.cancel_scope.cancel(reason="nobody needs the service any more")
