"""What is compared with what.

Owns:      the table of workloads.
Not here:  how load is made (loads.py, h2load.py), rounds (__main__.py), printing (report.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import cassandra, postgres
from benchmarks.h2load import AtOnce, H2Load, LoneBesideFlood
from benchmarks.loads import BrokerLoad, Kept, Load, Measured
from benchmarks.pgbench import COUNTED, PLAIN, Pgbench, Script
from benchmarks.reads import PlainReads
from benchmarks.servers import (
    Command,
    DatabaseKind,
    Server,
    broker,
    encrypted,
    grpcio_aio,
    grpcio_aio_on_cassandra,
    grpcio_aio_on_postgres,
)
from benchmarks.store_alone import StoreAlone, StoreAsFlushed

REHEARSALS = 3
"""On Cassandra: Java compiles what has run often."""

MEMORY = broker("memory:")
ENCRYPTED = encrypted("memory:")
SQLITE = broker("sqlite:///{directory}/broker.db")
ON_DATABASE = broker("{database_url}")
POSTGRES = DatabaseKind(postgres.postgres, postgres.missing)
CASSANDRA = DatabaseKind(cassandra.cassandra, cassandra.missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing that is compared."""

    title: str
    value: Callable[[Measured], float]
    more_is_better: bool = False


RATE = Measure(title="calls/s", value=lambda m: m.rate, more_is_better=True)
CPU = Measure(title="server CPU, us/call", value=lambda m: m.cpu_us)
DATABASE_CPU = Measure(title="database CPU, us/call", value=lambda m: m.database_cpu_us)
BATCH = Measure(title="messages/batch", value=lambda m: m.batch_messages, more_is_better=True)
P50 = Measure(title="p50, ms", value=lambda m: m.p50_ms)
P99 = Measure(title="p99, ms", value=lambda m: m.p99_ms)
BYTES = Measure(title="bytes/subscription", value=lambda m: m.bytes_per_stream)
CALLS = (RATE, CPU, P50, P99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the things compared: a server and its load."""

    name: str
    command: Command | None
    """None: it has no server but its database."""
    load: Load
    database: DatabaseKind | None = None
    """It gets one of its own."""
    measures: tuple[Measure, ...] = ()
    """What it is compared by, if not by all that the workload has."""

    def missing(self) -> str:
        """Why it cannot run on this machine; empty: it can."""
        return self.load.missing() or (self.database.missing() if self.database else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Two sides or more, ours first, measured in turns."""

    name: str
    what: str
    sides: tuple[Side, ...]
    measures: tuple[Measure, ...] = CALLS
    restart: bool = False
    """Every measurement gets a server of its own: one that has grown once does not grow again."""
    rehearsals: int = 0
    """Rounds before the first that counts."""

    def missing(self) -> str:
        """Why this cannot run on this machine; empty: it can."""
        return next((missing for side in self.sides if (missing := side.missing())), "")


def against_grpcio(
    name: str, what: str, load: Load, measures: tuple[Measure, ...] = CALLS, *, restart: bool = False
) -> Workload:
    """The broker on its memory store and the peer, under the same load."""
    ours = Side(name="trio-broker", command=MEMORY, load=load)
    peer = Side(name="grpcio.aio", command=grpcio_aio, load=load)
    return Workload(name=name, what=what, sides=(ours, peer), measures=measures, restart=restart)


def many_against_grpcio(name: str, what: str, load: Load) -> Workload:
    """Many messages a call at the broker on its memory store, and one a call at the peer; a call is a message."""
    ours = Side(name="trio-broker", command=MEMORY, load=load)
    peer = Side(name="grpcio.aio, unary", command=grpcio_aio, load=BrokerLoad("publish"))
    return Workload(name=name, what=what, sides=(ours, peer), measures=(RATE, CPU))


def stream_on(name: str, store: str, command: Command, database: DatabaseKind | None = None) -> Workload:
    """Streams to a durable store, and that store alone in flushes as large as the broker's may be."""
    ours = Side(name=f"trio-broker on {store}", command=command, load=STREAM, database=database)
    alone = Side(
        name="the store alone, such flushes",
        command=None if database else command,
        load=StoreAlone(batch_messages=FLUSH_MESSAGES),
        database=database,
        measures=(RATE, CPU),
    )
    what = "PublishStream, 4 streams, 8 requests of 100 messages on their way on each; a call is a message"
    return Workload(name=name, what=what, sides=(ours, alone), measures=(RATE, CPU, P50, P99))


def replay_on(name: str, store: str, command: Command, database: DatabaseKind | None = None) -> Workload:
    """A log that is replayed by SubscribeBatch, and its rows read by the plain driver."""
    ours = Side(
        name=f"trio-broker on {store}", command=command, load=BrokerLoad("replay", **REPLAYED), database=database
    )
    plain = Side(
        name="the plain driver",
        command=None if database else command,
        load=PlainReads(**REPLAYED),
        database=database,
    )
    what = "a replay of 200,000 messages of 150 bytes by SubscribeBatch; a call is a message"
    return Workload(name=name, what=what, sides=(ours, plain), measures=(RATE, CPU))


def on_sqlite(name: str, what: str, load: Load, other: Side, measures: tuple[Measure, ...] = CALLS) -> Workload:
    """The broker on SQLite, and something to hold it against."""
    ours = Side(name="trio-broker on SQLite", command=SQLITE, load=load)
    return Workload(name=name, what=what, sides=(ours, other), measures=measures)


def on_postgres(name: str, what: str, load: H2Load) -> Workload:
    """The broker on PostgreSQL, a peer that inserts row by row, and the database alone doing so for as many clients."""
    clients = load.connections * load.streams
    rows = H2Load(connections=load.connections, streams=load.streams, shared_ids=True)
    sides = (
        Side(name="trio-broker on PostgreSQL", command=ON_DATABASE, load=load, database=POSTGRES),
        Side(name="grpcio.aio, a row per call", command=grpcio_aio_on_postgres, load=rows, database=POSTGRES),
        by_pgbench(f"pgbench x {clients}, INSERT", PLAIN, clients),
        by_pgbench(f"pgbench x {clients}, counter + INSERT", COUNTED, clients),
    )
    return Workload(name=name, what=what, sides=sides, measures=(RATE, CPU, DATABASE_CPU, P50, P99))


def by_pgbench(name: str, script: Script, clients: int) -> Side:
    """The database without a server before it: nothing but its rate can be compared."""
    load = Pgbench(script, clients=clients)
    return Side(name=name, command=None, load=load, database=POSTGRES, measures=(RATE,))


def lone_on_postgres(name: str, what: str) -> Workload:
    """One caller, and what a commit takes that caller's store."""
    ours = Side(name="trio-broker on PostgreSQL", command=ON_DATABASE, load=LONE, database=POSTGRES)
    other = Side(name="one commit by the store", command=None, load=StoreAlone(), database=POSTGRES)
    return Workload(name=name, what=what, sides=(ours, other))


def on_cassandra(name: str, what: str, streams: Sequence[tuple[int, int]]) -> Workload:
    """The broker on Cassandra, a peer that inserts row by row, and the store alone in flushes like the broker's.

    ``streams``: for each subject how many connections publish to it, and how many calls are in flight on each of them.
    """
    ours = Side(
        name="trio-broker on Cassandra",
        command=ON_DATABASE,
        load=read_back(cassandra.kept_by_broker, streams),
        database=CASSANDRA,
    )
    rows = Side(
        name="grpcio.aio, a row per call",
        command=grpcio_aio_on_cassandra,
        load=read_back(cassandra.kept_by_peer, streams),
        database=CASSANDRA,
    )
    alone = Side(
        name="the store alone, such flushes",
        command=None,
        load=StoreAsFlushed(subjects=len(streams)),
        database=CASSANDRA,
        measures=(RATE, CPU, DATABASE_CPU, BATCH),
    )
    sides, measures = (ours, rows, alone), (RATE, CPU, DATABASE_CPU, BATCH, P50, P99)
    return Workload(name=name, what=what, sides=sides, measures=measures, rehearsals=REHEARSALS)


def read_back(kept: Callable[[Server, str], Kept], streams: Sequence[tuple[int, int]]) -> Load:
    """Unary publishes to subjects at once, which are read back."""
    return AtOnce(*(H2Load(connections=connections, streams=each, kept=kept) for connections, each in streams))


def workers_on_postgres(name: str, what: str, load: Load, of_two: Load | None = None) -> Workload:
    """Two workers and one, each with a database of its own. ``of_two``: the load of the two, if it is another one."""
    command = broker("{database_url}", "--workers", "2")
    two = Side(name="--workers 2", command=command, load=of_two or load, database=POSTGRES)
    one = Side(name="--workers 1", command=ON_DATABASE, load=load, database=POSTGRES)
    return Workload(name=name, what=what, sides=(two, one), measures=(RATE, CPU, DATABASE_CPU, P50, P99))


def lone_on_cassandra(name: str, what: str) -> Workload:
    """One caller, the same at the peer, and what one conditional batch takes."""
    sides = (
        Side(name="trio-broker on Cassandra", command=ON_DATABASE, load=LONE, database=CASSANDRA),
        Side(name="grpcio.aio, a row per call", command=grpcio_aio_on_cassandra, load=LONE, database=CASSANDRA),
        Side(name="one batch by the store", command=None, load=StoreAlone(), database=CASSANDRA),
    )
    return Workload(name=name, what=what, sides=sides, rehearsals=REHEARSALS)


def in_plaintext(load: Load) -> Side:
    """The broker without TLS."""
    return Side(name="in plaintext", command=MEMORY, load=load)


def in_memory(load: Load) -> Side:
    """The broker's own memory store, which shows what durability costs."""
    return Side(name="on its memory store", command=MEMORY, load=load)


FOUR_BY_1 = H2Load(connections=4, streams=1)
FOUR_BY_25 = H2Load(connections=4, streams=25)
EIGHT_BY_100 = H2Load(connections=8, streams=100)
EIGHT_SUBJECTS = AtOnce(*[H2Load(connections=1, streams=100)] * 8)
SIXTEEN_SUBJECTS = AtOnce(*[H2Load(connections=1, streams=100)] * 16)
WAITING = BrokerLoad("fanout", subscribers=100, window=1)
LATENCY = BrokerLoad("latency", rate=200)
IDLE = BrokerLoad("idle", subscribers=5000, connections=10)
LONE = BrokerLoad("publish", connections=1, callers=1)
STREAM = BrokerLoad("stream", window=8)
REPLAYED = {"messages": 200_000, "body": 150}
FLUSH_MESSAGES = 1024  # as the broker's by default
HEALTHY = {"subscribers": 64, "rate": 500}
STALLED = Side(name="beside 64 stalled ones", command=MEMORY, load=BrokerLoad("stalled", stalled=64, **HEALTHY))
UNDISTURBED = Side(name="64 healthy ones alone", command=MEMORY, load=BrokerLoad("stalled", **HEALTHY))
ONE_COMMIT = Side(name="one commit by the store", command=SQLITE, load=StoreAlone())
ALONE = Side(name="without it", command=SQLITE, load=LONE)
FLOODED = LoneBesideFlood(H2Load(connections=4, streams=1000))

WORKLOADS = (
    against_grpcio("publish-h2load", "unary Publish, h2load, 4 connections x 25 streams", FOUR_BY_25),
    against_grpcio("publish", "unary Publish, 5 s deadlines, 4 x 25 callers", BrokerLoad("publish", deadline="5s")),
    Workload(
        name="tls",
        what="unary Publish, h2load, 4 connections x 25 streams",
        sides=(Side(name="with TLS", command=ENCRYPTED, load=FOUR_BY_25), in_plaintext(FOUR_BY_25)),
    ),
    Workload(
        name="tls-lone",
        what="unary Publish, h2load, 4 connections, one call at a time on each",
        sides=(Side(name="with TLS", command=ENCRYPTED, load=FOUR_BY_1), in_plaintext(FOUR_BY_1)),
    ),
    many_against_grpcio("publish-stream", "PublishStream of 100 messages a request, 4 streams", STREAM),
    many_against_grpcio("publish-stream-1", "the same, a message a request", BrokerLoad("stream", batch=1, window=256)),
    many_against_grpcio("publish-batch", "PublishBatch of 100 messages, 4 x 2 callers", BrokerLoad("batch", callers=2)),
    against_grpcio("fetch", "unary Fetch of random ids, 4 x 25 callers", BrokerLoad("fetch")),
    against_grpcio("fanout-1", "1 subscriber, 256 publishes in flight", BrokerLoad("fanout", subscribers=1)),
    against_grpcio("fanout-10", "10 subscribers, 256 publishes in flight", BrokerLoad("fanout", subscribers=10)),
    against_grpcio("fanout-100", "100 subscribers, 256 publishes in flight", BrokerLoad("fanout", subscribers=100)),
    against_grpcio("fanout-1000", "1,000 subscribers, 256 publishes in flight", BrokerLoad("fanout", subscribers=1000)),
    against_grpcio("fanout-waiting", "100 subscribers, one publish in flight", WAITING),
    Workload(
        name="stalled",
        what="500 publishes a second to 64 subscribers; a call is a delivery, from when its publish was due",
        sides=(STALLED, UNDISTURBED),
        measures=(P50, P99, CPU),
    ),
    against_grpcio("latency", "200 publishes a second, from when each was due", LATENCY, (CPU, P50, P99)),
    against_grpcio("idle", "5,000 idle subscriptions", IDLE, (BYTES,), restart=True),
    on_sqlite("sqlite-4x25", "unary Publish, h2load, 4 x 25", FOUR_BY_25, in_memory(FOUR_BY_25)),
    on_sqlite("sqlite-8x100", "unary Publish, h2load, 8 x 100", EIGHT_BY_100, in_memory(EIGHT_BY_100)),
    on_sqlite("lone", "one caller", LONE, ONE_COMMIT),
    on_sqlite("flood", "one caller beside 4 x 1,000", FLOODED, ALONE, (P50, P99)),
    stream_on("sqlite-stream", "SQLite", SQLITE),
    stream_on("postgres-stream", "PostgreSQL", ON_DATABASE, POSTGRES),
    replay_on("sqlite-replay", "SQLite", SQLITE),
    replay_on("postgres-replay", "PostgreSQL", ON_DATABASE, POSTGRES),
    on_postgres("postgres-4x25", "unary Publish, h2load, 4 x 25", FOUR_BY_25),
    on_postgres("postgres-8x100", "unary Publish, h2load, 8 x 100", EIGHT_BY_100),
    lone_on_postgres("postgres-lone", "one caller"),
    workers_on_postgres("postgres-workers", "unary Publish to 8 subjects, h2load, 8 x 100", EIGHT_SUBJECTS),
    workers_on_postgres("postgres-workers-1", "unary Publish to 1 subject, h2load, 8 x 100", EIGHT_BY_100),
    workers_on_postgres(
        "postgres-workers-busy",
        "unary Publish to a subject a connection, h2load, 8 x 100 for each worker",
        EIGHT_SUBJECTS,
        SIXTEEN_SUBJECTS,
    ),
    on_cassandra("cassandra-1x100", "unary Publish to 1 subject, h2load, 100 streams", [(4, 25)]),
    on_cassandra("cassandra-1x800", "unary Publish to 1 subject, h2load, 800 streams", [(8, 100)]),
    on_cassandra("cassandra-8x100", "unary Publish to 8 subjects, h2load, 100 streams", [(1, 12), (1, 13)] * 4),
    on_cassandra("cassandra-8x800", "unary Publish to 8 subjects, h2load, 800 streams", [(1, 100)] * 8),
    lone_on_cassandra("cassandra-lone", "one caller"),
)
