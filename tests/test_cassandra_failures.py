"""Nodes that are away, stand still or are too few: which error, and a store that is back by itself."""

from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing
from cassandra_keyspaces import Keyspaces, keyspace_of
from cassandra_kit import opened
from cassandra_server import CassandraServer
from postgres_kit import Task, ids, message, read_all

from persistence import Head, Key, OutcomeUnknown, Store, StoreUnavailable, open_store
from persistence.cassandra import writing
from persistence.cassandra.store import SLACK_S, CassandraStore

READY_S = 10
"""So long after a node is back at most everything works again."""


async def is_there(store: Store) -> bool:
    try:
        await store.now()
    except StoreUnavailable:
        return False
    return True


async def comes_back(store: Store) -> None:
    with trio.fail_after(READY_S):
        while not await is_there(store):
            await trio.lowlevel.checkpoint()
    assert ids(await store.append([message(body=b"second")])) == [2]


async def test_a_node_that_is_gone_and_comes_back(own_cassandra: CassandraServer) -> None:
    async with opened(own_cassandra.url("gone")) as store:
        await trio.to_thread.run_sync(own_cassandra.kill9)
        for call in (store.append([message()]), store.get([Key("orders", 1)]), store.now(), store.subjects()):
            with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"), trio.fail_after(2):
                await call
        await trio.to_thread.run_sync(own_cassandra.start)
        await comes_back(store)
        assert len(await read_all(store)) == 2


async def test_a_node_that_stands_still_holds_nobody_up_for_longer_than_told(own_cassandra: CassandraServer) -> None:
    async with opened(own_cassandra.url("still"), commit_timeout_s=2) as store:
        with own_cassandra.frozen():
            with trio.move_on_after(0.3) as impatient:
                await store.head("orders")
            assert impatient.cancelled_caught
            assert trio.current_time() - impatient.deadline < 0.2
            began = trio.current_time()
            with pytest.raises(StoreUnavailable):
                await store.read("orders", 0, max_messages=1, max_bytes=1)
            assert 0.9 < trio.current_time() - began < 2
        await comes_back(store)


async def test_closing_ends_while_a_node_stands_still(own_cassandra: CassandraServer) -> None:
    async with opened(own_cassandra.url("closing"), commit_timeout_s=2) as store:
        own_cassandra.freeze()
        with trio.move_on_after(0.1):
            await store.head("orders")
        began = trio.current_time()
    assert trio.current_time() - began < 2.5


async def test_many_calls_given_up_while_a_node_stands_still_leave_room_for_others(
    own_cassandra: CassandraServer,
) -> None:
    async with opened(own_cassandra.url("room"), commit_timeout_s=2) as store:
        with own_cassandra.frozen():
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(store.head, "orders")
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        with trio.fail_after(1 + SLACK_S + 1):  # a thread left behind ends with its call's patience
            await comes_back(store)


async def test_giving_up_lets_everybody_go_at_once(own_cassandra: CassandraServer) -> None:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        store = await stack.enter_async_context(opened(own_cassandra.url("giving_up")))
        with own_cassandra.frozen():
            begun = Task(nursery, store.append, [message()])
            setting = Task(nursery, partial(store.compare_and_set, version=0), "leader", b"a")
            await trio.testing.wait_all_tasks_blocked()
            waiting = Task(nursery, store.append, [message()])
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            store.give_up()
            for call in (begun, setting):
                with pytest.raises(OutcomeUnknown):
                    await call.result()
            with pytest.raises(StoreUnavailable):
                await waiting.result()
            await stack.aclose()
            assert trio.current_time() - began < 0.5


async def test_too_few_replicas(cassandra: Keyspaces, cassandra_url: str) -> None:
    keyspace = keyspace_of(cassandra_url)

    def set_replicas(number: int) -> None:
        cassandra.execute(
            f"ALTER KEYSPACE {keyspace} WITH replication = "
            f"{{'class': 'NetworkTopologyStrategy', 'datacenter1': {number}}}"
        )

    async with opened(cassandra_url) as store:
        set_replicas(3)
        for call in (store.head, store.load):  # to append is tried with more nodes (test_cassandra_replicated.py)
            with pytest.raises(StoreUnavailable, match="1 of the 2 replicas that are needed are alive"):
                await call("orders")
        assert not await is_there(store)
        set_replicas(1)
        assert await store.head("orders") == Head(1, 1)
        assert ids(await store.append([message()])) == [2]


async def test_tables_that_somebody_emptied_meanwhile(cassandra: Keyspaces, cassandra_url: str) -> None:
    async with opened(cassandra_url) as store:
        for table in ("log", "buckets", "subjects"):
            cassandra.execute(f"TRUNCATE {keyspace_of(cassandra_url)}.{table}")
        assert ids(await store.append([message(body=b"again")])) == [1]
        assert [record.body for record in await read_all(store)] == [b"again"]
        assert await store.subjects() == ["orders"]


async def test_tables_that_are_gone(cassandra: Keyspaces, cassandra_url: str) -> None:
    async with opened(cassandra_url) as store:
        cassandra.execute(f"DROP TABLE {keyspace_of(cassandra_url)}.log")
        with pytest.raises(StoreUnavailable):
            await store.append([message()])


async def test_a_store_that_is_closed(cassandra_url: str) -> None:
    async with opened(cassandra_url) as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.head("orders")
    with pytest.raises(StoreUnavailable):
        await store.heads(["nothing", "orders"])


async def test_subjects_that_are_too_many_to_remember(cassandra_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "HEADS_MAX", 3)
    async with open_store(cassandra_url) as store:
        assert isinstance(store, CassandraStore)
        for _ in range(2):
            for name in "abcde":
                await store.append([message(name)])
        assert list(store._writer._heads) == ["c", "d", "e"]
        assert ids(await store.append([message(name) for name in "abcde"])) == [3] * 5
