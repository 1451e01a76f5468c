"""Accept clients, and hand each connection to the worker that has the fewest.

Owns:      the gRPC listener of a broker of several workers, and the choice.
Not here:  what a client says: the worker reads its first byte (rpc/).
Threads:   the trio thread.

Each worker could listen on the port itself (SO_REUSEPORT), and the kernel would choose by a hash of the addresses. But
gRPC clients keep few connections, each for long: of four, one worker in eight times would get all. Here two workers
never differ by more than one connection, clients are not given to a worker that is not ready, a worker's end loses no
connection that nobody has accepted, unix sockets are no different, and a second broker on the port is noticed.
"""

import socket
from collections.abc import Mapping, Sequence
from contextlib import closing

import trio

from trio_broker.rpc.descriptors import Reserve
from trio_broker.workers.member import Member

OUT_OF_DESCRIPTORS_S = 0.1


def by_preference(members: Sequence[Member]) -> list[Member]:
    """Return those who take connections, the best first: ready ones, then those with few connections."""
    taking = [member for member in members if member.taking]
    return sorted(taking, key=lambda member: (not member.readiness().ready, member.connections))


class Doorman:
    """Hands connections over to the members that there are."""

    def __init__(self, members: Mapping[int, Member]) -> None:
        self._members = members
        self._news = trio.lowlevel.ParkingLot()

    def hear(self) -> None:
        """A member has told something."""
        self._news.unpark_all()

    async def accept(self, listener: socket.socket) -> None:
        """Hand over what comes, until cancelled. While no worker takes connections they wait to be accepted."""
        with closing(Reserve()) as reserve:
            while True:
                await trio.lowlevel.wait_readable(listener)
                if not self._takers():
                    await self._news.park()
                    continue
                client = reserve.accept(listener)
                if client is None:
                    if reserve.short:
                        await trio.sleep(OUT_OF_DESCRIPTORS_S)
                    continue
                with client:
                    while not any(member.give(client) for member in self._takers()):
                        await self._news.park()

    async def wait_closed(self) -> None:
        """Wait until no worker takes connections. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._takers():
            await self._news.park()

    def _takers(self) -> list[Member]:
        return by_preference([*self._members.values()])
