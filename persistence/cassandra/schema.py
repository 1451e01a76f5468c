"""The keyspace and its tables, and how a keyspace of an older version becomes one of this version.

Owns:      the tables and their numbered steps; the table ``store``, which says how a keyspace is to be used, and which
           brokers may not.
Not here:  statements on the tables (buckets.py, writing.py, reading.py, registers.py).
Threads:   worker threads; each function blocks.

Nodes agree on the schema among themselves, and not by the consistency of statements. Tables that two nodes make at the
same time under one name may be different ones to them: all brokers ask the same node to make them.
"""

from collections.abc import Callable
from typing import NamedTuple

from cassandra import ConsistencyLevel, InvalidRequest
from cassandra.cluster import Session
from cassandra.pool import Host
from cassandra.query import SimpleStatement

from persistence.cassandra.address import Address, read_url
from persistence.errors import CannotOpen, StoreUnavailable
from persistence.versions import check_version

_KEYSPACE = """
CREATE KEYSPACE IF NOT EXISTS {keyspace}
    WITH replication = {{'class': 'NetworkTopologyStrategy', '{dc}': {factor}}};
"""
_FIRST = (
    """
-- All subjects, those of a shard in the order of their UTF-8 bytes; a shard is the first of these bytes.
CREATE TABLE IF NOT EXISTS {keyspace}.subjects (
    shard smallint,
    subject text,
    PRIMARY KEY (shard, subject)
);
""",
    """
-- The buckets of a subject's log. The row of one whose messages have all expired goes by its TTL.
CREATE TABLE IF NOT EXISTS {keyspace}.buckets (
    subject text,
    base_id bigint,
    began_at bigint,
    PRIMARY KEY (subject, base_id)
) WITH CLUSTERING ORDER BY (base_id DESC) AND gc_grace_seconds = 10800;
""",
    """
-- One partition is a bucket: its state, and rows of three kinds. Chunks of messages have the id of their last one,
-- attempts that of their first one below 0, and the last row the greatest number, and nothing else.
-- A read must not copy a part of what a node has to another one: readers rely on a flush being there as a whole.
-- Rows go by their TTL, and on all nodes at once: nothing can bring them back, however soon they are forgotten.
CREATE TABLE IF NOT EXISTS {keyspace}.log (
    subject text,
    base_id bigint,
    id bigint,
    chunk blob,
    attempt uuid,
    last_id bigint STATIC,
    last_at bigint STATIC,
    size bigint STATIC,
    until bigint STATIC,
    sealed boolean STATIC,
    PRIMARY KEY ((subject, base_id), id)
) WITH read_repair = 'NONE' AND gc_grace_seconds = 10800;
""",
    """
CREATE TABLE IF NOT EXISTS {keyspace}.registers (
    shard tinyint,
    name text,
    value blob,
    version bigint,
    attempt uuid,
    last_version bigint STATIC,
    PRIMARY KEY (shard, name)
);
""",
    """
-- One row, which never changes: who decides on conditions, the nodes of one datacenter or of all.
CREATE TABLE IF NOT EXISTS {keyspace}.store (
    id tinyint PRIMARY KEY,
    version int,
    serial text,
    dc text
);
""",
)

_KEYS = (
    """
-- Who was about to append a message with an idempotency key, and where: see keys.py. Rows go by their TTL.
CREATE TABLE IF NOT EXISTS {keyspace}.keys (
    subject text,
    key text,
    attempt uuid,
    base_id bigint,
    first_id bigint,
    id bigint,
    appended_at bigint,
    expires_at bigint,
    PRIMARY KEY ((subject, key), attempt)
) WITH gc_grace_seconds = 10800;
""",
)

_GONE = (
    """
-- Up to which id nothing of a bucket is kept, and when the subject was deleted while this was its last one: purging.py.
ALTER TABLE {keyspace}.log ADD (floor bigint STATIC, gone_at bigint STATIC);
""",
)

_NO_READ_REPAIR = "read_repair = 'NONE' AND "

STEPS = (_FIRST, _KEYS, _GONE)
"""Step n makes a keyspace of version n from one of version n - 1. A released step never changes."""

_READ = "SELECT version, serial, dc FROM {keyspace}.store WHERE id = 0"
_RECORD = """
INSERT INTO {keyspace}.store (id, version, serial, dc) VALUES (0, {version}, '{serial}', '{dc}') IF NOT EXISTS;
"""
_ADVANCE = "UPDATE {keyspace}.store SET version = {version} WHERE id = 0 IF version = {from_version};\n"
_TABLE = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s AND table_name = 'store'"
_NOT_YET = ("does not exist", "unconfigured table")
_COLUMN = """
SELECT column_name FROM system_schema.columns
WHERE keyspace_name = %s AND table_name = 'log' AND column_name = 'gone_at'
"""
_REPLICATION = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = %s"


class Recorded(NamedTuple):
    """What a keyspace says of itself."""

    version: int
    serial: str
    dc: str
    """Whose nodes decide on conditions; empty: those of all datacenters."""


def read_record(session: Session, address: Address) -> Recorded | None:
    """Return what a keyspace says of itself; None: it has not been made yet."""
    if session.execute(_TABLE, [address.keyspace]).one() is None:
        return None
    try:
        row = session.execute(_READ.format(keyspace=address.keyspace)).one()
    except InvalidRequest as error:
        if any(text in str(error) for text in _NOT_YET):
            return None  # it is being made: a node lists a table a moment before it knows it
        raise
    return Recorded(**row) if row else None


def check_ours(address: Address, dc: str, recorded: Recorded | None, *, migrate: bool) -> None:
    """Refuse a keyspace that is newer than this release, older when ``migrate`` is false, or used in another way.

    Raises:
        CannotOpen: with what to do. SchemaNotReady: it is older, or missing.
    """
    version = recorded.version if recorded else 0
    check_version(address, version, len(STEPS), migrate=migrate)
    if recorded and (recorded.serial, recorded.dc) != (address.serial, _deciding(address, dc)):
        wanted = f"consistency=LOCAL_QUORUM and dc={recorded.dc}" if recorded.dc else "consistency=QUORUM"
        raise CannotOpen(
            f"{address} is written with {recorded.serial} consistency{recorded.dc and ' in ' + recorded.dc}, and this "
            f"URL says {address.serial} in {dc}: such brokers would give an id twice; write {wanted}"
        )


def migrate_to_latest(
    session: Session, address: Address, dc: str, from_version: int, check_cancelled: Callable[[], None]
) -> Recorded:
    """Make the keyspace and the tables that a version lacks; return what it says of itself then.

    Safe when several processes do so.
    """
    nodes = [host for host in session.cluster.metadata.all_hosts() if host.datacenter == dc]
    if replication_factor(session, address, dc) is None and len(nodes) < address.replication_factor:
        raise CannotOpen(
            f"{address}: {address.replication_factor} replicas are wanted, and the datacenter {dc} has {len(nodes)} "
            f"nodes; add nodes, or write replication_factor={len(nodes)} in the URL"
        )
    first_node = min((node for node in nodes if node.is_up), key=lambda node: node.host_id, default=None)
    option = _NO_READ_REPAIR if session.cluster.is_shard_aware() else ""  # ScyllaDB does not know it; see `Statement`
    for statement in _schema(address, dc, from_version):
        check_cancelled()
        if not _make(session, address, statement.replace(option, ""), first_node):
            raise StoreUnavailable(f"{address}: the nodes do not agree on the schema yet")
    # Among all datacenters: two that decide each by itself might both be first.
    record = SimpleStatement(
        _record(address, dc, from_version),
        consistency_level=ConsistencyLevel.QUORUM,
        serial_consistency_level=ConsistencyLevel.SERIAL,
    )
    row = session.execute(record).one()
    if row["[applied]"] and not from_version:
        return Recorded(len(STEPS), address.serial, _deciding(address, dc))
    recorded = read_record(session, address)
    assert recorded is not None
    return recorded


def _make(session: Session, address: Address, statement: str, node: Host | None) -> bool:
    """Change the schema, unless that has been done; say whether the nodes agree on it."""
    try:
        return bool(session.execute(statement, host=node).response_future.is_schema_agreed)
    except InvalidRequest:  # there is no IF NOT EXISTS for columns before Cassandra 4.1
        if "ALTER TABLE" not in statement or session.execute(_COLUMN, [address.keyspace], host=node).one() is None:
            raise
        return True


def replication_factor(session: Session, address: Address, dc: str) -> int | None:
    """Return how many replicas there are where the consistency of the address counts; None: no keyspace."""
    row = session.execute(_REPLICATION, [address.keyspace]).one()
    if row is None:
        return None
    factors: dict[str, str] = dict(row["replication"])
    if "SimpleStrategy" in factors.pop("class"):
        return int(factors["replication_factor"])
    return sum(int(factor) for name, factor in factors.items() if not _deciding(address, dc) or name == dc)


def script(url: str, from_version: int) -> str:
    """Return what `migrate_to_latest` does to a keyspace of that version, for an administrator to run by cqlsh."""
    address = read_url(url)
    if address.dc is None:
        raise CannotOpen(f"{address}: name the datacenter in the URL, by dc=")
    deciding = "CONSISTENCY QUORUM;\nSERIAL CONSISTENCY SERIAL;\n"
    record = _record(address, address.dc, from_version)
    return "".join([*_schema(address, address.dc, from_version), deciding, record])


def _schema(address: Address, dc: str, from_version: int) -> list[str]:
    keyspace = _KEYSPACE.format(keyspace=address.keyspace, dc=dc, factor=address.replication_factor)
    steps = [statement.format(keyspace=address.keyspace) for step in STEPS[from_version:] for statement in step]
    return steps if from_version else [keyspace, *steps]


def _record(address: Address, dc: str, from_version: int) -> str:
    if from_version:
        return _ADVANCE.format(keyspace=address.keyspace, version=len(STEPS), from_version=from_version)
    return _RECORD.format(
        keyspace=address.keyspace, version=len(STEPS), serial=address.serial, dc=_deciding(address, dc)
    )


def _deciding(address: Address, dc: str) -> str:
    """Return whose nodes decide on conditions: one datacenter, or, empty, all."""
    return dc if address.serial == "LOCAL_SERIAL" else ""
