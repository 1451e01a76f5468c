"""Opening a PostgreSQL store: what is refused, with what words; migrations by several processes and with few rights."""

import logging
import sys
from functools import partial

import psycopg
import pytest
import trio
from blackhole import Blackhole
from postgres_databases import Databases
from postgres_kit import Outside, Task, ids, message, opened, read_all, until
from postgres_server import PostgresServer

from persistence import CannotOpen, SchemaNotReady, StoreUnavailable, migrate, open_store
from persistence.postgres import opening, schema
from persistence.postgres.connection import Address
from persistence.postgres.opening import version_of

LATEST = len(schema.STEPS)


async def refusal(
    url: str, kind: type[Exception] = CannotOpen, *, migrate: bool = True, commit_timeout_s: float = 10
) -> str:
    with pytest.raises(kind) as refused:
        async with open_store(url, migrate=migrate, commit_timeout_s=commit_timeout_s):
            pass
    text = str(refused.value)
    assert "\n" not in text
    return text


def role_of(url: str) -> str:
    return url.partition("//")[2].partition("@")[0].partition(":")[0]


async def test_either_scheme_will_do(postgres_url: str) -> None:
    async with opened(postgres_url.replace("postgresql://", "postgres://")) as store:
        durability = store.durability()
        assert durability.kind.startswith("PostgreSQL 1")
        assert " " not in durability.kind.removeprefix("PostgreSQL ")
        assert durability.setting == "synchronous_commit=on fsync=on"
        assert durability.durable
        assert store.limits().shared


@pytest.mark.parametrize("setting", ["off", "local"])
async def test_a_commit_that_does_not_wait_for_the_disk_is_told(
    postgres_url: str, outside: Outside, setting: str
) -> None:
    outside.do(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET synchronous_commit = {setting}")
    async with open_store(postgres_url) as store:
        assert store.durability().setting == f"synchronous_commit={setting} fsync=on"
        assert store.durability().durable == (setting != "off")
        told = "durable but for the last moment" if setting == "off" else "durable"
        assert store.durability().meaning.partition(":")[0] == told


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("?foo=secret", 'invalid URI query parameter: "foo"'),
        ("?sslmode=%zz", "write postgresql://user:password@host:5432/database"),
        ("?connect_timeout=secret", "write postgresql://user:password@host:5432/database"),
        ("?sslmode=maybe", 'invalid sslmode value: "maybe"; correct the URL'),
    ],
)
async def test_a_url_that_cannot_be_read(ending: str, expected: str) -> None:
    text = await refusal(f"postgresql://user:secret@127.0.0.1:1/database{ending}")
    assert expected in text
    assert "secret" not in text


async def test_missing_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "persistence.postgres.store")
    monkeypatch.setitem(sys.modules, "psycopg_pool", None)
    monkeypatch.delitem(sys.modules, "persistence.postgres.pool")
    assert 'pip install "trio-broker[postgres]"' in await refusal("postgresql://host/database")


async def test_a_wrong_password_and_none(own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Databases(own_postgres.dsn()) as databases:
        url = databases.create_role(own_postgres.dsn(), password="right")
        text = await refusal(url.replace("right", "wr0ng"))
        assert "password authentication failed" in text
        assert "check the user and the password" in text
        assert "wr0ng" not in text + caplog.text
        assert "no password supplied; write the password in the URL" in await refusal(url.replace(":right", ""))


async def test_a_database_that_does_not_exist(postgres_url: str) -> None:
    text = await refusal(f"{postgres_url}_not")
    assert text.endswith("does not exist; create it, or correct the URL")
    assert text.startswith("PostgreSQL at 127.0.0.1:")


async def test_a_role_that_may_not_connect(postgres: Databases, postgres_url: str, outside: Outside) -> None:
    outside.do(f"REVOKE CONNECT ON DATABASE {postgres_url.rpartition('/')[2]} FROM public")
    assert "GRANT CONNECT" in await refusal(postgres.create_role(postgres_url))


async def test_a_role_that_may_not_log_in(postgres: Databases, postgres_url: str, outside: Outside) -> None:
    url = postgres.create_role(postgres_url)
    outside.do(f"ALTER ROLE {role_of(url)} NOLOGIN")
    assert "is not permitted to log in; ALTER ROLE it LOGIN" in await refusal(url)


async def test_a_server_without_ssl(own_postgres: PostgresServer) -> None:
    assert "choose another sslmode in the URL" in await refusal(f"{own_postgres.dsn()}?sslmode=require")


async def test_a_role_that_may_create_no_schema(postgres: Databases, postgres_url: str) -> None:
    text = await refusal(postgres.create_role(postgres_url))
    assert "permission denied for database" in text
    assert "CREATE SCHEMA trio_broker AUTHORIZATION" in text


async def test_a_role_without_rights_on_the_tables(postgres: Databases, postgres_url: str, outside: Outside) -> None:
    url = postgres.create_role(postgres_url)
    async with open_store(postgres_url):
        pass
    assert "permission denied for schema" in await refusal(url)
    outside.do(f"GRANT USAGE ON SCHEMA trio_broker TO {role_of(url)}")
    assert "permission denied for table" in await refusal(url)
    for table in ("schema_version", "writers", "subjects"):
        outside.do(f"GRANT SELECT, INSERT, UPDATE ON trio_broker.{table} TO {role_of(url)}")
    assert "permission denied for table messages" in await refusal(url)
    outside.do(f"GRANT SELECT, INSERT ON trio_broker.messages TO {role_of(url)}")
    assert "permission denied for table keys" in await refusal(url)
    outside.do(f"GRANT SELECT, INSERT, UPDATE ON trio_broker.keys TO {role_of(url)}")
    assert "permission denied for table subjects" in await refusal(url)
    outside.do(f"GRANT DELETE ON trio_broker.subjects TO {role_of(url)}")
    async with open_store(url) as store:
        assert ids(await store.append([message()])) == [1]
        assert ids(await store.append([message()._replace(idempotency_key="k")])) == [2]


async def test_a_role_that_owns_only_the_schema(postgres: Databases, postgres_url: str, outside: Outside) -> None:
    url = postgres.create_role(postgres_url)
    outside.do(f"CREATE SCHEMA trio_broker AUTHORIZATION {role_of(url)}")
    for _ in range(2):
        async with open_store(url) as store:
            await store.append([message()])
            await store.compare_and_set("leader", b"", version=0)
            await store.sweep()


async def test_a_server_that_is_too_old(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "VERSION_MIN", 99_00_00)
    assert "13 or later is needed" in await refusal(postgres_url)


async def test_a_read_replica(own_postgres: PostgresServer) -> None:
    signal = own_postgres.directory / "data" / "standby.signal"
    own_postgres.stop()
    signal.touch()
    try:
        own_postgres.start()
        assert "give the address of the primary" in await refusal(own_postgres.dsn())
    finally:
        signal.unlink()
        own_postgres.restart()


async def test_an_encoding_that_cannot_hold_every_subject(postgres: Databases) -> None:
    name = "trio_broker_test_latin1"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        assert "LATIN1" in await refusal(f"{postgres.url.rpartition('/')[0]}/{name}")
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_schema_of_another_application(postgres_url: str, outside: Outside) -> None:
    outside.do("CREATE SCHEMA trio_broker")
    outside.do("CREATE TABLE trio_broker.theirs ()")
    assert "another application" in await refusal(postgres_url)
    outside.do("DROP TABLE trio_broker.theirs")
    async with open_store(postgres_url):
        pass


async def test_a_schema_of_a_later_release(postgres_url: str, outside: Outside) -> None:
    async with open_store(postgres_url):
        pass
    outside.do("INSERT INTO trio_broker.schema_version VALUES (99, now())")
    assert f"has schema version 99, and this release knows versions up to {LATEST}" in await refusal(postgres_url)
    with pytest.raises(CannotOpen, match="version 99"):
        version_of(postgres_url)


async def test_no_schema_and_no_migration(postgres_url: str) -> None:
    text = await refusal(postgres_url, SchemaNotReady, migrate=False)
    assert text.endswith(
        f"has no schema yet, and this release needs version {LATEST}: run 'trio-broker migrate up', "
        "or start a broker once without --no-migrate"
    )
    assert version_of(postgres_url) == 0
    async with open_store(postgres_url):
        pass
    assert version_of(postgres_url) == LATEST
    async with open_store(postgres_url, migrate=False):
        pass


async def test_a_schema_of_the_first_version_keeps_what_it_has_and_learns_keys_and_purging(
    postgres_url: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", schema.STEPS[:1])
        outside.do(schema.script(0))
    outside.do("INSERT INTO trio_broker.subjects (name, last_id, last_at) VALUES ('orders', 1, now())")
    outside.do("INSERT INTO trio_broker.messages VALUES (1, 1, now(), NULL, NULL, 'first')")
    assert f"schema version 1, and this release needs version {LATEST}" in await refusal(
        postgres_url, SchemaNotReady, migrate=False
    )
    keyed = message()._replace(idempotency_key="k")
    async with open_store(postgres_url) as store:
        assert [outcome[0] for outcome in await store.append([keyed, keyed])] == [2, 2]
        assert await store.subjects() == ["orders"]
        assert [record.body for record in await read_all(store)] == [b"first", b"x"]
        assert await store.delete_subject("orders", 2) is None
        assert await store.subjects() == []


async def test_an_older_schema_is_brought_up_to_date(
    postgres_url: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_url):
        pass
    second = "ALTER TABLE trio_broker.messages ADD COLUMN note text;\n"
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, second))
    assert f"has schema version {LATEST}, and this release needs version {LATEST + 1}" in await refusal(
        postgres_url, SchemaNotReady, migrate=False
    )
    async with open_store(postgres_url) as store:
        assert [record.body for record in await read_all(store)] == [b"first"]
    assert outside.do("SELECT version FROM trio_broker.schema_version ORDER BY version") == [
        (n,) for n in range(1, LATEST + 2)
    ]
    assert outside.do("SELECT note FROM trio_broker.messages") == [(None,)]


async def test_a_step_that_fails_leaves_nothing_behind(
    postgres_url: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", (*schema.STEPS, "CREATE TABLE trio_broker.more (); SELECT 1 / 0;\n"))
        assert "division by zero" in await refusal(postgres_url, StoreUnavailable)
    assert version_of(postgres_url) == 0
    async with open_store(postgres_url):
        pass


async def test_an_administrator_may_run_the_script(postgres_url: str, outside: Outside) -> None:
    outside.do("CREATE SCHEMA trio_broker")
    outside.do(schema.script(0))
    assert version_of(postgres_url) == LATEST
    async with opened(postgres_url, commit_timeout_s=10):
        pass
    assert "CREATE" not in schema.script(LATEST)


async def test_several_open_a_new_database_at_once(postgres_url: str, outside: Outside) -> None:
    async def open_and_append() -> None:
        async with open_store(postgres_url) as store:
            await store.append([message()])

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(open_and_append)
    assert outside.do("SELECT version FROM trio_broker.schema_version") == [(n,) for n in range(1, LATEST + 1)]
    assert outside.do("SELECT last_id FROM trio_broker.subjects") == [(6,)]


async def test_a_migration_lets_brokers_that_serve_go_first_while_somebody_else_holds_a_table(
    postgres_url: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dump does for hours: who waits for its lock would hold up everybody behind."""
    monkeypatch.setattr(schema, "LOCK_WAIT_S", 0.3)
    monkeypatch.setattr(schema, "LOCK_PAUSE_S", 0.1)
    async with opened(postgres_url) as serving, trio.open_nursery() as nursery:
        monkeypatch.setattr(
            schema, "STEPS", (*schema.STEPS, "ALTER TABLE trio_broker.subjects ADD COLUMN note text;\n")
        )
        with outside.holding("LOCK TABLE trio_broker.subjects IN ACCESS SHARE MODE"):
            migrations = [Task(nursery, migrate, postgres_url) for _ in range(2)]
            for last_id in (2, 3, 4):
                await until(outside.stuck)
                assert ids(await serving.append([message()])) == [last_id]
            assert version_of(postgres_url) == LATEST
            assert all(each.is_running for each in migrations)
        assert [await each.result() for each in migrations] == [(LATEST + 1, LATEST + 1)] * 2
        assert ids(await serving.append([message()])) == [5]
        assert len(await read_all(serving)) == 5


async def test_waiting_for_another_process_that_migrates_is_cancelled_at_once(
    postgres_url: str, outside: Outside
) -> None:
    with outside.holding(f"SELECT pg_advisory_xact_lock({schema.MIGRATION_LOCK})"):
        async with trio.open_nursery() as nursery:
            task = Task(nursery, partial(refusal, postgres_url))
            while not outside.stuck():
                await trio.lowlevel.checkpoint()
            task.scope.cancel()
            began = trio.current_time()
        assert trio.current_time() - began < 1
        assert not outside.stuck()


async def test_a_server_that_is_not_there_may_be_there_later(postgres_url: str) -> None:
    text = await refusal("postgresql://127.0.0.1:1/database", StoreUnavailable)
    assert text == "PostgreSQL at 127.0.0.1:1/database: Connection refused"
    assert "resolve host" in await refusal("postgresql://host.invalid/database", StoreUnavailable)


async def test_too_many_connections() -> None:
    with PostgresServer(max_connections="5", superuser_reserved_connections="0", reserved_connections="0") as server:
        connections = [psycopg.connect(server.dsn()) for _ in range(5)]
        assert "too many clients" in await refusal(server.dsn(), StoreUnavailable)
        for connection in connections:
            connection.close()


async def test_a_server_that_says_nothing(postgres: Databases, postgres_url: str) -> None:
    with Blackhole.before(postgres.url) as hole:
        hole.hold()
        url = f"{hole.through(postgres_url)}?connect_timeout=2"
        assert "timeout expired" in await refusal(url, StoreUnavailable)


def test_an_address_shows_no_password() -> None:
    address = Address("postgresql://user:secret@a.example,b.example:6432/database?sslpassword=secret", 5)
    assert str(address) == "PostgreSQL at a.example:5432,b.example:6432/database"
    assert "secret" not in repr(address)
