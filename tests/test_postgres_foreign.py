"""What others decide about the database: settings of the role, triggers, locks, a standby, a restored backup."""

import shutil
from collections.abc import AsyncGenerator

import pytest
from postgres_databases import Databases
from postgres_kit import Outside, ids, message, opened, read_all, until
from postgres_server import PostgresServer

from persistence import BadContent, CannotOpen, OutcomeUnknown, Store, StoreUnavailable, open_store
from persistence.postgres import sweeping


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[Store]:
    async with opened(postgres_url) as store:
        yield store


@pytest.mark.parametrize(
    "sqlstate", ["P0001", "P0002", "P0004", "22000", "23514", "44000", "45000", "42501", "21000", "38000", "XX000"]
)
async def test_whatever_code_a_trigger_chooses_it_is_the_message_that_is_refused(
    store: Store, outside: Outside, sqlstate: str
) -> None:
    outside.do(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF NEW.body = 'bad' THEN RAISE 'not here' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$"
    )
    outside.do(
        "CREATE TRIGGER refuse BEFORE INSERT ON trio_broker.messages FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )
    with pytest.raises(BadContent, match="not here"):
        await store.append([message(body=b"good"), message(body=b"bad")])
    assert ids(await store.append([message(body=b"good")])) == [2]


async def test_a_refusal_is_told_in_few_words(store: Store, outside: Outside) -> None:
    outside.do(
        "CREATE FUNCTION public.quote() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'not this: %', repeat('x', 100000); END $$"
    )
    outside.do(
        "CREATE TRIGGER quote BEFORE INSERT ON trio_broker.messages FOR EACH ROW EXECUTE FUNCTION public.quote()"
    )
    with pytest.raises(BadContent, match=r"not this: x+") as refusal:
        await store.append([message()])
    assert len(str(refusal.value)) < 1000


async def test_a_trigger_that_holds_back_a_subject_puts_no_message_into_another(store: Store, outside: Outside) -> None:
    outside.do(
        "CREATE FUNCTION public.skip() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.name = 'a' THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    outside.do("CREATE TRIGGER skip BEFORE INSERT ON trio_broker.subjects FOR EACH ROW EXECUTE FUNCTION public.skip()")
    batch = [message("a", b"for a"), message("b", b"for b")]
    for refused in (batch, [new._replace(idempotency_key="k") for new in batch]):
        with pytest.raises(StoreUnavailable, match="a trigger holds back"):
            await store.append(refused)
    assert await read_all(store, "b") == []


@pytest.mark.parametrize("setting", ["client_min_messages = error", "lock_timeout = 1", "TimeZone = 'Asia/Kabul'"])
async def test_settings_of_the_role_change_nothing(postgres: Databases, postgres_url: str, setting: str) -> None:
    role = postgres.create_role(postgres_url)
    name = role.partition("//")[2].partition("@")[0]
    with Outside(postgres_url) as outside:
        outside.do(f"CREATE SCHEMA trio_broker AUTHORIZATION {name}")
        outside.do(f"ALTER ROLE {name} SET {setting}")
        async with opened(role) as store, open_store(role) as other:
            assert ids(await store.append([message()])) == [2]
            assert ids(await other.append([message(expiration_s=60)])) == [3]
            assert [record.id for record in await read_all(other)] == [1, 2, 3]


async def test_a_commit_that_no_standby_confirmed_is_no_success_whatever_the_role_wants_to_hear() -> None:
    with PostgresServer() as server, Databases(server.dsn()).new() as url, Outside(url) as outside:
        outside.do("ALTER ROLE postgres SET client_min_messages = error")
        async with opened(url, commit_timeout_s=2) as store:
            outside.do("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            outside.do("SELECT pg_reload_conf()")
            await until(lambda: outside.do("SHOW synchronous_standby_names") == [("nobody",)])
            with pytest.raises(OutcomeUnknown):
                await store.append([message()])
            outside.do("ALTER SYSTEM RESET synchronous_standby_names")
            outside.do("SELECT pg_reload_conf()")


async def test_a_server_that_has_become_a_replica_is_not_read_from(own_postgres: PostgresServer) -> None:
    databases = Databases(own_postgres.dsn())
    signal = own_postgres.directory / "data" / "standby.signal"
    with databases.new() as url:
        async with opened(url) as store:
            own_postgres.stop()
            signal.touch()
            shutil.chown(signal, signal.parent.owner(), signal.parent.group())
            own_postgres.start()
            with pytest.raises(StoreUnavailable, match="read replica"):
                await read_all(store)
            with pytest.raises(StoreUnavailable, match="read replica"):
                await store.append([message()])
            with pytest.raises(CannotOpen, match="it is a read replica; give the address of the primary"):
                async with open_store(url):
                    pass
            own_postgres.stop()
            signal.unlink()
            own_postgres.start()
            assert ids(await store.append([message()])) == [2]


async def test_a_database_that_went_back_in_time_is_told_of(
    store: Store, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    ((flush, last_ids),) = outside.do("SELECT flush, last_ids FROM trio_broker.writers")
    assert ids(await store.append([message()] * 3)) == [2, 3, 4]
    outside.do("UPDATE trio_broker.writers SET flush = %s, last_ids = %s", flush, last_ids)
    outside.do("UPDATE trio_broker.subjects SET last_id = 1")
    outside.do("DELETE FROM trio_broker.messages WHERE id > 1")
    outside.terminate_all()
    assert ids(await store.append([message()])) == [2]
    assert "commits_lost" in caplog.text


async def test_one_message_that_somebody_holds_does_not_keep_a_sweep_from_the_others(
    store: Store, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "WHOLE_INTERVAL_S", 0)  # what was left behind is looked for at once
    await store.append([message(expiration_s=1)] * 3)
    await until(
        lambda: (
            outside.do("SELECT bool_and(expires_at < clock_timestamp()) FROM trio_broker.messages WHERE id > 1")
            == [(True,)]
        )
    )
    with outside.holding("SELECT FROM trio_broker.messages WHERE id = 3 FOR UPDATE") as held:
        assert (await store.sweep()).removed == 2
        assert not (await store.sweep()).more
        held.rollback()
        assert (await store.sweep()).removed == 1


async def test_durability_is_that_of_the_session_that_appends(
    postgres: Databases, store: Store, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.durability().durable
    outside.do("ALTER DATABASE " + outside.url.rpartition("/")[2] + " SET synchronous_commit = off")
    outside.terminate_all()
    assert ids(await store.append([message()])) == [2]
    assert store.durability().setting == "synchronous_commit=off fsync=on"
    assert not store.durability().durable
    assert "durability_changed" in caplog.text


@pytest.mark.parametrize(
    "url", ["postgresql://u:5432/S3cret@host/db", "postgresql://u:p@S3cret@host/db", "postgresql://u:a/S3cret@host/db"]
)
async def test_a_password_that_should_have_been_encoded_is_not_shown(url: str) -> None:
    with pytest.raises(CannotOpen, match="%40 for @") as refusal:
        async with open_store(url):
            pass
    assert "S3cret" not in str(refusal.value)
