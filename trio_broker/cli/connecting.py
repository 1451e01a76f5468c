"""A connection for the length of a command.

Owns:      the time-out of commands, and what is said when it is over.
Not here:  the client (trio_broker/client/).
"""

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from trio_broker.cli.options import Server
from trio_broker.cli.running import TIMEOUT, Failure
from trio_broker.client import Client, connect


@asynccontextmanager
async def connected(server: Server, timeout_s: float) -> AsyncGenerator[Client]:
    """Connect within ``timeout_s``. A `trio.TooSlowError` of the block ends the command as a time-out too."""
    try:
        with trio.fail_after(timeout_s) as connecting:
            async with connect(server.address, tls=server.context(), server_name=server.name) as client:
                connecting.deadline = math.inf
                yield client
    except trio.TooSlowError:
        raise Failure(no_answer(server, timeout_s), TIMEOUT) from None


def no_answer(server: Server, timeout_s: float) -> str:
    """Say that the broker took too long."""
    return f"no answer from {server} within {timeout_s:g} s (--timeout)"
