"""How far a command is that reads its standard input, on one line of the terminal.

Owns:      the line: when it is shown, drawn and wiped.
Not here:  what is counted.
Threads:   the trio thread; what is written goes through worker threads (trio_broker/cli/standard.py).
"""

import math
import os
import stat
import sys

import trio

from trio_broker.cli.standard import write

DRAW_INTERVAL_S = 0.1
"""The line is drawn so often at most, unless output on the same terminal has wiped it."""

_WIPE = b"\r\x1b[K"
_BAR_COLUMNS = 30


class Progress:
    """The line. Shown where stderr is a terminal and stdin is none, so that nobody types into it."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty() and not sys.stdin.isatty()
        self._shared = self._shown and sys.stdout.isatty()
        self._size_bytes = _left_bytes(sys.stdin.fileno()) if self._shown else None
        self._began = trio.current_time()
        self._drawn_at = -math.inf

    async def print(self, output: bytes, messages: int, done_bytes: int) -> None:
        """Write to stdout, and say how far it is: so many messages, so many bytes of stdin. A checkpoint."""
        await write(_WIPE + output if self._shared else output)
        now = trio.current_time()
        if self._shown and (self._shared or now - self._drawn_at >= DRAW_INTERVAL_S):
            self._drawn_at = now
            await write(_WIPE + self._line(messages, done_bytes).encode(), sys.stderr.fileno())

    async def wipe(self) -> None:
        """Leave the terminal as it was. A checkpoint."""
        await trio.lowlevel.checkpoint()
        if self._shown:
            await write(_WIPE, sys.stderr.fileno())

    def _line(self, messages: int, done_bytes: int) -> str:
        rate = messages / max(trio.current_time() - self._began, 0.001)
        said = f"published {messages:,}, {rate:,.0f}/s"
        if not self._size_bytes:
            return said
        share = min(1.0, done_bytes / self._size_bytes)
        return f"[{'#' * int(share * _BAR_COLUMNS):-<{_BAR_COLUMNS}}] {share:4.0%}  {said}"


def _left_bytes(descriptor: int) -> int | None:
    """Return how much is left to read of a file; None: of what is none, nobody knows."""
    status = os.fstat(descriptor)
    return status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None
