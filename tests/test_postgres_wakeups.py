"""Wake-ups: what any store appends is heard by every other; a lost connection is replaced, and polled for meanwhile."""

from collections.abc import AsyncGenerator, Iterator, Mapping

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

ANYTHING: Mapping[str, int] = {}


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
    """Connect again without delay."""
    monkeypatch.setattr(module, "_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(module, "_PAUSE_MAX_S", 0.001)


async def next_hint(wakeups: Wakeups) -> Mapping[str, int]:
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
        await store.append([message("b.ü", expiration_s=0), message("a"), message("a")])
        assert await next_hint(wakeups) == {"a": 2, "b.ü": 1}
        await other.append([message("mine")])
        assert await next_hint(wakeups) == {"mine": 1}
        await other.append([message("mine"), message("a"), message("c")])
        assert await next_hint(wakeups) == {"a": 3, "c": 1, "mine": 2}


async def test_of_messages_that_are_judged_those_that_pass_are_heard(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        keyed = message("keyed")._replace(idempotency_key="k")
        passes, fails = message("orders")._replace(expected_last_id=1), message("other")._replace(expected_last_id=7)
        await store.append([keyed, keyed, passes, fails])
        assert await next_hint(wakeups) == {"keyed": 1, "orders": 2}
        await store.append([keyed, fails])
        await store.append([message("taken")])
        assert await next_hint(wakeups) == {"taken": 1}


async def test_a_flush_of_many_subjects_hints_at_anything(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        names = [f"subject.{n:04}" for n in range(2_000)]
        await store.append([message(name) for name in names[:450]])
        assert await next_hint(wakeups) == dict.fromkeys(names[:450], 1)
        for count in (500, 2_000):
            await store.append([message(name) for name in names[:count]])
            assert await next_hint(wakeups) == ANYTHING


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("a\t7", {"a": 7}),
        ("a\t7\nb.ü\t999999999999999999", {"a": 7, "b.ü": 10**18 - 1}),
        ("a", {"a": 0}),  # of the release before
        ("a\nb", {"a": 0, "b": 0}),
        ("a\t7\nb", {"a": 7, "b": 0}),
        ("a\t0", {"a": 0}),
    ],
)
def test_a_hint_tells_subjects_and_what_it_knows_of_their_last_ids(payload: str, expected: dict[str, int]) -> None:
    assert changed_subjects(payload.encode()) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\n",
        b"a\t7\n",
        b"a\t",
        b"\t7",
        b"a\t-7",
        b"a\t+7",
        b"a\t7.0",
        b"a\t1_000",
        b"a\t7\t8",
        b"a\tb\t7",
        b"a 7",
        b"hello you",
        "a\t\u0667".encode(),
        b"a\t1000000000000000000",
        b"a\t" + b"9" * 5_000,
        b"a\t7\r\nb\t8",
        b"b\t8\n\xff\t7",
    ],
)
def test_what_cannot_be_read_hints_at_anything(payload: bytes) -> None:
    assert changed_subjects(payload) == ANYTHING


async def test_an_older_release_and_strangers_are_heard_too(store: Store, outside: Outside) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        for payload, expected in (("old\nolder", {"old": 0, "older": 0}), ("who is there?", ANYTHING), ("", ANYTHING)):
            outside.do("SELECT pg_notify(%s, %s)", CHANNEL, payload)
            assert await next_hint(wakeups) == expected


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (["a\t1", "b\t1", "a\t2"], {"a": 2, "b": 1}),
        (["a\t2", "a\t1"], {"a": 2}),  # two writers, one late to say it
        (["a\t1", "b\t1\nc\t1"], {"a": 1, "b": 1, "c": 1}),
        (["a\t1", "a"], {"a": 0}),  # an older release appended after the first, or before it
        (["a", "a\t1", "a\t2"], {"a": 0}),
        (["a\t1", "b\t1", "c\t1", "d\t1"], ANYTHING),  # too many
        (["a\nb\nc\nd"], ANYTHING),
        (["a\nb\nc\nd", "e\t1"], ANYTHING),
        (["a\t1", ""], ANYTHING),
        (["", "a\t1"], ANYTHING),
    ],
)
async def test_hints_are_gathered_while_nobody_asks(
    heard: list[str], expected: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUBJECTS_MAX", 3)
    wakeups = PostgresWakeups(Address("postgresql://host/database", 5), poll_interval_s=SAFETY_S)
    for _ in range(2):
        for payload in heard:
            wakeups._hear(changed_subjects(payload.encode()))
        assert await next_hint(wakeups) == expected
    assert not wakeups._news.is_set()


async def test_a_hint_that_was_given_does_not_change(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        await store.append([message("a")])
        first = await next_hint(wakeups)
        await store.append([message("a"), message("b")])
        assert await next_hint(wakeups) == {"a": 2, "b": 1}
        assert first == {"a": 1}


async def test_what_refuses_a_message_hints_at_nothing(store: Store) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        await store.append([message("refused", expiration_s=-1)])
        await store.append([message("taken")])
        assert await next_hint(wakeups) == {"taken": 1}


async def test_a_lost_connection_is_replaced_and_something_hinted_at(
    store: Store, outside: Outside, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.wakeups(tuple) as wakeups:
        await listening(wakeups)
        for _ in range(3):
            outside.terminate(*listeners(outside))
            assert await next_hint(wakeups) == ANYTHING
            await listening(wakeups)
            (after_id,) = ids(await store.append([message("after")]))
            assert await next_hint(wakeups) == {"after": after_id}
    assert [record.levelname for record in caplog.records if "wakeups_not_heard" in record.message] == ["WARNING"] * 3


async def test_while_nothing_is_heard_anything_is_hinted_again_and_again(
    own_postgres: PostgresServer, quick: None
) -> None:
    with Databases(own_postgres.dsn()) as databases, databases.new() as url:
        async with open_store(url, poll_interval_s=0.001) as store, store.wakeups(tuple) as wakeups:
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


async def test_a_place_to_listen_that_is_not_there_stops_nothing(store: Store, postgres_url: str) -> None:
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    async with (
        open_store(postgres_url, listen_url=nowhere, poll_interval_s=0.001) as other,
        other.wakeups(tuple) as wakeups,
    ):
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
