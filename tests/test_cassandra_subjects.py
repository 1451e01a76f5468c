"""Purging and deleting subjects on a node: each sentence of the contract, over buckets and brokers."""

from collections.abc import AsyncGenerator, Callable, Iterator

import pytest
import trio
from cassandra_keyspaces import Keyspaces
from cassandra_kit import SECOND_US, START_US, Clock, Tables, Told, fill, kept_ids, one, write_on, writers
from postgres_kit import ids, message, read_all

from persistence import Conflict, Duplicate, ExpiredId, Head, InvalidId, Key, Page, Record, Store, open_store
from persistence.cassandra import reading, writing
from persistence.cassandra.store import CassandraStore

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


@pytest.mark.parametrize("until_id", range(15))
async def test_nothing_is_kept_up_to_the_id_and_everything_after_it(
    store: Store, other: Store, tables: Tables, until_id: int
) -> None:
    await fill(store, 14)  # buckets at 0, 4, 8, 12
    assert await store.purge("orders", until_id) == 14
    for reader in (store, other):
        assert await kept_ids(reader) == list(range(until_id + 1, 15))
        assert await reader.head("orders") == Head(until_id + 1, 14)
        found = await reader.get([Key("orders", id_) for id_ in range(17)])
        assert found[0] == InvalidId(14)
        assert found[1 : until_id + 1] == [ExpiredId(14)] * until_id
        assert [each.id for each in found[until_id + 1 : 15] if isinstance(each, Record)] == list(
            range(until_id + 1, 15)
        )
        assert found[15:] == [InvalidId(14)] * 2
        page = await reader.read("orders", 2, max_messages=2, max_bytes=99)
        first = max(until_id, 2) + 1
        assert [record.id for record in page.records] == [first, first + 1][: 15 - first]
    assert tables.chunks() == list(range(until_id + 1, 15))  # the space is given back at once
    assert tables.bases() == [base for base in (0, 4, 8, 12) if base + BUCKET > until_id or base == 12]


async def test_what_is_above_the_last_id_is_left_alone(store: Store) -> None:
    await fill(store, 3)
    assert await store.purge("orders", 100) == 3
    assert await one(store, 4) == InvalidId(3)
    assert await store.read("orders", 0, max_messages=9, max_bytes=9) == Page([], 3, 3)
    assert ids(await store.append([message(body=b"4"), message(body=b"5")])) == [4, 5]
    assert await kept_ids(store) == [4, 5]


@pytest.mark.parametrize("until_id", [-1, 0])
async def test_a_purge_of_nothing(store: Store, until_id: int) -> None:
    await fill(store, 2)
    assert await store.purge("orders", until_id) == 2
    assert await kept_ids(store) == [1, 2]
    assert await store.purge("nothing", 5) == 0
    assert await store.head("nothing") == Head(1, 0)
    assert await store.subjects() == ["orders"]


async def test_a_part_of_a_chunk_is_purged(store: Store) -> None:
    await fill(store, 4, each=4)
    await store.purge("orders", 2)
    assert await kept_ids(store) == [3, 4]
    assert await one(store, 2) == ExpiredId(4)
    assert await store.head("orders") == Head(3, 4)
    page = await store.read("orders", 0, max_messages=1, max_bytes=9)
    assert ([record.id for record in page.records], page.scanned_to, page.last_id) == ([3], 3, 4)


@pytest.mark.parametrize("lower", [1, 3, 7])
async def test_a_lower_purge_afterwards_brings_nothing_back(store: Store, lower: int) -> None:
    await fill(store, 14)
    await store.purge("orders", 10)
    assert await store.purge("orders", lower) == 14
    assert await kept_ids(store) == [11, 12, 13, 14]
    assert await one(store, 10) == ExpiredId(14)
    await store.purge("orders", 13)
    await store.purge("orders", 13)
    assert await kept_ids(store) == [14]


async def test_a_sealed_bucket_whose_next_one_has_not_begun_is_purged(store: Store, other: Store) -> None:
    await fill(store, BUCKET, each=BUCKET)
    await store.purge("orders", BUCKET)
    assert await store.head("orders") == Head(BUCKET + 1, BUCKET)
    assert await store.heads(["orders"]) == {"orders": BUCKET}
    assert await one(store, 1) == ExpiredId(BUCKET)
    assert ids(await other.append([message()])) == [BUCKET + 1]
    assert await store.heads(["orders"]) == {"orders": BUCKET + 1}
    assert await kept_ids(store) == [BUCKET + 1]


async def test_other_subjects_are_not_purged(store: Store) -> None:
    await fill(store, 6)
    await fill(store, 6, subject="others")
    await store.purge("orders", 6)
    assert await kept_ids(store, "others") == list(range(1, 7))
    assert await store.subjects() == ["orders", "others"]


async def test_rows_that_come_back_from_a_node_are_not_kept(store: Store, tables: Tables) -> None:
    """What a purge deleted may be brought back by a node that was away for longer than deletions are remembered."""
    await fill(store, 10)
    rows = tables.execute(f"SELECT * FROM {tables.name}.log WHERE subject = 'orders' AND id > 0 ALLOW FILTERING")
    await store.purge("orders", 9)
    for row in rows:
        tables.execute(
            f"INSERT INTO {tables.name}.log (subject, base_id, id, chunk) VALUES ('orders', %s, %s, %s)",
            row.base_id, row.id, row.chunk,
        )  # fmt: skip
        tables.execute(
            f"INSERT INTO {tables.name}.buckets (subject, base_id, began_at) VALUES ('orders', %s, 0)", row.base_id
        )
    assert tables.bases() == [0, 4, 8]
    assert len(tables.chunks()) == 10
    assert await kept_ids(store) == [10]
    assert await store.get([Key("orders", id_) for id_ in range(1, 10)]) == [ExpiredId(10)] * 9
    assert await store.head("orders") == Head(10, 10)
    assert await store.purge("orders", 10) == 10  # and go for good
    assert tables.bases() == [8]
    assert tables.chunks() == []


async def test_appends_of_others_go_on_meanwhile(cassandra_url: str) -> None:
    told = Told()
    purged_to = [0]
    async with writers(cassandra_url, 3, told) as all_writers, open_store(cassandra_url) as store:
        await all_writers[0].write()
        async with trio.open_nursery() as nursery:
            for writer in all_writers:
                nursery.start_soon(write_on, writer, 12)
            for _ in range(12):
                head = await store.head("orders")
                purged_to.append(max(purged_to[-1], head.last_id - 3))
                assert await store.purge("orders", purged_to[-1]) >= head.last_id
                page = await store.read("orders", 0, max_messages=100, max_bytes=2**20)
                assert all(record.id > purged_to[-1] for record in page.records)
        last_id = (await store.head("orders")).last_id
        assert not told.unknown | told.not_appended
        assert sorted(told.ids.values()) == list(range(1, last_id + 1))
        assert await kept_ids(store) == list(range(purged_to[-1] + 1, last_id + 1))


async def test_a_writer_is_not_held_up_by_a_purge(store: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It appends where it believes the head to be, and is right."""
    await fill(store, 2)
    await other.purge("orders", 2)
    monkeypatch.setattr(writing, "seen_or_found", None)  # it would be asked
    monkeypatch.setattr(writing, "find_or_new", None)
    assert ids(await store.append([message()])) == [3]
    assert await kept_ids(other) == [3]


async def test_many_buckets_are_purged_in_turns(store: Store, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.cassandra.purging.AT_ONCE_MAX", 2)
    await fill(store, 7 * BUCKET + 2, each=2)
    await store.purge("orders", 5 * BUCKET + 1)
    assert tables.bases() == [5 * BUCKET, 6 * BUCKET, 7 * BUCKET]
    assert await kept_ids(store) == list(range(5 * BUCKET + 2, 7 * BUCKET + 3))


async def test_a_page_is_read_in_as_many_requests_as_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets that are purged are passed over, and so are messages."""
    await fill(store, 21 * BUCKET + 3)
    await store.purge("orders", 21 * BUCKET + 1)
    asked = counting(monkeypatch, "_CHUNKS")
    assert await kept_ids(store) == [21 * BUCKET + 2, 21 * BUCKET + 3]
    assert asked == [None]


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    asked: list[None] = []
    statement: Callable[..., object] = getattr(reading, name)

    def counted(*values: object) -> object:
        asked.append(None)
        return statement(*values)

    monkeypatch.setattr(reading, name, counted)
    return asked


async def test_keys_of_what_was_purged_are_remembered_for_their_time(store: Store, clock: Clock) -> None:
    keyed = message(expiration_s=1)._replace(idempotency_key="k")
    assert ids(await store.append([keyed])) == [1]
    await store.purge("orders", 1)
    clock.now_us += 119 * SECOND_US
    assert await store.append([keyed]) == [Duplicate(1, START_US)]
    assert await store.delete_subject("orders", 1) is None
    assert await store.append([keyed]) == [Duplicate(1, START_US)]
    clock.now_us += SECOND_US
    assert ids(await store.append([keyed])) == [2]


@pytest.mark.parametrize("count", [1, 3, BUCKET, BUCKET + 1, 3 * BUCKET, 3 * BUCKET + 2])
async def test_a_deleted_subject_is_listed_no_longer_and_its_last_id_stays(
    store: Store, other: Store, tables: Tables, count: int
) -> None:
    await fill(store, count)
    await fill(store, 1, subject="others")
    assert await other.delete_subject("orders", count) is None
    assert await store.subjects() == ["others"]
    assert await kept_ids(store) == []
    assert await store.head("orders") == Head(count + 1, count)
    assert await store.get([Key("orders", id_) for id_ in range(1, count + 2)]) == [
        *[ExpiredId(count)] * count,
        InvalidId(count),
    ]
    assert tables.chunks() == []
    assert len(tables.bases()) == 1


@pytest.mark.parametrize("count", [1, BUCKET, BUCKET + 1])
@pytest.mark.parametrize("who", ["a writer that knows it", "another", "one that expects the last id"])
async def test_ids_go_on_after_a_deletion_and_the_subject_is_listed_again(
    store: Store, other: Store, count: int, who: str
) -> None:
    await fill(store, count)
    for last_id in (count, count + 2, count + 4):
        assert await other.delete_subject("orders", last_id) is None
        assert await store.subjects() == []
        expected = last_id if who == "one that expects the last id" else None
        new = message(body=b"new")._replace(expected_last_id=expected)
        writer = other if who == "another" else store
        assert ids(await writer.append([new])) == [last_id + 1]
        assert await store.subjects() == ["orders"]
        assert ids(await writer.append([message(body=b"newer")])) == [last_id + 2]
        assert await kept_ids(store) == [last_id + 1, last_id + 2]
        times = [record.time_us for record in await read_all(store)]
        assert times[0] <= times[1]


async def test_another_last_id_is_a_conflict_and_nothing_is_deleted(store: Store) -> None:
    await fill(store, 6)
    for last_id in (0, 5, 7):
        assert await store.delete_subject("orders", last_id) == Conflict(6)
    assert await kept_ids(store) == list(range(1, 7))
    assert await store.subjects() == ["orders"]


async def test_a_subject_that_never_was(store: Store) -> None:
    assert await store.delete_subject("nothing", 0) is None
    assert await store.delete_subject("nothing", 1) == Conflict(0)
    assert await store.head("nothing") == Head(1, 0)
    assert ids(await store.append([message("nothing")])) == [1]
    assert await store.subjects() == ["nothing"]


@pytest.mark.parametrize("count", [1, BUCKET])
async def test_deleting_again_is_no_conflict(store: Store, other: Store, count: int) -> None:
    await fill(store, count)
    for each in (store, other, store):
        assert await each.delete_subject("orders", count) is None
        assert await each.subjects() == []
    assert ids(await store.append([message()])) == [count + 1]
    assert await other.subjects() == ["orders"]


async def test_deletions_that_race_with_appends_of_others(cassandra_url: str) -> None:
    """Each deletes what it saw or hears of a conflict; whatever was appended since is kept, and listed."""
    told = Told()
    deleted_to = 0
    async with writers(cassandra_url, 3, told) as all_writers, open_store(cassandra_url) as store:
        await all_writers[0].write()
        async with trio.open_nursery() as nursery:
            for writer in all_writers:
                nursery.start_soon(write_on, writer, 12)
            for _ in range(12):
                last_id = (await store.head("orders")).last_id
                conflict = await store.delete_subject("orders", last_id)
                if conflict is None:
                    deleted_to = last_id
                else:
                    assert conflict.last_id > last_id
        last_id = (await store.head("orders")).last_id
        assert sorted(told.ids.values()) == list(range(1, last_id + 1))
        assert await kept_ids(store) == list(range(deleted_to + 1, last_id + 1))
        assert await store.subjects() == (["orders"] if last_id > deleted_to else [])
        assert await store.delete_subject("orders", last_id) is None
        assert await store.subjects() == []


async def test_a_new_subject_is_begun_in_one_round_trip(store: Store) -> None:
    assert isinstance(store, CassandraStore)
    sent: list[object] = []
    send = store._database.send

    def noting(request: object, longest_s: float, answer: Callable[..., None]) -> None:
        sent.append(request)
        send(request, longest_s, answer)

    store._database.send = noting
    await store.append([message()])
    assert len(sent) == 4  # the head, which is not there; its listing and its bucket at once; the batch
    sent.clear()
    await store.append([message()])
    assert len(sent) == 1
