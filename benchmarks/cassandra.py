"""A Cassandra node for one side of a workload, and what the sides left there.

Owns:      its settings, what it costs, reading back what was published.
Not here:  how it is made and started (tests/cassandra_server.py), who uses it (workloads.py).

Each side has a node of its own: what one leaves to do, such as compactions, another never pays for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from benchmarks.clocks import cpu_s_of
from benchmarks.loads import BODY_BYTES, Kept
from benchmarks.servers import Server
from persistence import open_store
from tests.cassandra_keyspaces import connected
from tests.cassandra_server import MISSING, CassandraServer, is_there

KEYSPACE = "bench"
PAGE_MESSAGES = 2000
PAGE_BYTES = 4 * 1024 * 1024

# The tests' nodes start fast and stay small; this one is to serve load, compiled as well as Java can.
_JVM = ("-Xms1g", "-Xmx1g", "-XX:TieredStopAtLevel=4")

_BUCKETS = f"SELECT base_id FROM {KEYSPACE}.buckets WHERE subject = %s"
# the row of an attempt goes with each batch, and has an id below 0
_BATCHES = f"SELECT count(*) FROM {KEYSPACE}.log WHERE subject = %s AND base_id = %s AND id < 0"
_ROWS = f"SELECT count(*) FROM {KEYSPACE}.messages WHERE subject = %s"


@dataclass(slots=True)
class Cassandra:
    """A running node; its keyspace is made by who uses it."""

    url: str
    pid: int
    counted: str = ""

    def cpu_s(self) -> float:
        """CPU time of its one process so far."""
        return cpu_s_of(self.pid)


def missing() -> str:
    """Why no node can be run; empty: one can."""
    return "" if is_there() else MISSING


@contextmanager
def cassandra(place: Path) -> Iterator[Cassandra]:
    """Run a node with ``commitlog_sync: batch``, its files in ``place``, which is on a disk, for the ``with`` block."""
    with CassandraServer(place=place, jvm=_JVM) as server:
        yield Cassandra(server.url(KEYSPACE), server.pid)


def kept_by_broker(server: Server, subject: str) -> Kept:
    """Read the log of a subject: its ids must be 1, 2, 3 and so on. Count its batches, whose rows live for minutes."""
    assert server.database is not None
    messages = trio.run(_read_log, server.database.url, subject)
    with connected(server.database.url) as session:
        buckets = [base_id for (base_id,) in session.execute(_BUCKETS, [subject])]
        batches = sum(session.execute(_BATCHES, [subject, base_id]).one()[0] for base_id in buckets)
    return Kept(messages, batches)


async def _read_log(url: str, subject: str) -> int:
    """Return how many messages there are. A checkpoint.

    Raises:
        RuntimeError: an id or a body is missing.
    """
    last_id = 0
    async with open_store(url) as store:
        while True:
            page = await store.read(subject, last_id, max_messages=PAGE_MESSAGES, max_bytes=PAGE_BYTES)
            for record in page.records:
                if record.id != last_id + 1 or len(record.body) != BODY_BYTES:
                    raise RuntimeError(f"after id {last_id} of {subject} the log has {record}")
                last_id = record.id
            if not page.records:
                return last_id


def kept_by_peer(server: Server, subject: str) -> Kept:
    """Count the rows of a subject in the table of grpcio_cassandra_server.py, each written by itself."""
    assert server.database is not None
    with connected(server.database.url) as session:
        rows = session.execute(_ROWS, [subject]).one()[0]
    return Kept(rows, rows)
