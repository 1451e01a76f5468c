"""How a connection that is to leave is let go: one that is old or idle, or found no place.

Owns:      the steps and the time between them.
Not here:  what each step does (control.py, transport.py), a server that stops (server.py).
Threads:   the trio thread. `let_go` and `turn_away` are tasks in the connection's nursery, which ends them when the
           connection is closed: usually after the first or second step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_broker.rpc import frames
from trio_broker.rpc.call import Call

if TYPE_CHECKING:
    from trio_broker.rpc.transport import Transport

GOAWAY_WAIT_S = 1.0
"""How long a client gets to answer the first GOAWAY's PING before the second one."""
LAST_WORDS_S = 10.0
"""How long what is to end may take to do so, such as a client to read what was acknowledged."""
AGE_JITTER = 0.1
"""Connections that came together, as after a restart, leave at times that differ by this part of their age."""
TURNED_AWAY_S = 1.0
"""How long a client for which there is no place may take over each step."""


async def turn_away(transport: Transport) -> None:
    """Let a connection for which there is no place go, if its first call has not done so before."""
    await trio.sleep(TURNED_AWAY_S)
    await let_go(transport, TURNED_AWAY_S, TURNED_AWAY_S)


async def let_go(transport: Transport, grace_s: float, last_s: float = LAST_WORDS_S) -> None:
    """Say GOAWAY in two steps; end what streams after the grace period, and what is still open so much later."""
    connection = transport.connection
    goaway_wait_s = min(GOAWAY_WAIT_S, grace_s)
    connection.drain()
    await trio.sleep(goaway_wait_s)
    connection.drain_now()
    await trio.sleep(grace_s - goaway_wait_s)
    retire(transport)
    await trio.sleep(last_s)
    give_up_all(transport)


def retire(transport: Transport) -> None:
    """End the calls that stream, each when it has said all that it owes; others end by themselves. Never raises."""
    try:
        for call in list(transport.connection.streams.values()):
            if not isinstance(call, Call):
                continue
            if call.source is not None:
                call.source.retire()
            elif call.method is not None and call.method.response_streams:
                call.finish(transport.refusals.retired())
        transport.flush()
    except Exception as error:  # noqa: BLE001
        transport.crash(error)


def give_up_all(transport: Transport) -> None:
    """End every call now, so that a connection that drains is finished. Never raises."""
    try:
        calls = [call for call in transport.connection.streams.values() if isinstance(call, Call)]
        for call in calls:
            transport.give_up(call, transport.refusals.retired())
        transport.flush()
        for call in calls:
            call.reset(frames.CANCEL)
        transport.flush()
    except Exception as error:  # noqa: BLE001
        transport.crash(error)
