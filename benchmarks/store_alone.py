"""The store by itself, through the persistence facade, without a server: what a flush takes at least.

Owns:      `StoreAlone`, a load that appends one flush after another.
"""

import statistics
import tempfile
import time

import trio

from benchmarks.loads import BODY_BYTES, EXPIRATION_S, Load, Measured, fresh_subject
from benchmarks.servers import SCRATCH, Server
from persistence import NewMessage, open_store


class StoreAlone(Load):
    """Append to a store of its own, in this process: on the side's database, or else on SQLite, and the server idles.

    Args:
        subjects: those of each flush.
        batch_messages: of each subject in a flush. With 1, percentiles are what a lone message has to wait for.
    """

    def __init__(self, *, subjects: int = 1, batch_messages: int = 1) -> None:
        self._subjects = subjects
        self._batch_messages = batch_messages

    def missing(self) -> str:
        """Nothing is needed."""
        return ""

    def run(self, server: Server, seconds: float) -> Measured:
        """Append for ``seconds``."""
        if server.database:
            return trio.run(self._append_for, server, server.database.url, seconds)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
            return trio.run(self._append_for, server, f"sqlite:///{directory}/store.db", seconds)

    async def _append_for(self, server: Server, url: str, seconds: float) -> Measured:
        """Append one flush after another; the CPU time is this process's. A checkpoint."""
        subjects = [fresh_subject() for _ in range(self._subjects)]
        flush = [NewMessage(subject, bytes(BODY_BYTES), EXPIRATION_S) for subject in subjects] * self._batch_messages
        durations_ms = []
        async with open_store(url) as store:
            await store.append(flush)  # the first one also makes the subjects
            database_cpu_s, cpu_s = server.database_cpu_s(), time.process_time()
            began = time.perf_counter()
            while time.perf_counter() < began + seconds:
                before = time.perf_counter()
                await store.append(flush)
                durations_ms.append((time.perf_counter() - before) * 1000)
            taken_s = time.perf_counter() - began
            cpu_s, database_cpu_s = time.process_time() - cpu_s, server.database_cpu_s() - database_cpu_s
            heads = [await store.head(subject) for subject in subjects]
        percentiles_ms = statistics.quantiles(durations_ms, n=100)
        expected = self._batch_messages * (len(durations_ms) + 1)
        return Measured(
            calls=len(flush) * len(durations_ms),
            seconds=taken_s,
            server_cpu_s=cpu_s,
            database_cpu_s=database_cpu_s,
            p50_ms=percentiles_ms[49],
            p99_ms=percentiles_ms[98],
            batch_messages=self._batch_messages,
            problem="" if all(head.last_id == expected for head in heads) else f"not {expected} each: {heads}",
        )


class StoreAsFlushed(StoreAlone):
    """The same in flushes such as the broker has just made."""

    def following(self, ours: Measured) -> StoreAlone:
        """Each subject gets as many messages at once as it did there."""
        return StoreAlone(subjects=self._subjects, batch_messages=max(1, round(ours.batch_messages)))
