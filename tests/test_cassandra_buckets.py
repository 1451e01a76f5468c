"""A log over many buckets: reading across them, what expires with them, and what stays."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cassandra_keyspaces import Keyspaces, keyspace_of
from cassandra_kit import opened
from cassandra_server import CassandraServer
from postgres_kit import ids, message, read_all, until

from persistence import ExpiredId, Head, InvalidId, Key, Page, Record, Store, open_store
from persistence.cassandra import buckets, reading, writing

BUCKET = 4
"""Messages in a bucket, here."""


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", BUCKET)


@pytest.fixture
def quick_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go soon after what is in them has expired."""
    monkeypatch.setattr(buckets, "_SLACK_S", 1)


@pytest.fixture
async def store(cassandra_url: str) -> AsyncGenerator[Store]:
    async with open_store(cassandra_url) as store:
        yield store


class Tables:
    """Somebody else who looks into the tables."""

    def __init__(self, keyspaces: Keyspaces, url: str) -> None:
        self._keyspaces = keyspaces
        self._name = keyspace_of(url)

    def bases(self, subject: str = "orders") -> list[int]:
        """The buckets that readers find."""
        rows = self._keyspaces.execute(f"SELECT base_id FROM {self._name}.buckets WHERE subject = %s", subject)
        return sorted(row.base_id for row in rows)

    def chunks(self, base_id: int) -> list[int]:
        """The ids of the rows of messages in a bucket of ``orders``."""
        rows = self._keyspaces.execute(
            f"SELECT id FROM {self._name}.log WHERE subject = 'orders' AND base_id = %s AND id > 0", base_id
        )
        return [row.id for row in rows if row.id != buckets.END_ID]


@pytest.fixture
def tables(cassandra: Keyspaces, cassandra_url: str) -> Tables:
    return Tables(cassandra, cassandra_url)


async def test_a_log_goes_on_from_bucket_to_bucket(store: Store, tables: Tables) -> None:
    for n in range(5):
        await store.append([message(body=b"%d" % (3 * n + k)) for k in range(3)])
    assert tables.bases() == [0, 6, 12]  # one is sealed by the flush that fills it
    assert [(r.id, r.body) for r in await read_all(store)] == [(n + 1, b"%d" % n) for n in range(15)]
    assert await store.head("orders") == Head(1, 15)


async def test_a_bucket_is_bounded_in_bytes_too(store: Store, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BYTES_MAX", 1000)
    for size in (900, 900, 10, 10):
        await store.append([message(body=b"x" * size)])
    assert tables.bases() == [0, 2]


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(1, 100), (3, 100), (100, 1), (100, 7), (100, 1000)])
async def test_every_way_to_page_reads_the_same_over_buckets(store: Store, max_messages: int, max_bytes: int) -> None:
    for n in range(30):
        await store.append([message(body=b"x" * (n % 5), expiration_s=n % 3 and 60)])
    read: list[Record] = []
    after_id = 0
    while after_id < 30:
        page = await store.read("orders", after_id, max_messages=max_messages, max_bytes=max_bytes)
        assert page.last_id == 30
        assert page.scanned_to > after_id
        assert len(page.records) <= max_messages
        read += page.records
        after_id = page.scanned_to
    assert [(r.id, len(r.body)) for r in read] == [(n + 1, n % 5) for n in range(30) if n % 3]


async def test_any_message_is_found_in_its_bucket(store: Store) -> None:
    for n in range(13):
        await store.append([message(body=b"%d" % n, expiration_s=None if n % 4 else 0)])
    found = await store.get([Key("orders", id_) for id_ in range(16)])
    assert found[0] == InvalidId(13)
    assert [type(each) for each in found[1:14]] == [Record if n % 4 else ExpiredId for n in range(13)]
    assert found[1] == ExpiredId(13)
    assert found[14:] == [InvalidId(13)] * 2


async def test_a_sealed_bucket_whose_next_one_has_not_begun_is_the_head(store: Store) -> None:
    await store.append([message()] * BUCKET)
    assert await store.head("orders") == Head(1, BUCKET)
    assert await store.read("orders", BUCKET, max_messages=9, max_bytes=9) == Page([], BUCKET, BUCKET)
    assert await store.get([Key("orders", BUCKET + 1)]) == [InvalidId(BUCKET)]


async def test_times_do_not_go_back_from_one_bucket_to_the_next(cassandra_url: str) -> None:
    times = iter([100, 100, 50, 50, 60, 200, 210, 220])
    now = 0

    def clock() -> int:
        return now * 1_000_000

    for now in times:  # noqa: B007 (the clock shows it)
        async with open_store(cassandra_url, clock=clock) as store:
            await store.append([message()] * 2)
    async with open_store(cassandra_url, clock=clock) as store:
        seconds = [record.time_us // 1_000_000 for record in await read_all(store)]
    assert seconds == [100] * 10 + [200] * 2 + [210] * 2 + [220] * 2


async def test_a_chunk_over_many_rows_is_read_in_a_few_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 10_000)
    for _ in range(5):
        await store.append([message(f"s{n}") for n in range(60)] + [message()])
    asked = 0
    chunks = reading._CHUNKS

    def counted(*values: object) -> object:
        nonlocal asked
        asked += 1
        return chunks(*values)

    for _ in range(95):
        await store.append([message()])
    monkeypatch.setattr(reading, "_CHUNKS", counted)
    assert len(await read_all(store)) == 100
    assert asked == 4  # 4, 16, 64 rows, and the rest


async def test_an_emptied_bucket_is_no_longer_found_and_the_head_always_is(
    store: Store, tables: Tables, quick_expiry: None
) -> None:
    for _ in range(3):
        await store.append([message(expiration_s=1)] * BUCKET)
    await store.append([message(expiration_s=None)])
    await store.append([message(expiration_s=1)] * BUCKET)
    assert tables.bases() == [0, 4, 8, 12]
    await until(lambda: tables.bases() == [12])
    assert await store.head("orders") == Head(13, 17)
    assert await store.get([Key("orders", 5), Key("orders", 18)]) == [ExpiredId(17), InvalidId(17)]
    page = await store.read("orders", 0, max_messages=9, max_bytes=99)
    assert ([record.id for record in page.records], page.scanned_to, page.last_id) == ([13], 17, 17)
    page = await store.read("orders", 5, max_messages=9, max_bytes=99)
    assert [record.id for record in page.records] == [13]


async def test_a_bucket_in_which_one_message_is_kept_stays(store: Store, tables: Tables, quick_expiry: None) -> None:
    await store.append([message(expiration_s=1)] * (BUCKET - 1) + [message(body=b"kept")])
    await store.append([message(expiration_s=1)] * BUCKET)
    await store.append([message(expiration_s=0)] * BUCKET)
    await store.append([message(expiration_s=0)])
    await until(lambda: tables.bases() == [0, 12])
    assert await store.head("orders") == Head(BUCKET, 13)
    assert [record.body for record in await read_all(store)] == [b"kept"]


async def test_a_bucket_that_is_gone_is_never_appended_to_again(
    cassandra_url: str, tables: Tables, quick_expiry: None
) -> None:
    """By a writer that found it new, and was stopped until it had come and gone."""
    async with opened(cassandra_url) as store, open_store(cassandra_url) as other:
        await store.append([message(expiration_s=1)] * BUCKET)  # sealed at 5
        stopped = buckets.Bucket.new(5, began_at=0)
        for _ in range(3):
            await other.append([message(expiration_s=0)] * BUCKET)
        await until(lambda: 5 not in tables.bases())
        store._writer._heads["orders"] = stopped
        assert ids(await store.append([message()])) == [18]


async def test_ids_that_expired_and_ids_that_never_were_when_nothing_is_left_and_the_store_is_opened_again(
    own_cassandra: CassandraServer, quick_expiry: None
) -> None:
    url = own_cassandra.url("expired")
    with Keyspaces(url) as keyspaces:
        async with open_store(url) as store:
            keyspaces.execute("ALTER TABLE expired.log WITH memtable_flush_period_in_ms = 50 AND gc_grace_seconds = 0")
            for count in (3, 3, 1):
                files = data_files(own_cassandra)
                await store.append([message(expiration_s=1)] * count)
                await until(lambda files=files: data_files(own_cassandra) - files)
            tables = Tables(keyspaces, url)
            await until(lambda: not tables.chunks(0) and not tables.chunks(6))
            keyspaces.execute(
                "ALTER TABLE expired.log WITH "
                "compaction = {'class': 'SizeTieredCompactionStrategy', 'min_threshold': '2'}"
            )
            files = data_files(own_cassandra)
            await store.append([message("other")])  # the next file is what makes it look
            await until(lambda: not data_files(own_cassandra) & files)
    async with open_store(url) as store:
        assert await store.head("orders") == Head(8, 7)
        keys = [Key("orders", id_) for id_ in (0, 1, 6, 7, 8)]
        assert await store.get(keys) == [InvalidId(7), ExpiredId(7), ExpiredId(7), ExpiredId(7), InvalidId(7)]
        assert await read_all(store) == []
        assert await store.subjects() == ["orders", "other"]
        assert ids(await store.append([message()])) == [8]


def data_files(server: CassandraServer) -> set[Path]:
    """The files that the messages of the keyspace ``expired`` are in."""
    return set((server.directory / "data" / "expired").glob("log-*/*-Data.db"))
