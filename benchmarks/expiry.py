"""Does the table stay level when messages live for seconds? A broker on PostgreSQL, published to without a pause.

Owns:      the load, one sample a second, what the samples come to.
Not here:  the graph (expiry_graph.py), the servers (servers.py, postgres.py).

h2load sends one request over and over, so there is one h2load for each of 20 lifetimes, with a subject of its own.
How many messages have not expired follows from the ids of those subjects, now and a lifetime ago: nothing is counted
in the table, and nobody but the sweep reads the index that it depends on.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import psycopg
from psycopg.rows import dict_row

from benchmarks.expiry_graph import draw
from benchmarks.h2load import H2Load, succeeded
from benchmarks.loads import ENDING_S
from benchmarks.postgres import Postgres, postgres
from benchmarks.report import machine
from benchmarks.servers import SCRATCH, Place, Server, broker, running

LIFETIMES_S = {f"expiry.{seconds}": seconds for seconds in (round(1 + place * 59 / 19) for place in range(20))}
"""By subject: from 1 s to 60 s, 30.5 s on average."""
STREAMS = 40
"""Publishes that may be in flight for each subject: 800 together."""
RATE = 26_000
"""Publishes a second, over all subjects: times 30.5 s, some 800,000 messages. With as many as the machine can do, the
sizes would follow whatever else it does. When it falls behind, h2load makes up for that a little later."""
MIB = 1024 * 1024

_LAST_IDS = "SELECT name, last_id FROM trio_broker.subjects"
_TOTALS = """
    SELECT pg_table_size('trio_broker.messages') AS table_bytes,
           pg_relation_size('trio_broker.messages_pkey') AS key_index_bytes,
           pg_relation_size('trio_broker.messages_expiry') AS expiry_index_bytes,
           n_tup_ins - n_tup_del AS rows, n_dead_tup AS dead_rows, autovacuum_count AS vacuums,
           (SELECT num_timed + num_requested FROM pg_stat_checkpointer) AS checkpoints,
           (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS wal_bytes
    FROM pg_stat_user_tables WHERE relid = 'trio_broker.messages'::regclass
"""
_OVERDUE_S = """
    SELECT extract(epoch FROM clock_timestamp() - expires_at)::float
    FROM trio_broker.messages ORDER BY expires_at LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read each second: totals since the start, and sizes."""

    at_s: float
    last_ids: Mapping[str, int]
    table_bytes: int
    key_index_bytes: int
    expiry_index_bytes: int
    rows: int
    """In the table. Sessions tell what they inserted and deleted up to a second late."""
    dead_rows: int
    """What vacuum has to clear away, as PostgreSQL estimates it."""
    vacuums: int
    """By autovacuum, ended."""
    checkpoints: int
    wal_bytes: int
    database_cpu_s: float
    broker_cpu_s: float

    @property
    def published(self) -> int:
        """How many messages there ever were."""
        return sum(self.last_ids.values())


@dataclass(frozen=True, slots=True)
class Sample:
    """One second."""

    at_s: float
    published: int
    rate: float
    live_rows: int
    """Messages that have not expired."""
    rows: int
    dead_rows: int
    table_mib: float
    key_index_mib: float
    expiry_index_mib: float
    wal_mib_per_s: float
    vacuums: int
    checkpoints: int
    database_cores: float
    broker_cores: float


def watch_expiry(seconds: int, json_file: Path | None, graph: Path | None) -> str:
    """Publish for ``seconds`` and say how level things were; write all samples, and a graph, where that is wanted.

    Raises:
        RuntimeError: h2load is missing or failed, or its answers are not the ids that the log has.
    """
    if shutil.which("h2load") is None:
        raise RuntimeError("publishing for this needs h2load (Debian: nghttp2-client)")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=SCRATCH)))
        database = stack.enter_context(postgres(SCRATCH))
        command = broker("{database_url}")(Place(directory, database.url))
        server = stack.enter_context(running(command, database))
        readings, overdue_s = readings_of(server, database, seconds)
    samples = samples_from(readings)
    if json_file:
        kept = {"machine": machine(), "overdue_s": overdue_s, "samples": [asdict(sample) for sample in samples]}
        json_file.write_text(json.dumps(kept, indent=1) + "\n")
    if graph:
        graph.write_text(draw(samples))
    return f"{summary(samples)}\nat the end the message that was longest due had expired {overdue_s:.1f} s ago"


def readings_of(server: Server, database: Postgres, seconds: int) -> tuple[list[Reading], float]:
    """Publish and look on. Return what was seen, and how long the oldest message had expired at the end."""
    readings = []
    with psycopg.connect(database.url, autocommit=True) as connection, publishing(server, database, seconds):
        began_s = time.monotonic()
        for number in range(seconds + 1):
            time.sleep(max(0.0, began_s + number - time.monotonic()))
            readings.append(read(connection, server, time.monotonic() - began_s))
        overdue = connection.execute(_OVERDUE_S).fetchone()
    return readings, max(0.0, overdue[0]) if overdue else 0.0


@contextmanager
def publishing(server: Server, database: Postgres, seconds: int) -> Iterator[None]:
    """Publish for the length of the ``with`` block, which takes ``seconds``.

    Raises:
        RuntimeError: a publish failed, or ids and answers do not agree.
    """
    load = H2Load(connections=1, streams=STREAMS)
    programs: dict[str, subprocess.Popen[str]] = {}
    with ExitStack() as stack:
        try:
            for subject, lifetime_s in LIFETIMES_S.items():
                limits = [f"--duration={seconds + 1}", f"--rps={RATE / len(LIFETIMES_S):g}"]
                command = stack.enter_context(load.command(server, subject, *limits, expiration_s=lifetime_s))
                programs[subject] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            yield
            reports = {subject: program.communicate(timeout=ENDING_S)[0] for subject, program in programs.items()}
        finally:
            for program in programs.values():
                program.kill()
                program.communicate()
    last_ids = dict(database.query(_LAST_IDS))
    for subject, report in reports.items():
        answered, appended = succeeded(report), last_ids.get(subject, 0)
        if not 0 < answered <= appended <= answered + STREAMS:  # in flight at the end: appended or not
            raise RuntimeError(f"{subject}: {appended} ids, and h2load says\n{report}")


def read(connection: psycopg.Connection, server: Server, at_s: float) -> Reading:
    """Read everything once."""
    last_ids: dict[str, int] = dict(connection.execute(_LAST_IDS).fetchall())
    (totals,) = connection.cursor(row_factory=dict_row).execute(_TOTALS).fetchall()
    totals |= {"database_cpu_s": server.database_cpu_s(), "broker_cpu_s": server.cpu_s()}
    return Reading(at_s=at_s, last_ids=last_ids, **totals)


def samples_from(readings: Sequence[Reading]) -> list[Sample]:
    """What happened from each reading to the next."""
    return [sample_of(before, after, live_rows(readings, after)) for before, after in pairwise(readings)]


def sample_of(before: Reading, after: Reading, live: int) -> Sample:
    """What happened between two readings."""
    passed_s = after.at_s - before.at_s
    return Sample(
        at_s=round(after.at_s, 2),
        published=after.published,
        rate=round((after.published - before.published) / passed_s),
        live_rows=live,
        rows=after.rows,
        dead_rows=after.dead_rows,
        table_mib=round(after.table_bytes / MIB, 1),
        key_index_mib=round(after.key_index_bytes / MIB, 1),
        expiry_index_mib=round(after.expiry_index_bytes / MIB, 1),
        wal_mib_per_s=round((after.wal_bytes - before.wal_bytes) / MIB / passed_s, 2),
        vacuums=after.vacuums,
        checkpoints=after.checkpoints,
        database_cores=round((after.database_cpu_s - before.database_cpu_s) / passed_s, 3),
        broker_cores=round((after.broker_cpu_s - before.broker_cpu_s) / passed_s, 3),
    )


def live_rows(readings: Sequence[Reading], now: Reading) -> int:
    """How many messages have not expired: those whose ids were given out within the lifetime of their subject."""
    return round(
        sum(
            last_id - last_id_at(readings, subject, now.at_s - LIFETIMES_S[subject])
            for subject, last_id in now.last_ids.items()
        )
    )


def last_id_at(readings: Sequence[Reading], subject: str, at_s: float) -> float:
    """The last id of a subject at a time, as if it had grown evenly between readings."""
    for before, after in pairwise(readings):
        if before.at_s <= at_s <= after.at_s:
            low, high = before.last_ids.get(subject, 0), after.last_ids.get(subject, 0)
            return low + (high - low) * (at_s - before.at_s) / (after.at_s - before.at_s)
    return 0.0


def summary(samples: Sequence[Sample]) -> str:
    """The last three quarters, each beside the others: what stays level is about the same in all."""
    size = len(samples) // 4
    quarters = [samples[place * size : (place + 1) * size] for place in (1, 2, 3)]
    last = samples[-1]
    lines = [f"{last.published:,} messages in {last.at_s:.0f} s; means of the second, third and last quarter"]
    for title, name in _SUMMED.items():
        values = [mean(getattr(sample, name) for sample in quarter) for quarter in quarters]
        lines.append(f"{title:<28}" + "".join(f"{_number(value):>14}" for value in values))
    for title, name in {"autovacuum runs": "vacuums", "checkpoints": "checkpoints"}.items():
        lines.append(f"{title:<28}" + "".join(f"{getattr(q[-1], name) - getattr(q[0], name):>14}" for q in quarters))
    return "\n".join(lines)


_SUMMED = {
    "publishes a second": "rate",
    "messages not expired": "live_rows",
    "messages in the table": "rows",
    "dead rows": "dead_rows",
    "table, MiB": "table_mib",
    "primary key, MiB": "key_index_mib",
    "index of expires_at, MiB": "expiry_index_mib",
    "write-ahead log, MiB/s": "wal_mib_per_s",
    "database CPU, cores": "database_cores",
    "broker CPU, cores": "broker_cores",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
