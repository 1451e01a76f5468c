"""A TCP proxy that a test turns into a black hole: connections stay open, and nothing comes through any more.

It can also be slow, reset connections, or leave clients with connections whose other end is gone.

Owns:      its listener, its connections and their threads; what is held back.
Not here:  the server behind it, and loss of packets: here the kernel still acknowledges what nobody forwards, so
           neither keepalives nor tcp_user_timeout notice anything, as with a server that hangs.
Threads:   one that accepts, two per connection; the methods may be called from any thread.

An answer that is lost after the commit:  ``hold_replies()``, send, ``wait_reply_held()``, ``cut()``, ``release()``.
"""

import math
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

SAFETY_S = 30
"""What hangs fails after this long; nothing that works comes near."""

_CHUNK_BYTES = 64 * 1024
_NO_GOODBYE = struct.pack("ii", 1, 0)
"""SO_LINGER for a close by RST."""


class Blackhole:
    """A proxy in front of a server; it lets everything through until it is told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._changed = threading.Condition()
        self._requests = _Gate(self._changed)
        self._replies = _Gate(self._changed)
        self._connections: set[_Connection] = set()
        self._ending = False
        self.accepted = 0
        """Connections so far."""

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy in front of the server of a URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(parts.hostname, parts.port)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="blackhole")
        self._accepting.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        with self._changed:
            self._ending = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._accepting.join(SAFETY_S)
        self._listener.close()
        connections = self.cut()
        for connection in connections:
            connection.thread.join(SAFETY_S)
        assert not any(connection.thread.is_alive() for connection in connections)

    def lead_to(self, port: int) -> None:
        """Put it in front of another port, for new connections: of who is started only once he knows of this one."""
        with self._changed:
            self._server = (self._server[0], port)

    def through(self, url: str) -> str:
        """Return a URL that leads through the proxy."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    def hold(self) -> None:
        """Let nothing through, neither way; new connections are accepted, and then nothing happens."""
        with self._changed:
            self._requests.closed = self._replies.closed = True

    def hold_replies(self) -> None:
        """Let requests through, and hold back what the server says to them."""
        with self._changed:
            self._replies.closed = True

    def release(self) -> None:
        """Let everything through, what was held back first."""
        with self._changed:
            self._requests.closed = self._replies.closed = False
            self._changed.notify_all()

    def cut(self) -> "list[_Connection]":
        """End all connections; what was held back is lost. New ones are treated as before. Return the ended."""
        with self._changed:
            connections = [*self._connections]
            for connection in connections:
                connection.cut()
            self._changed.notify_all()
        return connections

    def slow(self, latency_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        """Let everything take ``latency_s`` each way, and no more through than that; without arguments: at once again.

        A round trip takes twice the latency.
        """
        with self._changed:
            self._requests.latency_s = self._replies.latency_s = latency_s
            self._requests.bytes_per_s = self._replies.bytes_per_s = bytes_per_s

    def reset(self) -> None:
        """End all connections by RST: clients and server are told ECONNRESET, and what was held back is lost."""
        with self._changed:
            for connection in self._connections:
                connection.reset()
            self._changed.notify_all()

    def abandon(self) -> None:
        """Let the server see all clients gone, and tell them nothing: half-open connections, until `cut`.

        New connections are treated as before.
        """
        with self._changed:
            for connection in self._connections:
                connection.abandon()

    def wait_reply_held(self) -> None:
        """Wait until something that the server said is held back: it has answered, and the client has not heard."""
        self._wait(self._replies)

    def wait_request_held(self) -> None:
        """Wait until something that a client said is held back, or a new client waits."""
        self._wait(self._requests)

    def connections(self) -> int:
        """How many clients are connected."""
        with self._changed:
            return len(self._connections)

    def _wait(self, gate: "_Gate") -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: gate.waiting, SAFETY_S), "nothing is held back"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(client)
            connection.thread = threading.Thread(target=self._serve, args=[connection], name="blackhole-requests")
            with self._changed:
                if self._ending:
                    client.close()
                    return
                self._connections.add(connection)
                self.accepted += 1
            connection.thread.start()

    def _serve(self, connection: "_Connection") -> None:
        with connection.client, suppress(OSError):
            try:
                if self._requests.passes(connection):
                    with socket.create_connection(self._server) as server:
                        self._join(connection, server)
            finally:
                with self._changed:
                    self._connections.discard(connection)

    def _join(self, connection: "_Connection", server: socket.socket) -> None:
        client = connection.client
        with self._changed:
            connection.server = server
            if connection.is_cut:
                return
        replies = threading.Thread(
            target=_pump, args=[connection, server, client, self._replies], name="blackhole-replies"
        )
        replies.start()
        _pump(connection, client, server, self._requests)
        replies.join()
        if connection.is_abandoned:
            with self._changed:
                self._changed.wait_for(lambda: connection.is_cut)


class _Connection:
    thread: threading.Thread

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.is_cut = False
        self.is_abandoned = False
        self.is_reset = False

    def ends(self) -> list[socket.socket]:
        return [self.client] if self.server is None else [self.client, self.server]

    def cut(self) -> None:
        self.is_cut = True
        for end in self.ends():
            with suppress(OSError):  # it may have ended by itself
                end.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        self.is_cut = self.is_reset = True
        for end in self.ends():
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_GOODBYE)
                end.shutdown(socket.SHUT_RD)  # wakes who reads, and says nothing to the other end

    def abandon(self) -> None:
        self.is_abandoned = True
        if self.server is not None:
            with suppress(OSError):
                self.server.shutdown(socket.SHUT_RDWR)


class _Gate:
    """One direction of all connections."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self.closed = False
        self.latency_s = 0.0
        self.bytes_per_s = math.inf
        self.waiting = 0
        """How many connections have something held back."""

    def passes(self, connection: _Connection) -> bool:
        """Wait until this direction is open; False if the connection was cut."""
        with self._changed:
            self.waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: connection.is_cut or not self.closed)
            self.waiting -= 1
            return not connection.is_cut

    def arrival(self, size: int, before: float) -> float:
        """When so many bytes arrive that leave now, if what left before them arrives at ``before`` (time.monotonic)."""
        with self._changed:
            return max(time.monotonic() + self.latency_s, before) + size / self.bytes_per_s


def _pump(connection: _Connection, source: socket.socket, sink: socket.socket, gate: _Gate) -> None:
    """Pass on what ``source`` says until it has no more to say; its end is held back as anything else."""
    on_its_way: deque[tuple[float, bytes]] = deque()
    arrival = 0.0
    said = select.poll()
    said.register(source, select.POLLIN)
    with suppress(OSError):
        while True:
            wait_s = on_its_way[0][0] - time.monotonic() if on_its_way else math.inf
            if said.poll(None if wait_s == math.inf else max(0, math.ceil(wait_s * 1000))):
                data = source.recv(_CHUNK_BYTES)
                arrival = gate.arrival(len(data), arrival)
                on_its_way.append((arrival, data))
                if not data:
                    said.unregister(source)
            while on_its_way and on_its_way[0][0] <= time.monotonic():
                _, data = on_its_way.popleft()
                if not gate.passes(connection) or not data:
                    raise _Ended
                sink.sendall(data)
    if not (connection.is_abandoned or connection.is_reset):
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class _Ended(OSError):
    """The source has no more to say, or the connection was cut."""
