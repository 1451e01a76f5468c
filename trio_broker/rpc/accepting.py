"""Accept clients: who gets a place, and who is turned away.

Owns:      the loop over one listener, how many connections and calls each address has (`Origin`).
Not here:  listening sockets (listeners.py), a process without descriptors (descriptors.py), what a client says
           (transport.py), the steps of being let go (leaving.py).
Threads:   the trio thread.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Hashable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from purerpc import Status

from trio_broker.rpc.descriptors import Reserve
from trio_broker.rpc.transport import Transport

if TYPE_CHECKING:
    from trio_broker.rpc.server import Server

log = logging.getLogger(__name__)

ACCEPT_PAUSE_S = 0.1
"""How long a listener rests when the process is out of descriptors, or has no place."""


class Origin:
    """What all clients of one address have."""

    __slots__ = ("connections", "streams")

    def __init__(self) -> None:
        self.connections = 0
        self.streams = 0


def address_key(host: str) -> bytes:
    """Return what one client has for itself: an IPv4 address, or the 64 bits of IPv6 that a host may choose within.

    Raises:
        ValueError: it is neither.
    """
    address = ipaddress.ip_address(host)
    return address.packed[:8] if address.version == 6 else address.packed


class Entrance:
    """Where the clients of a server come in."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reserve = Reserve()
        self.origins: dict[Hashable, Origin] = {}
        """Those that have connections, while something is bounded for each."""
        self._turned_away = 0

    def close(self) -> None:
        """Give back what is kept for it."""
        self._reserve.close()

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Accept the clients of a listener, each into a task of the nursery, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            place = self._place() if self._server.accepts else None
            if place is None:
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            client = self._reserve.accept(listener)
            if client is not None:
                client.setblocking(False)
                self._admit(client, nursery, place=place)
            elif self._reserve.short:
                await trio.sleep(ACCEPT_PAUSE_S)

    def _place(self) -> bool | None:
        """Say whether one more client fits; for it, the oldest that never made a call is closed.

        False: it is to be told that it does not. None: it is to wait, since there may be place soon.
        """
        limits, transports = self._server.limits, self._server.transports
        if len(transports) < limits.connections_max:
            return True
        oldest = next((transport for transport in transports if not transport.called), None)
        if oldest is None:
            return False if self._turned_away < limits.turned_away_max else None
        if time.perf_counter() < oldest.came_at + limits.first_call_s:
            return None
        del transports[oldest]
        oldest.evict()
        return True

    def _admit(self, client: socket.socket, nursery: trio.Nursery, *, place: bool) -> None:
        """Serve a client, or turn it away; nothing of those that are connected is touched for it."""
        server = self._server
        limits, refusals = server.limits, server.refusals
        if not place:
            nursery.start_soon(self._turn_away, client, refusals.turned_away(limits.connections_max))
            return
        key = self._key(client)
        origin = None if key is None else self.origins.setdefault(key, Origin())
        if origin is None or origin.connections < limits.connections_per_address:
            if origin is not None:
                origin.connections += 1
            nursery.start_soon(self._serve, client, key, origin)
        elif self._turned_away < limits.turned_away_max // 2:  # the rest is for clients of other addresses
            nursery.start_soon(self._turn_away, client, refusals.crowded(limits.connections_per_address))
        else:
            server.connections_refused += 1
            client.close()

    def _key(self, client: socket.socket) -> Hashable:
        if self._server.limits.per_address:
            with suppress(OSError):  # it has left
                peer = client.getpeername()
                return address_key(peer[0]) if isinstance(peer, tuple) else None  # a unix socket
        return None

    async def _serve(self, client: socket.socket, key: Hashable, origin: Origin | None) -> None:
        server = self._server
        transport = Transport(server, client, origin)
        server.transports[transport] = None
        server.connections_opened += 1
        if server.draining:
            transport.connection.drain()
        try:
            await transport.run()
        except Exception as error:  # our bug, which must not reach other connections
            log.exception("connection_failed error=%s", type(error).__name__)
        finally:
            if origin is not None:
                origin.connections -= 1
                if not origin.connections:
                    self.origins.pop(key, None)
            server.left(transport)

    async def _turn_away(self, client: socket.socket, refusal: Status) -> None:
        """Tell a client for which there is no place."""
        transport = Transport(self._server, client, refusal=refusal)
        self._turned_away += 1
        self._server.connections_refused += 1
        try:
            await transport.run()
        except Exception as error:  # as in `_serve`
            log.exception("connection_failed error=%s", type(error).__name__)
        finally:
            self._turned_away -= 1
