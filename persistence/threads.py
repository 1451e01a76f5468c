"""The one way into a worker thread for blocking drivers.

Owns:      whether a thread's work is finished or left behind when its caller is cancelled.
Not here:  connections, and how many there are (persistence/sqlite/).
Threads:   called from the trio thread; ``fn`` runs in a worker thread.

One limiter per pool, with as many tokens as the pool has connections: waiting then happens in trio
(cancellable, first come first served, visible), not in a thread.
"""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


async def write(limiter: trio.CapacityLimiter, fn: Callable[[*Ts], R], *args: *Ts) -> R:
    """Run ``fn`` in a thread to its end, even if the caller is cancelled meanwhile. A checkpoint.

    A started write is never abandoned: it would commit with nobody told. So a trio deadline does not bound
    it; the database's own timeout must.
    """
    return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=False, limiter=limiter)


async def read(limiter: trio.CapacityLimiter, fn: Callable[[*Ts], R], *args: *Ts) -> R:
    """Run ``fn``, which changes nothing, in a thread; leave it behind if the caller is cancelled. A checkpoint.

    A thread left behind keeps its token until it ends. ``fn`` itself takes a connection from the pool and puts it
    back, so that tokens and connections agree; what it returns or raises then is dropped.
    """
    return await trio.to_thread.run_sync(fn, *args, abandon_on_cancel=True, limiter=limiter)
