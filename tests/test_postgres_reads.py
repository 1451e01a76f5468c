"""Reads that wait: deadlines and cancellation reach the server, and nobody waits longer than that. And closing."""

import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trio.testing
from blackhole import Blackhole
from postgres_databases import Databases
from postgres_kit import STORES, Outside, Task, message, opened, read_all, until
from postgres_server import PostgresServer
from psycopg.rows import TupleRow

from persistence import Head, OutcomeUnknown, StoreUnavailable
from persistence.postgres.connection import Connection
from persistence.postgres.pool import READERS
from persistence.postgres.store import PostgresStore

BUSY = "LOCK TABLE trio_broker.subjects"
"""Whoever reads waits for who holds this."""


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[PostgresStore]:
    async with opened(postgres_url) as store:
        yield store


def statement_timeout(connection: Connection) -> str:
    ((setting,),) = connection.ask("SELECT current_setting('statement_timeout')")
    return str(setting)


async def test_a_cancelled_read_is_gone_from_the_server_and_its_connection_goes_on(
    store: PostgresStore, outside: Outside
) -> None:
    with outside.holding(BUSY):
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(store.head, "orders")
            await until(lambda: len(outside.stuck()) == READERS)
            backends = {*outside.stuck()}
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 0.1  # the callers are free at once
        await until(lambda: not outside.stuck())
        assert trio.current_time() - began < 1
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(store.head, "orders")
            await until(lambda: len(outside.stuck()) == READERS)
            assert {*outside.stuck()} == backends
            nursery.cancel_scope.cancel()
    assert await store.head("orders") == Head(1, 1)


async def test_a_read_out_of_time_is_gone_from_the_server_too(store: PostgresStore, outside: Outside) -> None:
    with outside.holding(BUSY):
        began = trio.current_time()
        with trio.move_on_after(0.2):
            await store.head("orders")
        assert trio.current_time() - began < 0.3
        await until(lambda: not outside.stuck())
        assert trio.current_time() - began < 1
    assert await store.head("orders") == Head(1, 1)


async def test_the_server_ends_a_read_when_nobody_can_tell_it_to(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store:
        with outside.holding(BUSY):
            with trio.move_on_after(0.5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.head, "orders")
                    await until(outside.stuck)
                    hole.hold()
            assert scope.cancelled_caught
            await until(lambda: not outside.stuck())
        hole.release()
        assert await store.head("orders") == Head(1, 1)


async def test_the_servers_timeout_of_a_read_is_the_callers_if_that_is_shorter(store: PostgresStore) -> None:
    assert await store._pool.read(statement_timeout) == "4s"  # 0.8 * half the commit timeout
    with trio.fail_after(60):
        assert await store._pool.read(statement_timeout) == "4s"
    with trio.fail_after(1):
        setting = await store._pool.read(statement_timeout)
    assert 1_000 < int(setting.removesuffix("ms")) <= 1_250  # a little longer: the caller's own clock ends the call
    assert await store._pool.read(statement_timeout) == "4s"


async def test_a_read_that_nobody_bounds_is_bounded_all_the_same(postgres_url: str, outside: Outside) -> None:
    async with opened(postgres_url, commit_timeout_s=2) as store:
        with outside.holding(BUSY), pytest.raises(StoreUnavailable, match="statement timeout"):
            await store.head("orders")
        assert await store.head("orders") == Head(1, 1)


async def test_waiting_for_a_connection_is_bounded_too(postgres_url: str, outside: Outside) -> None:
    async with opened(postgres_url, commit_timeout_s=1) as store:
        with outside.holding(BUSY):
            async with trio.open_nursery() as nursery:
                blocked = [Task(nursery, store.head, "orders") for _ in range(2 * READERS)]
                for call in blocked:
                    with pytest.raises(StoreUnavailable):
                        await call.result()
        assert await store.head("orders") == Head(1, 1)


async def test_long_reads_hold_up_no_append(store: PostgresStore, outside: Outside) -> None:
    with outside.holding("LOCK TABLE trio_broker.registers"):
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(store.load, "leader")
            await until(lambda: len(outside.stuck()) == READERS)
            await store.append([message()])
            nursery.cancel_scope.cancel()


async def test_a_database_that_says_nothing_ends_a_read_in_time(postgres_url: str, hole: Blackhole) -> None:
    async with opened(hole.through(postgres_url), commit_timeout_s=1) as store:
        hole.hold()
        began = trio.current_time()
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.5 s"):
            await store.head("orders")
        assert trio.current_time() - began < 1
        hole.release()
        assert await store.head("orders") == Head(1, 1)


async def test_a_database_that_says_nothing_leaves_the_outcome_of_a_change_unknown(
    postgres_url: str, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url), commit_timeout_s=1) as store:
        hole.hold()
        with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.5 s; it may have been done"):
            await store.compare_and_set("leader", b"", version=0)
        hole.release()
        assert await store.compare_and_set("other", b"", version=0)


async def test_what_follows_a_page_is_not_sent(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ask = Connection.ask

    def weigh(connection: Connection, *statement: Any, **how: bool) -> list[TupleRow]:
        rows = ask(connection, *statement, **how)
        sizes.append(sum(len(body) for _, body, *_ in rows))
        return rows

    await store.append([message("large", b"x" * 1_000_000)] * 10)
    monkeypatch.setattr(Connection, "ask", weigh)
    page = await store.read("large", 0, max_messages=1000, max_bytes=1_500_000)
    assert [record.id for record in page.records] == [1]
    assert (page.scanned_to, page.last_id) == (1, 10)
    assert sizes == [2_000_000]


async def test_closing_ends_while_the_server_stands_still(own_postgres: PostgresServer) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url, ExitStack() as until_closed:
        async with opened(url) as store:
            until_closed.enter_context(own_postgres.frozen())
            async with trio.open_nursery() as nursery:
                for _ in range(READERS):
                    nursery.start_soon(store.head, "orders")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            began = trio.current_time()
        assert trio.current_time() - began < 5  # telling the server to stop takes 1 s, the pool's thread another


async def test_closing_ends_while_an_append_hears_nothing(postgres_url: str, hole: Blackhole) -> None:
    with trio.fail_after(6):
        async with trio.open_nursery() as nursery, opened(hole.through(postgres_url), commit_timeout_s=1) as store:
            hole.hold()
            append = Task(nursery, store.append, [message()])
            await trio.to_thread.run_sync(hole.wait_request_held)
    with pytest.raises(OutcomeUnknown):
        await append.result()


async def test_a_closed_store_is_unavailable(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        pass
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.now()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.heads(["orders"])


async def test_closing_leaves_no_connection_and_no_thread(postgres_url: str, outside: Outside) -> None:
    before = {*threading.enumerate()}
    async with opened(postgres_url) as store:
        await read_all(store)
    await until(lambda: not outside.do(f"SELECT FROM pg_stat_activity WHERE {STORES}"))
    left = {*threading.enumerate()} - before
    assert [thread for thread in left if not thread.name.startswith("Trio thread")] == []
