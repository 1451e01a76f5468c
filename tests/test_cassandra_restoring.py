"""Moving a log to a node: each sentence of the contract, over buckets and brokers."""

from collections.abc import AsyncGenerator, Iterator

import pytest
import trio
from cassandra_keyspaces import Keyspaces
from cassandra_kit import SECOND_US, START_US, Clock, Tables, Told, fill, kept_ids, one, write_on, writers
from postgres_kit import ids, message, read_all

from persistence import BadContent, Conflict, ExpiredId, Head, InvalidId, Key, Record, Store, open_store
from persistence.cassandra import writing
from persistence.cassandra.chunks import BEFORE_MAX
from persistence.cassandra.shares import CHUNK_BYTES_MAX, EXPIRATION_MAX_S

BUCKET = 4
"""Messages in a bucket, here."""


@pytest.fixture
def cassandra_url(cassandra: Keyspaces) -> Iterator[str]:
    with cassandra.lend() as url:
        yield url


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", BUCKET)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(cassandra_url: str, clock: Clock) -> AsyncGenerator[Store]:
    async with open_store(cassandra_url, clock=clock) as store:
        yield store


@pytest.fixture
async def other(store: Store, cassandra_url: str, clock: Clock) -> AsyncGenerator[Store]:
    """Another broker's store."""
    async with open_store(cassandra_url, clock=clock) as other:
        yield other


@pytest.fixture
def tables(cassandra: Keyspaces, cassandra_url: str) -> Tables:
    return Tables(cassandra, cassandra_url)


def record(id_: int, time_us: int = START_US, expires_us: int | None = None, body: bytes | None = None) -> Record:
    return Record(id_, b"%d" % id_ if body is None else body, {"n": b"%d" % id_}, time_us, expires_us)


async def test_records_are_restored_as_they_are(store: Store, other: Store) -> None:
    records = [
        record(3, START_US - 9 * SECOND_US),
        record(4, START_US - 8 * SECOND_US, START_US + 1),
        record(900, START_US - 8 * SECOND_US, START_US + 77_777_777),
        record(901, START_US - 1, None, b""),
    ]
    assert await store.restore("orders", records, 1000) == 4
    assert await read_all(other) == records
    assert await other.head("orders") == Head(3, 1000)
    assert await store.get([Key("orders", id_) for id_ in (1, 3, 5, 900, 1000, 1001)]) == [
        ExpiredId(1000),
        records[0],
        ExpiredId(1000),
        records[2],
        ExpiredId(1000),
        InvalidId(1000),
    ]
    assert await store.subjects() == ["orders"]
    assert ids(await other.append([message()])) == [1001]


async def test_a_log_is_moved_in_parts(store: Store, clock: Clock) -> None:
    for n in range(10):
        clock.now_us += 1
        await store.append([message("from", b"%d.%d" % (n, k), 60 if k else None) for k in range(3)])
    records = await read_all(store, "from")
    for start in range(0, 30, 7):
        part = records[start : start + 7]
        assert await store.restore("to", part, part[-1].id) == len(part)
    assert await read_all(store, "to") == records
    after_id, found = 0, []
    while after_id < 30:
        page = await store.read("to", after_id, max_messages=2, max_bytes=99)
        found += page.records
        after_id = page.scanned_to
    assert found == records


async def test_restoring_again_does_nothing(store: Store, other: Store) -> None:
    records = [record(2), record(5), record(7)]
    assert await store.restore("orders", records[:2], 5) == 2
    assert await store.restore("orders", records[:2], 5) == 0
    assert await other.restore("orders", [*records[:2], record(7)], 7) == 1
    assert await other.restore("orders", records, 3) == 0
    assert await read_all(store) == records
    assert await store.head("orders") == Head(2, 7)


async def test_a_last_id_without_records_and_one_below_that_of_the_subject(store: Store, other: Store) -> None:
    assert await store.restore("orders", [], 7) == 0
    assert await store.head("orders") == Head(8, 7)
    assert await store.restore("orders", [], 3) == 0
    assert await other.append([message()._replace(expected_last_id=3)]) == [Conflict(7)]
    assert ids(await other.append([message()])) == [8]
    assert await store.restore("nothing", [], 0) == 0
    assert await store.subjects() == ["orders"]


async def test_what_has_expired_is_left_out_and_counts_for_the_last_id(store: Store, clock: Clock) -> None:
    records = [record(1, START_US - 5, START_US), record(2, START_US - 5, START_US + 1), record(3, START_US - 5, 7)]
    assert await store.restore("orders", records, 3) == 1
    assert [found.id for found in await read_all(store)] == [2]
    assert await store.head("orders") == Head(2, 3)
    clock.now_us += 1
    assert await store.get([Key("orders", 2), Key("orders", 4)]) == [ExpiredId(3), InvalidId(3)]


async def test_rows_of_restored_messages_go_by_the_time_at_which_they_expire(store: Store, tables: Tables) -> None:
    await store.restore("orders", [record(1, 5, START_US + 100 * SECOND_US)], 1)
    await store.restore("orders", [record(2, 5, None)], 2)
    ttls = tables.execute(
        f"SELECT id, TTL(chunk) AS ttl FROM {tables.name}.log WHERE subject = 'orders' ALLOW FILTERING"
    )
    by_id = {row.id: row.ttl for row in ttls if row.id is not None}
    assert 100 < by_id[1] <= 160
    assert by_id[2] is None


async def test_times_do_not_go_back_after_a_restore(store: Store) -> None:
    await store.restore("orders", [record(1, START_US + 5 * SECOND_US)], 1)
    await store.append([message()])
    assert [each.time_us for each in await read_all(store)] == [START_US + 5 * SECOND_US] * 2


async def test_a_subject_that_was_deleted_is_restored_and_listed(store: Store, other: Store) -> None:
    await fill(store, 2)
    await other.delete_subject("orders", 2)
    records = [record(2, 10), record(3, 10), record(9, 20)]
    assert await store.restore("orders", records, 9) == 2
    assert await other.subjects() == ["orders"]
    assert await read_all(other) == records[1:]
    assert await other.delete_subject("orders", 9) is None
    assert await store.subjects() == []


async def test_restored_messages_are_purged_as_others(store: Store, tables: Tables) -> None:
    await store.restore("orders", [record(1), record(3), record(10), record(11)], 20)
    await store.append([message()])
    assert await store.purge("orders", 5) == 21
    assert await kept_ids(store) == [10, 11, 21]
    assert await store.purge("orders", 19) == 21
    assert await kept_ids(store) == [21]
    assert await store.purge("orders", 20) == 21
    assert tables.bases() == [20]


async def test_ids_that_are_far_apart(store: Store) -> None:
    far = [1, 2, 2 + BEFORE_MAX, 2 + BEFORE_MAX + 1, 2**62]
    assert await store.restore("orders", [record(id_) for id_ in far], 2**62) == 5
    assert await kept_ids(store) == far
    assert ids(await store.append([message()])) == [2**62 + 1]


async def test_large_and_many_records_go_into_chunks(store: Store, tables: Tables) -> None:
    large = [record(id_, body=b"x" * (CHUNK_BYTES_MAX // 2)) for id_ in range(1, 6)]
    small = [record(id_) for id_ in range(6, 136)]
    assert await store.restore("orders", large + small, 135) == 135
    assert tables.chunks() == [2, 4, 68, 132, 135]
    assert await read_all(store) == large + small


async def test_what_cannot_be_restored_is_refused_as_a_whole(store: Store) -> None:
    late = record(2, START_US, START_US + EXPIRATION_MAX_S * SECOND_US + 1)
    with pytest.raises(BadContent, match="message 2 expires in more than"):
        await store.restore("orders", [record(1), late], 2)
    with pytest.raises(BadContent, match="bytes are more than"):
        await store.restore("orders", [record(1, body=b"x" * (writing.SHARE_BYTES_MAX + 1))], 2)
    assert await store.head("orders") == Head(1, 0)
    largest = b"x" * (store.limits().flush_bytes_max - 2)  # the header takes two
    assert await store.restore("orders", [record(1, body=largest)], 1) == 1
    assert await one(store, 1) == record(1, body=largest)


async def test_a_restore_beside_appends_of_others_is_whole(cassandra_url: str) -> None:
    """Nobody should, but nothing of it is in pieces."""
    told = Told()
    async with writers(cassandra_url, 2, told) as all_writers, open_store(cassandra_url) as store:
        async with trio.open_nursery() as nursery:
            for writer in all_writers:
                nursery.start_soon(write_on, writer, 6)
            assert await store.restore("orders", [record(1000), record(1001)], 1001) == 2
        found = {each.id: each.body for each in await read_all(store)}
    assert (found.pop(1000), found.pop(1001)) == (b"1000", b"1001")
    assert {id_: body for body, id_ in told.ids.items()} == found
