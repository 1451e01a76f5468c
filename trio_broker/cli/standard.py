"""Standard input and output for commands on trio: binary, unbuffered, and cancelled at once.

Owns:      `read_lines` and `write`.
Threads:   each read and write is made in a worker thread, and left there when the command is cancelled. That is why
           Python's own buffered files are not used: a thread that waits in one holds its lock when Python ends.
"""

import os
import sys
from collections.abc import AsyncGenerator

import trio

LINE_MAX_BYTES = 64 * 1024 * 1024
"""Above what any broker takes in one message, and a bound for a file without newlines."""

_READ_BYTES = 256 * 1024


@trio.as_safe_channel
async def read_lines(descriptor: int | None = None) -> AsyncGenerator[list[bytes]]:
    """Yield the lines of a file as they come, those of one read together, without newlines; the last may lack its own.

    None: of stdin.

    Raises:
        ValueError: a line is longer than `LINE_MAX_BYTES`.
    """
    descriptor = sys.stdin.fileno() if descriptor is None else descriptor
    partial = bytearray()
    while data := await trio.to_thread.run_sync(os.read, descriptor, _READ_BYTES, abandon_on_cancel=True):
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(partial) + lines[0]
            partial.clear()
            yield lines
        partial += rest
        if len(partial) > LINE_MAX_BYTES:
            raise ValueError(f"longer than {LINE_MAX_BYTES} bytes")
    if partial:
        yield [bytes(partial)]


async def write(data: bytes, descriptor: int | None = None) -> None:
    """Write to a file; None: to stdout. A checkpoint.

    While a full pipe waits for its reader, the connection to the broker is looked after.
    """
    descriptor = sys.stdout.fileno() if descriptor is None else descriptor
    await trio.to_thread.run_sync(_write_all, descriptor, data, abandon_on_cancel=True)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
