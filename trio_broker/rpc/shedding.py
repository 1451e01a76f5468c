"""Free memory that is held by peers who do not move, and that keeps others out.

Owns:      which calls and connections are ended when a budget stays full, and when.
Not here:  the budgets (budget.py), what is refused meanwhile (call.py), time limits that hold always (time_limits.py).
Threads:   the trio thread. `keep_inbound_free` and `keep_outbound_free` are tasks of the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budget
from trio_broker.rpc.call import Call

if TYPE_CHECKING:
    from trio_broker.rpc.server import Server
    from trio_broker.rpc.transport import Transport

log = logging.getLogger(__name__)


async def keep_inbound_free(server: Server) -> None:
    """End requests that do not arrive in whole, while others are refused for want of memory, until cancelled."""
    await _keep_free(server, server.budgets.inbound, lambda transport: transport.inbound_bytes, shed_inbound)


async def keep_outbound_free(server: Server) -> None:
    """End calls whose replies are not read, while others are refused for want of memory, until cancelled."""
    await _keep_free(server, server.budgets.outbound, lambda transport: transport.outbound_bytes, shed_outbound)


async def _keep_free(
    server: Server, budget: Budget, held_by: Callable[[Transport], int], shed: Callable[[Transport, float], None]
) -> None:
    """Free a budget whose holders keep others out and do not move: end their old calls, of the largest first."""
    refused = trio.lowlevel.ParkingLot()
    budget.on_refused = refused.unpark
    while True:
        await refused.park()
        await trio.sleep(server.limits.starved_s)
        before = time.perf_counter() - server.limits.starved_s
        held_bytes = budget.held_bytes
        for transport in sorted(server.transports, key=held_by, reverse=True):
            if not budget.tight:
                break
            shed(transport, before)
        if budget.held_bytes < held_bytes:
            log.warning("memory_freed bytes=%d held_bytes=%d", held_bytes - budget.held_bytes, budget.held_bytes)


def shed_inbound(transport: Transport, before: float) -> None:
    """End the calls that began ``before`` (by `time.perf_counter`) and whose requests are held. Never raises.

    A connection of which a frame or a header block began before then, and has not ended, is closed.
    """
    connection = transport.connection
    since_s = connection.unfinished_since_s
    if since_s is not None and transport.read_at + since_s - connection.age_s < before:
        connection.fail(frames.ENHANCE_YOUR_CALM, "a frame or a header block took too long while memory was short")
        transport.flush()
    else:
        _shed(transport, lambda call: call.held, before)


def shed_outbound(transport: Transport, before: float) -> None:
    """The same for replies that wait; close a connection whose socket has taken nothing since. Never raises."""
    if transport.stuck and transport.stalled_at < before:
        transport.close("the client does not read", "memory")
    else:
        _shed(transport, lambda call: call.queued_bytes, before)


def _shed(transport: Transport, holds: Callable[[Call], int], before: float) -> None:
    try:
        for call in list(transport.connection.streams.values()):
            if not isinstance(call, Call) or (call.source is not None and call.part is None):
                continue  # it is being answered
            if call.started < before and holds(call):
                call.shed(transport.refusals.overloaded("the call took too long while memory was short"))
        transport.flush()
    except Exception as error:  # noqa: BLE001
        transport.crash(error)
