"""A flush with keys or expected last ids, which is a transaction of several statements: its outcome is known, too."""

from collections.abc import AsyncGenerator

import pytest
import trio
from blackhole import Blackhole
from postgres_databases import Databases
from postgres_kit import Outside, Task, message, opened, read_all, set_standbys, until, waiting_for_standby
from postgres_server import PostgresServer

from persistence import Appended, Conflict, Duplicate, NewMessage, Outcome, Store, StoreUnavailable, open_store

WAITING = """
    CREATE FUNCTION trio_broker.wait() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END';
    CREATE TRIGGER wait AFTER INSERT ON trio_broker.keys EXECUTE FUNCTION trio_broker.wait();
"""
"""Lets a flush wait for who holds the lock when it writes its keys, just before it commits."""
HOLD = "SELECT pg_advisory_xact_lock(7)"


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[Store]:
    async with opened(postgres_url) as store:
        yield store


def keyed(key: str, after: int | None = None) -> NewMessage:
    return message(body=key.encode())._replace(idempotency_key=key, expected_last_id=after)


def told(outcomes: list[Outcome]) -> list[tuple[type, object]]:
    return [(type(outcome), outcome[0]) for outcome in outcomes]


async def bodies(store: Store) -> list[bytes]:
    return [record.body for record in await read_all(store)]


async def test_a_backend_ended_while_it_waits_for_a_subject_costs_no_publish(store: Store, outside: Outside) -> None:
    async with trio.open_nursery() as nursery:
        with outside.holding_subject():
            append = Task(nursery, store.append, [keyed("a"), message(body=b"plain"), keyed("a")])
            await until(outside.stuck)
            outside.terminate(*outside.stuck())
            await until(outside.stuck)
        assert told(await append.result()) == [(Appended, 2), (Appended, 3), (Duplicate, 2)]
    assert await bodies(store) == [b"first", b"a", b"plain"]


async def test_a_backend_ended_just_before_the_commit_costs_no_publish(store: Store, outside: Outside) -> None:
    outside.do(WAITING)
    async with trio.open_nursery() as nursery:
        with outside.holding(HOLD):
            append = Task(nursery, store.append, [keyed("a"), keyed("b", 7)])
            await until(outside.stuck)
            outside.terminate(*outside.stuck())
            await until(outside.stuck)
        assert told(await append.result()) == [(Appended, 2), (Conflict, 2)]
    assert told(await store.append([keyed("a")])) == [(Duplicate, 2)]
    assert await bodies(store) == [b"first", b"a"]


async def test_an_answer_lost_after_the_commit_is_found_out(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        outside.do(WAITING)
        with outside.holding(HOLD):
            batch = [
                keyed("a"),
                keyed("b", 9),
                message("other"),
                keyed("a"),
                message("new")._replace(expected_last_id=3),
            ]
            append = Task(nursery, store.append, batch)
            await until(outside.stuck)
            hole.hold_replies()
        await until(lambda: outside.do("SELECT id FROM trio_broker.keys") == [(2,)])
        hole.cut()
        hole.release()
        expected = [(Appended, 2), (Conflict, 2), (Appended, 1), (Duplicate, 2), (Conflict, 0)]
        assert told(await append.result()) == expected
        assert await bodies(store) == [b"first", b"a"]
        assert await store.subjects() == ["orders", "other"]
        assert told(await store.append([keyed("a"), keyed("c")])) == [(Duplicate, 2), (Appended, 3)]


async def test_an_answer_lost_when_nothing_was_to_be_appended(
    postgres_url: str, outside: Outside, hole: Blackhole
) -> None:
    async with opened(hole.through(postgres_url)) as store, trio.open_nursery() as nursery:
        assert told(await store.append([keyed("a")])) == [(Appended, 2)]
        with outside.holding_subject():
            append = Task(nursery, store.append, [keyed("a"), message()._replace(expected_last_id=0)])
            await until(outside.stuck)
            hole.hold_replies()
        await trio.to_thread.run_sync(hole.wait_reply_held)
        hole.cut()
        hole.release()
        assert told(await append.result()) == [(Duplicate, 2), (Conflict, 2)]
        assert await bodies(store) == [b"first", b"a"]


async def test_a_flush_that_waits_too_long_leaves_nothing(postgres_url: str, outside: Outside) -> None:
    async with opened(postgres_url, commit_timeout_s=2) as store:
        outside.do(WAITING)
        with outside.holding(HOLD), pytest.raises(StoreUnavailable, match="statement timeout"):
            await store.append([keyed("a"), message("new")])
        assert await store.subjects() == ["orders"]
        assert told(await store.append([keyed("a"), message(body=b"next")])) == [(Appended, 2), (Appended, 3)]
        assert await bodies(store) == [b"first", b"a", b"next"]


async def test_what_others_append_while_a_flush_waits_is_seen(
    postgres_url: str, store: Store, outside: Outside
) -> None:
    """Keys are looked up once the subject is locked, and not before."""
    async with open_store(postgres_url) as other, trio.open_nursery() as nursery:
        outside.do(WAITING)
        with outside.holding(HOLD):
            first = Task(nursery, store.append, [keyed("a")])
            await until(outside.stuck)
            second = Task(nursery, other.append, [keyed("a"), keyed("b", 2)])
            await until(lambda: len(outside.stuck()) == 2)
        assert told(await first.result()) == [(Appended, 2)]
        assert told(await second.result()) == [(Duplicate, 2), (Appended, 3)]


async def test_flushes_with_and_without_keys_over_the_same_subjects_do_not_wait_for_each_other_for_ever(
    postgres_url: str, store: Store
) -> None:
    async def append_on(appending: Store, batch: list[NewMessage]) -> None:
        for n in range(30):
            await appending.append([new._replace(idempotency_key=new.idempotency_key and f"{n}") for new in batch])

    async with open_store(postgres_url) as other, trio.open_nursery() as nursery:
        subjects = [f"s{n}" for n in range(8)]
        nursery.start_soon(append_on, store, [message(subject) for subject in subjects])
        nursery.start_soon(append_on, other, [message(s)._replace(idempotency_key=s) for s in reversed(subjects)])
    assert [(await store.head(subject)).last_id for subject in subjects] == [60] * 8


async def test_a_subject_that_was_begun_for_nothing_holds_nobody_up(postgres_url: str, store: Store) -> None:
    outcomes: list[Outcome] = []

    async def append(appending: Store, new: NewMessage) -> None:
        outcomes.extend(await appending.append([new]))

    async with open_store(postgres_url) as other:
        for n in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, store, message(f"new {n}")._replace(expected_last_id=7))
                nursery.start_soon(append, other, message(f"new {n}"))
            assert (await other.head(f"new {n}")).last_id == 1
    assert len([outcome for outcome in outcomes if isinstance(outcome, Appended)]) == 30


async def test_a_commit_that_no_standby_confirmed_is_asked_about(own_postgres: PostgresServer) -> None:
    """Also one that has nothing to say but what others have committed."""
    with Databases(own_postgres.dsn()) as databases, databases.new() as url, Outside(url) as outside:
        async with opened(url) as store, trio.open_nursery() as nursery:
            for batch, expected in ([keyed("a")], (Appended, 2)), ([keyed("a")], (Duplicate, 2)):
                set_standbys(outside, "nobody")
                append = Task(nursery, store.append, batch)
                await until(lambda: waiting_for_standby(outside))
                outside.do("SELECT pg_cancel_backend(%s)", *waiting_for_standby(outside))
                await until(lambda: waiting_for_standby(outside))
                assert append.is_running
                set_standbys(outside, "")
                assert told(await append.result()) == [expected]
