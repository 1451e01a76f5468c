"""Opening a Cassandra store: what is refused, with what words; making a keyspace, by several processes at once too."""

import sys
from types import SimpleNamespace

import pytest
import trio
from cassandra import InvalidRequest
from cassandra_keyspaces import Keyspaces, keyspace_of
from cassandra_kit import opened
from postgres_kit import ids, message, read_all

from persistence import (
    CannotOpen,
    Outcome,
    Schema,
    SchemaNotReady,
    StoreUnavailable,
    migrate,
    migration_sql,
    open_store,
    read_schema,
)
from persistence.cassandra import schema
from persistence.cassandra.address import Address, read_url
from persistence.cassandra.schema import replication_factor

LATEST = len(schema.STEPS)


async def refusal(url: str, kind: type[Exception] = CannotOpen, *, migrate: bool = True) -> str:
    with pytest.raises(kind) as refused:
        async with open_store(url, migrate=migrate, commit_timeout_s=5):
            pass
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_a_url_says_everything() -> None:
    address = read_url(
        "cassandra://jo:p%40ss@one,two:9142,[::1]/broker?dc=east&consistency=quorum&serial=SERIAL&replication_factor=5"
    )
    assert address.hosts == (("one", 9142), ("two", 9142), ("::1", 9142))
    assert address.login is not None
    assert tuple(address.login) == ("jo", "p@ss")
    assert (address.keyspace, address.dc, address.replication_factor) == ("broker", "east", 5)
    assert (address.consistency, address.serial) == ("QUORUM", "SERIAL")
    assert address.tls is None
    assert "p@ss" not in f"{address} {address!r} {address.login!r}"


def test_a_url_that_says_little() -> None:
    address = read_url("cassandra://host/broker")
    assert str(address) == "Cassandra at host:9042/broker"
    assert address.login is None
    assert address.dc is None
    assert (address.consistency, address.serial, address.replication_factor) == ("LOCAL_QUORUM", "LOCAL_SERIAL", 3)


def test_encryption_in_a_url() -> None:
    def hosts_are_checked(address: Address) -> bool | None:
        return address.tls and address.tls.check_hostname

    assert hosts_are_checked(read_url("cassandra://host/broker?ssl=true")) is True
    assert hosts_are_checked(read_url("cassandra://host/broker?ssl=true&check_hostname=false")) is False
    assert hosts_are_checked(read_url("cassandra://host/broker?ssl=false&ca=/nowhere")) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("jo:secret@host/broker?datacenter=a", "no parameter 'datacenter'; there are dc, consistency"),
        ("jo:secret@host/broker?consistancy=QUORUM", "no parameter 'consistancy'; did you mean consistency?"),
        ("jo:secret@host/broker?consistency=LOCAL_ONE", "does not keep what it acknowledges; choose LOCAL_QUORUM or"),
        ("jo:secret@host/broker?serial=SERIAL", "consistency=LOCAL_QUORUM goes with serial=LOCAL_SERIAL, not SERIAL"),
        ("jo:secret@host/broker?replication_factor=0", "replication_factor=0 is no number of replicas"),
        ("jo:secret@host/broker?ssl=yes", "ssl=yes is neither true nor false"),
        ("jo:secret@host/broker?ca=/nowhere", "ca=/nowhere: No such file or directory"),
        ("jo:secret@host/broker?ca=/dev/null", "ca=/dev/null: "),
        ("jo@host/broker?password_file=/nowhere", "password_file=/nowhere: No such file or directory"),
        ("jo:secret@host/broker?password_file=/nowhere", "goes with a user, and without a password"),
        ("host/broker?password_file=/nowhere", "goes with a user, and without a password"),
        ("jo hn:secret@host/broker", "percent-encode special characters in the user and the password"),
        ("jo:sec/ret-secret@host/broker", "percent-encode special characters in the user and the password"),
        ("jo:secret@one:1,two:2/broker", "the nodes of a cluster listen on one port, and it names 1, 2"),
        ("jo:secret@host", "'' is no name of a keyspace"),
        ("jo:secret@host/Broker", "'Broker' is no name of a keyspace; it has a-z, 0-9 and _"),
        ("jo:secret@host:port/broker", "'host:port' is no host"),
        ("jo:secret@one,,two/broker", "it names no host"),
        ("/broker", "it names no host"),
    ],
)
async def test_a_url_that_cannot_be_read(url: str, expected: str) -> None:
    text = await refusal(f"cassandra://{url}")
    assert text.startswith("the Cassandra URL cannot be read: ")
    assert expected in text
    assert "secret" not in text


async def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("persistence.cassandra.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cassandra.cluster", None)
    assert 'pip install "trio-broker[cassandra]"' in await refusal("cassandra://host/broker")


async def test_nobody_there() -> None:
    text = await refusal("cassandra://127.0.0.1:1/broker", StoreUnavailable)
    assert text == "Cassandra at 127.0.0.1:1/broker: 127.0.0.1:1: Connection refused"
    text = await refusal("cassandra://nowhere.invalid/broker", StoreUnavailable)
    assert text.endswith("the names of the hosts cannot be resolved")


async def test_a_keyspace_is_made_and_says_how_it_keeps_messages(
    cassandra_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(cassandra_url) as store:
        durability = store.durability()
        assert durability.kind.startswith("Cassandra 5.")
        assert durability.setting == "LOCAL_QUORUM LOCAL_SERIAL replication_factor=1 commitlog_sync=batch"
        assert durability.durable
        assert store.limits().shared
    assert "store_not_replicated" in caplog.text
    async with open_store(cassandra_url, migrate=False) as store:
        assert await store.subjects() == ["orders"]


async def test_more_replicas_than_nodes(cassandra: Keyspaces, cassandra_url: str) -> None:
    text = await refusal(cassandra_url.partition("?")[0])
    assert "3 replicas are wanted, and the datacenter datacenter1 has 1 nodes; add nodes, or write" in text
    assert not cassandra.execute(
        "SELECT * FROM system_schema.keyspaces WHERE keyspace_name = %s", keyspace_of(cassandra_url)
    )


async def test_without_migration_nothing_is_made(cassandra_url: str) -> None:
    text = await refusal(cassandra_url, SchemaNotReady, migrate=False)
    assert f"has no schema yet, and this release needs version {LATEST}: run 'trio-broker migrate up'" in text
    assert await read_schema(cassandra_url) == Schema(0, LATEST)


async def test_an_unknown_datacenter(cassandra_url: str) -> None:
    text = await refusal(f"{cassandra_url}&dc=east")
    assert text.endswith("has no datacenter east; there are datacenter1")


async def test_a_keyspace_that_is_written_in_another_way(cassandra: Keyspaces, cassandra_url: str) -> None:
    async with opened(cassandra_url):
        pass
    text = await refusal(f"{cassandra_url}&consistency=QUORUM")
    assert "is written with LOCAL_SERIAL consistency in datacenter1, and this URL says SERIAL" in text
    assert text.endswith("write consistency=LOCAL_QUORUM and dc=datacenter1")
    cassandra.execute(f"UPDATE {keyspace_of(cassandra_url)}.store SET dc = 'east' WHERE id = 0")
    text = await refusal(cassandra_url)
    assert "LOCAL_SERIAL consistency in east, and this URL says LOCAL_SERIAL in datacenter1" in text
    assert "such brokers would give an id twice" in text


async def test_a_keyspace_of_all_datacenters(cassandra_url: str) -> None:
    async with opened(f"{cassandra_url}&consistency=QUORUM") as store:
        assert store.durability().setting.startswith("QUORUM SERIAL replication_factor=1")
    text = await refusal(cassandra_url)
    assert "is written with SERIAL consistency, and this URL says LOCAL_SERIAL" in text
    assert text.endswith("write consistency=QUORUM")


async def test_a_keyspace_of_a_later_release(cassandra: Keyspaces, cassandra_url: str) -> None:
    async with opened(cassandra_url):
        pass
    cassandra.execute(f"UPDATE {keyspace_of(cassandra_url)}.store SET version = 99 WHERE id = 0")
    assert f"schema version 99, and this release knows versions up to {LATEST}" in await refusal(cassandra_url)


@pytest.mark.parametrize("table", ["log (a int PRIMARY KEY)", "store (a int PRIMARY KEY)"])
async def test_tables_of_another_application(cassandra: Keyspaces, cassandra_url: str, table: str) -> None:
    make_keyspace(cassandra, cassandra_url, "datacenter1")
    cassandra.execute(f"CREATE TABLE {keyspace_of(cassandra_url)}.{table}")
    assert "may hold tables of another application; use another one" in await refusal(cassandra_url)


@pytest.mark.parametrize("told", ["table store does not exist", "unconfigured table store"])
def test_a_table_that_a_node_lists_before_it_knows_it_is_not_there_yet(told: str) -> None:
    def execute(statement: str, *_: object) -> SimpleNamespace:
        if "system_schema" not in statement:
            raise InvalidRequest(told)
        return SimpleNamespace(one=lambda: {"table_name": "store"})

    assert schema.read_record(SimpleNamespace(execute=execute), read_url("cassandra://host/broker")) is None


@pytest.mark.parametrize(
    ("options", "here", "everywhere"),
    [
        ("NetworkTopologyStrategy east=3", 3, 3),
        ("NetworkTopologyStrategy east=3 west=2", 3, 5),
        ("NetworkTopologyStrategy west=2", 0, 2),
        ("SimpleStrategy replication_factor=2", 2, 2),
    ],
)
def test_how_many_replicas_count(options: str, here: int, everywhere: int) -> None:
    name, *factors = options.split()
    replication = {"class": f"org.apache.cassandra.locator.{name}", **dict(each.split("=") for each in factors)}
    session = SimpleNamespace(execute=lambda *_: SimpleNamespace(one=lambda: {"replication": replication}))
    assert replication_factor(session, read_url("cassandra://host/broker"), "east") == here
    assert replication_factor(session, read_url("cassandra://host/broker?consistency=QUORUM"), "east") == everywhere


def make_keyspace(cassandra: Keyspaces, url: str, dc: str) -> None:
    cassandra.execute(
        f"CREATE KEYSPACE {keyspace_of(url)} WITH replication = {{'class': 'NetworkTopologyStrategy', '{dc}': 1}}"
    )


async def test_several_stores_are_opened_at_once_where_nothing_is_yet(cassandra_url: str) -> None:
    found: list[int] = []

    async def append() -> None:
        async with open_store(cassandra_url) as store:
            found.extend(ids(await store.append([message()])))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(append)
    assert sorted(found) == [1, 2, 3, 4]


async def test_migrating_apart_from_opening(cassandra_url: str) -> None:
    assert await migrate(cassandra_url) == Schema(LATEST, LATEST)
    assert await read_schema(cassandra_url) == Schema(LATEST, LATEST)
    assert await migration_sql(cassandra_url) == ""


@pytest.mark.parametrize("version", range(1, LATEST))
async def test_a_keyspace_of_an_older_version_is_brought_up_to_date(
    cassandra: Keyspaces, cassandra_url: str, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    url = f"{cassandra_url}&dc=datacenter1"
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", schema.STEPS[:version])
        run(cassandra, await migration_sql(url))
    assert f"has schema version {version}, and this release needs version {LATEST}" in await refusal(
        url, SchemaNotReady, migrate=False
    )
    script = await migration_sql(url)
    assert "CREATE KEYSPACE" not in script
    run(cassandra, script)
    assert await read_schema(url) == Schema(LATEST, LATEST)
    assert await migration_sql(url) == ""


async def test_several_stores_bring_a_keyspace_up_to_date_at_once(
    cassandra: Keyspaces, cassandra_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", schema.STEPS[:1])
        run(cassandra, await migration_sql(f"{cassandra_url}&dc=datacenter1"))
    outcomes: list[Outcome] = []

    async def append() -> None:
        async with open_store(cassandra_url) as store:
            outcomes.extend(await store.append([message()._replace(idempotency_key="k")]))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(append)
    assert [outcome[0] for outcome in outcomes] == [1] * 4
    assert await read_schema(cassandra_url) == Schema(LATEST, LATEST)


async def test_a_step_that_was_taken_and_not_recorded_is_no_obstacle(cassandra: Keyspaces, cassandra_url: str) -> None:
    """A broker that brought the tables up to date may have been cut off before it said so."""
    async with opened(cassandra_url):
        pass
    for version in range(1, LATEST):
        cassandra.execute(f"UPDATE {keyspace_of(cassandra_url)}.store SET version = {version} WHERE id = 0")
        async with open_store(cassandra_url) as store:
            assert await store.subjects() == ["orders"]
    cassandra.execute(f"UPDATE {keyspace_of(cassandra_url)}.store SET version = 1 WHERE id = 0")
    cassandra.execute(f"DROP TABLE {keyspace_of(cassandra_url)}.log")
    assert "may hold tables of another application" in await refusal(cassandra_url)


async def test_what_an_older_version_left_is_purged_deleted_and_goes_on(
    cassandra: Keyspaces, cassandra_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two messages in a bucket that is sealed, and one in the next; listed at a time that the node chose."""
    url = f"{cassandra_url}&dc=datacenter1"
    keyspace = keyspace_of(url)
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", schema.STEPS[:2])
        run(cassandra, await migration_sql(url))
    chunks = {
        0: bytes.fromhex("00060a24181e400000000001ffffffff000000000000000161" + "00000000ffffffff000000000000000162"),
        2: bytes.fromhex("00060a24181e400000000000ffffffff000000000000000163"),
    }
    time_us = 1_700_000_000_000_000
    cassandra.execute(f"INSERT INTO {keyspace}.subjects (shard, subject) VALUES (%s, 'orders')", ord("o"))
    for base_id, last_id, sealed in ((0, 2, True), (2, 3, False)):
        cassandra.execute(
            f"INSERT INTO {keyspace}.buckets (subject, base_id, began_at) VALUES ('orders', %s, 0)", base_id
        )
        cassandra.execute(
            f"INSERT INTO {keyspace}.log (subject, base_id, last_id, last_at, size, until, sealed)"
            f" VALUES ('orders', {base_id}, {last_id}, {time_us}, 34, {2**63 - 1}, {sealed}) IF NOT EXISTS"
        )
        cassandra.execute(
            f"INSERT INTO {keyspace}.log (subject, base_id, id) VALUES ('orders', {base_id}, {2**63 - 1})"
        )
        cassandra.execute(
            f"INSERT INTO {keyspace}.log (subject, base_id, id, chunk) VALUES ('orders', %s, %s, %s)",
            base_id, last_id, chunks[base_id],
        )  # fmt: skip
    async with open_store(url) as store:
        assert [(record.id, record.body) for record in await read_all(store)] == [(1, b"a"), (2, b"b"), (3, b"c")]
        assert await store.subjects() == ["orders"]
        assert await store.purge("orders", 1) == 3
        assert [record.id for record in await read_all(store)] == [2, 3]
        assert ids(await store.append([message()])) == [4]
        assert await store.delete_subject("orders", 4) is None
        assert await read_all(store) == []
        assert await store.subjects() == []
        assert ids(await store.append([message()])) == [5]
        assert await store.subjects() == ["orders"]


def run(cassandra: Keyspaces, script: str) -> None:
    for statement in script.split(";\n"):
        if statement.strip() and "CONSISTENCY" not in statement:  # those are cqlsh's own
            cassandra.execute(statement)


async def test_what_an_administrator_is_given_makes_the_keyspace(cassandra: Keyspaces, cassandra_url: str) -> None:
    with pytest.raises(CannotOpen, match="name the datacenter in the URL, by dc="):
        await migration_sql(cassandra_url)
    url = f"{cassandra_url}&dc=datacenter1"
    run(cassandra, await migration_sql(url))
    async with open_store(url, migrate=False) as store:
        assert ids(await store.append([message()])) == [1]
