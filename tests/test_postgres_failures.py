"""What a failing PostgreSQL means: which error, nothing applied, and a store that works again afterwards by itself."""

from collections.abc import AsyncGenerator, Iterator
from functools import partial

import pytest
import trio
from postgres_databases import Databases
from postgres_kit import Outside, Task, ids, message, opened, until
from postgres_server import PostgresServer

from persistence import (
    BadContent,
    Head,
    Key,
    NewMessage,
    OutcomeUnknown,
    Record,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
)


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[Store]:
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture
def outside(postgres_url: str, store: Store) -> Iterator[Outside]:
    with Outside(postgres_url) as outside:
        yield outside


def on_insert(outside: Outside, body: str, *, when: str = "true", deferred: bool = False) -> None:
    """Let a user's trigger do something for each message that is kept."""
    outside.do(
        "CREATE OR REPLACE FUNCTION public.picky() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {when} THEN {body}; END IF; RETURN NEW; END $$"
    )
    if deferred:
        kind, last = "CONSTRAINT TRIGGER picky AFTER", "DEFERRABLE INITIALLY DEFERRED"
    else:
        kind, last = "TRIGGER picky BEFORE", ""
    outside.do(f"CREATE {kind} INSERT ON trio_broker.messages {last} FOR EACH ROW EXECUTE FUNCTION public.picky()")


async def refused(store: Store, kind: type[StoreError], *batch: NewMessage) -> str:
    """Append a batch that must fail, and check that nothing of it was applied."""
    with pytest.raises(kind) as raised:
        await store.append(batch)
    assert await store.head("orders") == Head(1, 1)
    assert await store.head("other") == Head(1, 0)
    assert [type(found) for found in await store.get([Key("orders", 1)])] == [Record]
    return str(raised.value)


async def works_again(store: Store) -> None:
    assert ids(await store.append([message(body=b"second")])) == [2]
    assert await store.head("orders") == Head(1, 2)


@pytest.mark.parametrize("deferred", [False, True], ids=["at once", "at the commit"])
async def test_a_trigger_that_refuses_a_body_refuses_the_batch(store: Store, outside: Outside, deferred: bool) -> None:
    on_insert(outside, "RAISE 'poison is not taken'", when="NEW.body = 'poison'", deferred=deferred)
    text = await refused(store, BadContent, message(), message(body=b"poison"), message("other"))
    assert text == "poison is not taken (SQLSTATE P0001)"
    await works_again(store)


async def test_a_refusal_at_the_commit_counts_although_the_answer_was_sent_before(
    store: Store, outside: Outside
) -> None:
    """An answer this long leaves the server before it commits."""
    on_insert(outside, "RAISE 'not this many'", when="NEW.body = 'poison'", deferred=True)
    await refused(store, BadContent, message(body=b"poison"), *[message(f"s{n}") for n in range(2_000)])
    assert await store.subjects() == ["orders"]
    await works_again(store)


async def test_a_constraint_that_refuses_a_body(store: Store, outside: Outside) -> None:
    outside.do("ALTER TABLE trio_broker.messages ADD CONSTRAINT picky CHECK (body <> 'secret')")
    text = await refused(store, BadContent, message(), message(body=b"secret"))
    assert "picky" in text
    assert b"secret".hex() not in text
    await works_again(store)


async def test_a_full_disk_and_space_that_returns(store: Store, outside: Outside) -> None:
    on_insert(outside, "RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'")
    assert "No space left" in await refused(store, StoreFull, message(), message("other"))
    outside.do("DROP TRIGGER picky ON trio_broker.messages")
    await works_again(store)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_conflict_is_tried_again(store: Store, outside: Outside, sqlstate: str) -> None:
    outside.do("CREATE SEQUENCE public.tries")
    on_insert(outside, f"RAISE 'planted' USING ERRCODE = '{sqlstate}'", when="nextval('public.tries') < 3")
    await works_again(store)
    assert outside.do("SELECT last_value FROM public.tries") == [(3,)]


async def test_a_conflict_that_does_not_end_is_unavailable(store: Store, outside: Outside) -> None:
    on_insert(outside, "RAISE 'planted' USING ERRCODE = '40001'")
    assert "planted" in await refused(store, StoreUnavailable, message(), message("other"))
    outside.do("DROP TRIGGER picky ON trio_broker.messages")
    await works_again(store)


async def test_a_table_that_is_gone_is_unavailable(store: Store, outside: Outside) -> None:
    outside.do("ALTER TABLE trio_broker.messages RENAME TO gone")
    for call in (
        partial(store.append, [message()]),
        partial(store.read, "orders", 0, max_messages=1, max_bytes=1),
        partial(store.get, [Key("orders", 1)]),
        partial(store.head, "orders"),
        store.sweep,
    ):
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await call()
    outside.do("ALTER TABLE trio_broker.gone RENAME TO messages")
    await works_again(store)


async def test_a_prepared_statement_that_is_gone_is_prepared_again(store: Store) -> None:
    session = store._writer._session  # type: ignore[attr-defined]
    session.connection.execute("DEALLOCATE ALL")  # as a pooler may lose it
    with pytest.raises(StoreUnavailable, match="prepared statement"):
        await store.append([message()])
    await works_again(store)


async def test_rights_that_were_taken_away(postgres: Databases, postgres_url: str) -> None:
    role = postgres.create_role(postgres_url)
    name = role.partition("//")[2].partition("@")[0]
    with Outside(postgres_url) as outside:
        outside.do(f"CREATE SCHEMA trio_broker AUTHORIZATION {name}")
        async with opened(role) as store:
            outside.do(f"REVOKE INSERT ON trio_broker.messages FROM {name}")
            assert "permission denied" in await refused(store, StoreUnavailable, message())
            outside.do(f"GRANT INSERT ON trio_broker.messages TO {name}")
            await works_again(store)


async def test_a_bug_of_the_caller_is_not_taken_for_the_databases(store: Store) -> None:
    with pytest.raises(TypeError):
        await store.append([message(), message(body=object())])  # type: ignore[arg-type]
    await works_again(store)


async def test_a_connection_lost_amid_a_change_leaves_its_outcome_unknown(store: Store, outside: Outside) -> None:
    for change in (
        partial(store.compare_and_set, "leader", b"", version=0),
        partial(store.delete, "leader", version=1),
    ):
        async with trio.open_nursery() as nursery:
            with outside.holding("LOCK TABLE trio_broker.registers"):
                changing = Task(nursery, change)
                await until(outside.stuck)
                outside.terminate(*outside.stuck())
                with pytest.raises(OutcomeUnknown, match="it may have been done"):
                    await changing.result()


async def test_a_restarted_server_is_used_again_at_once(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url:
        async with opened(url) as store:
            async with trio.open_nursery() as nursery:  # so that there are many connections to be dead
                for _ in range(8):
                    nursery.start_soon(store.now)
            own_postgres.restart()
            assert await store.head("orders") == Head(1, 1)
            own_postgres.restart()
            assert await store.compare_and_set("leader", b"", version=0)
            own_postgres.restart()
            await works_again(store)


async def test_a_server_that_is_down_is_unavailable_with_the_reason(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url:
        async with opened(url) as store:
            own_postgres.kill9()
            for call in (
                partial(store.append, [message()]),
                partial(store.head, "orders"),
                store.now,
                store.sweep,
                partial(store.compare_and_set, "leader", b"", version=0),
            ):
                with pytest.raises(StoreUnavailable, match="Connection refused"):
                    await call()
            own_postgres.start()
            await works_again(store)
