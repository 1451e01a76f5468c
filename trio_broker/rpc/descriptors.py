"""Accept clients in a process that may be out of descriptors.

Owns:      `Reserve`.
Not here:  who has a place (accepting.py), how long a listener rests then (its loop).
Threads:   none; nothing here waits.
"""

import errno
import logging
import os
import socket
import time
from contextlib import suppress

from trio_broker.rpc.listeners import format_address

log = logging.getLogger(__name__)

SAID_AGAIN_S = 60.0
"""How often at most it is logged that descriptors are short."""
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Reserve:
    """A descriptor that is kept back, so that a client for which there is none can be told so by a close.

    It would wait in the kernel's queue otherwise, connected for all it knows, until its own patience ends.
    """

    def __init__(self) -> None:
        self.short = False
        """The last `accept` failed since no descriptor was free: rest before the next one."""
        self._kept: int | None = None
        self._said_at = -SAID_AGAIN_S
        self._refused = 0
        self._keep()

    def accept(self, listener: socket.socket) -> socket.socket | None:
        """Return the next client of a listener; None: it has left, or none can be taken (`short`)."""
        try:
            client, _ = listener.accept()
        except OSError as error:
            self.short = error.errno in _SHORT
            if self.short:
                self._refuse(listener, error)
            return None
        self.short = False
        return client

    def close(self) -> None:
        """Give the descriptor back."""
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None

    def _keep(self) -> None:
        if self._kept is None:
            with suppress(OSError):  # there is none now
                self._kept = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _refuse(self, listener: socket.socket, error: OSError) -> None:
        self.close()
        with suppress(OSError):
            client, _ = listener.accept()
            client.close()
            self._refused += 1
        self._keep()
        now = time.monotonic()
        if now >= self._said_at + SAID_AGAIN_S:
            log.warning(
                "accept_failed address=%s error=%s closed=%d",
                format_address(listener.getsockname()),
                error,
                self._refused,
            )
            self._said_at, self._refused = now, 0
