"""Back up a store while brokers use it.

Owns:      which store is copied by us, and which tool does it for the others.
Not here:  how a file is copied (sqlite/backup.py).
Threads:   the trio thread; what blocks goes to another one.
"""

from functools import partial
from pathlib import Path

import trio

from persistence import threads
from persistence.errors import CannotOpen
from persistence.opening import POSTGRES_SCHEMES
from persistence.sqlite import backup as sqlite

_TOOLS = {
    **dict.fromkeys(POSTGRES_SCHEMES, "PostgreSQL is backed up by its own tools: pg_dump, or WAL archiving"),
    "cassandra": "Cassandra is backed up by its own tools: nodetool snapshot, on every node",
    "memory": "a store in memory keeps nothing that could be backed up",
}


async def back_up(url: str, destination: Path, *, replace: bool) -> int:
    """Copy the SQLite store at ``url`` to the file ``destination``; return its size in bytes. A checkpoint.

    Cancelled, it stops between two steps and leaves nothing behind. The errors are those of
    `persistence.sqlite.backup.back_up`; for other stores `CannotOpen` tells which tool to use instead.
    """
    scheme = url.partition(":")[0]
    if scheme != "sqlite":
        raise CannotOpen(_TOOLS.get(scheme, f"no store is called {scheme!r}; write sqlite:///path"))
    copy = partial(sqlite.back_up, url, destination, replace=replace, between=trio.from_thread.check_cancelled)
    return await threads.to_the_end(copy)
