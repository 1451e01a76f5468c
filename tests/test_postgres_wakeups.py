"""Wake-ups: what any store appends is heard by every other; a lost connection is replaced, and polled for meanwhile."""

from collections.abc import AsyncGenerator, Iterator

import pytest
import trio
from blackhole import Blackhole
from postgres_databases import Databases
from postgres_kit import SAFETY_S, Outside, ids, message, opened, until
from postgres_server import PostgresServer

from persistence import CannotOpen, Store, Wakeups, open_store
from persistence.postgres import wakeups as module
from persistence.postgres.connection import Address
from persistence.postgres.hints import CHANNEL, changed_subjects
from persistence.postgres.wakeups import PostgresWakeups

ANYTHING: frozenset[str] = frozenset()


@pytest.fixture
async def store(postgres_url: str) -> AsyncGenerator[Store]:
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture
def outside(postgres_url: str, store: Store) -> Iterator[Outside]:
    with Outside(postgres_url) as outside:
        yield outside


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and connect again without delay."""
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr(module, "_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(module, "_PAUSE_MAX_S", 0.001)


async def next_hint(wakeups: Wakeups) -> frozenset[str]:
    with trio.fail_after(SAFETY_S):
        return await anext(wakeups)


async def listening(wakeups: Wakeups) -> None:
    """Wait until it listens, and has said so: what was appended before that, it may not have heard."""
    assert isinstance(wakeups, PostgresWakeups)
    with trio.fail_after(SAFETY_S):
        while not wakeups.connected or wakeups._news.is_set():
            assert await anext(wakeups) == ANYTHING


def listeners(outside: Outside) -> list[int]:
    ours = "query LIKE 'LISTEN %%' AND datname = current_database()"
    return [pid for (pid,) in outside.do(f"SELECT pid FROM pg_stat_activity WHERE {ours}")]


async def test_what_any_store_appends_is_heard(store: Store, postgres_url: str) -> None:
    async with open_store(postgres_url) as other, other.wakeups(tuple) as wakeups:
        await listening(wakeups)
        await store.append([message("a"), message("b.ü", expiration_s=0), message("a")])
        assert await next_hint(wakeups) == {"a", "b.ü"}
        await other.append([message("mine")])
        assert await next_hint(wakeups) == {"mine"}


async def test_a_flush_of_many_subjects_hints_at_anything(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        await store.append([message(f"subject.{n:04}") for n in range(500)])
        hint = await next_hint(wakeups)
        assert len(hint) == 500
        await store.append([message(f"subject.{n:04}") for n in range(600)])
        assert await next_hint(wakeups) == ANYTHING


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (["a", "b", "a"], {"a", "b"}),
        (["a", "b\nc"], {"a", "b", "c"}),
        (["a", "b", "c", "d"], ANYTHING),  # too many
        (["a\nb\nc\nd"], ANYTHING),
        (["a\nb\nc\nd", "e"], ANYTHING),
        (["a", ""], ANYTHING),
        (["", "a"], ANYTHING),
    ],
)
async def test_hints_are_gathered_while_nobody_asks(
    heard: list[str], expected: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUBJECTS_MAX", 3)
    wakeups = PostgresWakeups(Address("postgresql://host/database", 5))
    for _ in range(2):
        for payload in heard:
            wakeups._hear(changed_subjects(payload.encode()))
        assert await next_hint(wakeups) == expected
    assert not wakeups._news.is_set()


async def test_what_refuses_a_message_hints_at_nothing(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        await store.append([message("refused", expiration_s=-1)])
        await store.append([message("taken")])
        assert await next_hint(wakeups) == {"taken"}


async def test_a_lost_connection_is_replaced_and_something_hinted_at(
    store: Store, outside: Outside, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        for _ in range(3):
            outside.terminate(*listeners(outside))
            assert await next_hint(wakeups) == ANYTHING
            await listening(wakeups)
            await store.append([message("after")])
            assert await next_hint(wakeups) == {"after"}
    assert [record.levelname for record in caplog.records if "wakeups_not_heard" in record.message] == ["WARNING"] * 3


async def test_while_nothing_is_heard_anything_is_hinted_again_and_again(
    own_postgres: PostgresServer, quick: None
) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url:
        async with opened(url) as store, store.wakeups(tuple) as wakeups:
            await listening(wakeups)
            own_postgres.kill9()
            assert await next_hint(wakeups) == ANYTHING
            assert not wakeups.connected
            for _ in range(10):
                assert await next_hint(wakeups) == ANYTHING
            assert not wakeups.connected
            own_postgres.start()
            await listening(wakeups)


async def test_it_listens_where_it_is_told_to(store: Store, postgres_url: str, outside: Outside) -> None:
    elsewhere = f"{postgres_url}?application_name=listener"
    async with open_store(postgres_url, listen_url=elsewhere) as other, other.wakeups(tuple) as wakeups:
        await listening(wakeups)
        assert outside.do("SELECT query FROM pg_stat_activity WHERE application_name = 'listener'") == [
            (f"LISTEN {CHANNEL}",)
        ]
    with pytest.raises(CannotOpen, match="cannot be read"):
        async with open_store(postgres_url, listen_url=f"{postgres_url}?foo=bar"):
            pass


async def test_a_place_to_listen_that_is_not_there_stops_nothing(store: Store, postgres_url: str, quick: None) -> None:
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    async with open_store(postgres_url, listen_url=nowhere) as other, other.wakeups(tuple) as wakeups:
        assert await next_hint(wakeups) == ANYTHING
        assert not wakeups.connected
        assert ids(await other.append([message()])) == [2]


async def test_leaving_waits_for_nothing(store: Store, postgres: Databases, postgres_url: str) -> None:
    with Blackhole.before(postgres.url) as hole:
        hole.hold()
        listen_url = f"{hole.through(postgres_url)}?connect_timeout=2"
        async with open_store(postgres_url, listen_url=listen_url) as other:
            async with other.wakeups(tuple):
                await trio.to_thread.run_sync(hole.wait_request_held)
                began = trio.current_time()
            assert trio.current_time() - began < 0.1


async def test_leaving_ends_the_connection(store: Store, outside: Outside) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        assert len(listeners(outside)) == 1
    await until(lambda: not listeners(outside))


async def test_a_hint_that_cannot_be_given_fails_no_flush(
    store: Store, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    session = store._writer._session  # type: ignore[attr-defined]
    session.connection.execute("DEALLOCATE trio_broker_hint")
    assert ids(await store.append([message()])) == [2]
    assert ids(await store.append([message()])) == [3]
    assert "hint_failed" in caplog.text
    assert store._writer._session is session  # type: ignore[attr-defined]
