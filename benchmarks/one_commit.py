"""How long the store takes to commit one message: what a lone caller has to wait for at least.

Owns:      `OneCommit`, a load that appends through the persistence facade, without a server.
"""

import statistics
import tempfile
import time

import trio

from benchmarks.loads import BODY_BYTES, EXPIRATION_S, Load, Measured, fresh_subject
from benchmarks.servers import SCRATCH, Server
from persistence import NewMessage, open_store


class OneCommit(Load):
    """Append one message after another to a store of its own, in this process.

    On PostgreSQL if the side has a database; otherwise on SQLite, and the server idles.
    """

    def missing(self) -> str:
        """Nothing is needed."""
        return ""

    def run(self, server: Server, seconds: float) -> Measured:
        """Append for ``seconds``."""
        if server.database:
            return trio.run(append_for, server.database.url, seconds)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
            return trio.run(append_for, f"sqlite:///{directory}/store.db", seconds)


async def append_for(url: str, seconds: float) -> Measured:
    """Append one by one; the CPU time is this process's. A checkpoint."""
    message = NewMessage(fresh_subject(), bytes(BODY_BYTES), EXPIRATION_S)
    durations_ms = []
    async with open_store(url) as store:
        await store.append([message])  # the first one also makes the subject
        cpu_s, began = time.process_time(), time.perf_counter()
        while time.perf_counter() < began + seconds:
            before = time.perf_counter()
            await store.append([message])
            durations_ms.append((time.perf_counter() - before) * 1000)
        taken_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    percentiles_ms = statistics.quantiles(durations_ms, n=100)
    return Measured(
        calls=len(durations_ms),
        seconds=taken_s,
        server_cpu_s=cpu_s,
        p50_ms=percentiles_ms[49],
        p99_ms=percentiles_ms[98],
    )
