"""What the supervisor and a worker say to each other: short messages, and descriptors with them.

Owns:      `Channel`, one end; the messages' form on the way.
Not here:  what they mean (member.py and worker.py, one for each side).
Threads:   the trio thread of each process.

It is a pair of unix sockets without a name: nothing is left of it in the file system, nobody else can connect, and when
one process ends, however it does, the other one sees the end of the channel.
"""

import json
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import trio

MESSAGE_MAX_BYTES = 256 * 1024
"""More than any message has: the largest holds all settings."""
DESCRIPTORS_MAX = 4


class Message(NamedTuple):
    """Something that was said."""

    kind: str
    values: dict[str, Any]
    descriptors: list[int]
    """The receiver's, to close."""


class Channel:
    """One end of the channel between a supervisor and a worker."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket = ours

    @classmethod
    def open(cls) -> tuple[Self, socket.socket]:
        """Return our end, and the socket that is to become the other one."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    def send(self, kind: str, values: dict[str, Any] | None = None, descriptors: Sequence[int] = ()) -> bool:
        """Say something; return False if the other side does not listen, or has too much to read. Never waits."""
        try:
            socket.send_fds(self._socket, [json.dumps([kind, values or {}]).encode()], descriptors)
        except OSError:
            return False
        return True

    async def receive(self) -> Message | None:
        """Wait for the next message; None: the other process has ended. A checkpoint."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_MAX_BYTES, DESCRIPTORS_MAX)
            except BlockingIOError:
                continue
            except ConnectionResetError:  # it has ended, and never read what was sent last
                return None
            if not data:
                return None
            kind, values = json.loads(data)
            return Message(kind, values, descriptors)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def stream_on(descriptor: int) -> trio.SocketStream:
    """Return a stream on a socket that was received; it owns it."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))


def close_all(descriptors: Sequence[int]) -> None:
    """Close what nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)
