"""Purging, deleting and restoring subjects on a node: each sentence of the contract, over buckets and brokers."""

from collections.abc import AsyncGenerator, Callable, Iterator

import pytest
import trio
from cassandra_keyspaces import Keyspaces, keyspace_of
from cassandra_kit import Told, Writer, writers
from postgres_kit import ids, message, read_all

from persistence import (
    BadContent,
    Conflict,
    Duplicate,
    ExpiredId,
    Head,
    InvalidId,
    Key,
    Page,
    Record,
    Store,
    open_store,
)
from persistence.cassandra import reading, writing
from persistence.cassandra.buckets import END_ID
from persistence.cassandra.chunks import BEFORE_MAX
from persistence.cassandra.shares import CHUNK_BYTES_MAX, EXPIRATION_MAX_S
from persistence.cassandra.store import CassandraStore

BUCKET = 4
"""Messages in a bucket, here."""

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us


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


class Tables:
    """Somebody else who looks into the tables."""

    def __init__(self, keyspaces: Keyspaces, url: str) -> None:
        self.execute = keyspaces.execute
        self.name = keyspace_of(url)

    def bases(self) -> list[int]:
        """The buckets of ``orders`` that readers find."""
        rows = self.execute(f"SELECT base_id FROM {self.name}.buckets WHERE subject = 'orders'")
        return sorted(row.base_id for row in rows)

    def chunks(self) -> list[int]:
        """The ids of the rows of messages of ``orders``, whether they are found or not."""
        rows = self.execute(f"SELECT id FROM {self.name}.log WHERE subject = 'orders' ALLOW FILTERING")
        return sorted(row.id for row in rows if row.id is not None and 0 < row.id != END_ID)


@pytest.fixture
def tables(cassandra: Keyspaces, cassandra_url: str) -> Tables:
    return Tables(cassandra, cassandra_url)


async def fill(store: Store, count: int, *, each: int = 1, subject: str = "orders") -> None:
    """Append messages, so many in a flush."""
    for _ in range(count // each):
        await store.append([message(subject)] * each)


async def kept_ids(store: Store, subject: str = "orders") -> list[int]:
    return [record.id for record in await read_all(store, subject)]


async def one(store: Store, id_: int, subject: str = "orders") -> object:
    (found,) = await store.get([Key(subject, id_)])
    return found


# purge


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
    assert await one(store, 1) == ExpiredId(BUCKET)
    assert ids(await other.append([message()])) == [BUCKET + 1]
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


async def write_on(writer: Writer, batches: int) -> None:
    for _ in range(batches):
        await writer.write()


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


# delete_subject


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


# restore


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
