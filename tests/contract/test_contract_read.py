"""Reading: pages, heads, names of subjects."""

import pytest
from contract_kit import START_US, Clock, ids, message, read_all

from persistence import Durability, Head, Key, Page, Record, Store


async def test_a_subject_that_never_had_a_message(store: Store) -> None:
    assert await store.read("unheard", 0, max_messages=10, max_bytes=10) == Page([], 0, 0)
    assert await store.read("unheard", 7, max_messages=10, max_bytes=10) == Page([], 7, 0)
    assert await store.head("unheard") == Head(1, 0)


async def test_a_record_holds_everything(store: Store) -> None:
    await store.append([message(body=b"b", expiration_s=5, headers={"h": b"v"})])
    page = await store.read("orders", 0, max_messages=10, max_bytes=10)
    assert page == Page([Record(1, b"b", {"h": b"v"}, START_US, START_US + 5_000_000)], 1, 1)
    assert await store.get([Key("orders", 1)]) == list(page.records)


async def test_pages_are_bounded_by_messages_and_follow_each_other(store: Store) -> None:
    await store.append([message(body=b"%d" % n) for n in range(10)])
    first = await store.read("orders", 0, max_messages=4, max_bytes=1000)
    assert [r.id for r in first.records] == [1, 2, 3, 4]
    assert (first.scanned_to, first.last_id) == (4, 10)
    last = await store.read("orders", 8, max_messages=4, max_bytes=1000)
    assert [r.id for r in last.records] == [9, 10]
    assert (last.scanned_to, last.last_id) == (10, 10)
    exact = await store.read("orders", 6, max_messages=4, max_bytes=1000)
    assert [r.id for r in exact.records] == [7, 8, 9, 10]
    assert exact.scanned_to == 10


async def test_reading_after_the_end_and_beyond(store: Store) -> None:
    await store.append([message()] * 3)
    assert await store.read("orders", 3, max_messages=10, max_bytes=10) == Page([], 3, 3)
    assert await store.read("orders", 99, max_messages=10, max_bytes=10) == Page([], 99, 3)


@pytest.mark.parametrize(
    ("max_bytes", "expected"), [(0, [1]), (9, [1]), (10, [1]), (19, [1]), (20, [1, 2]), (29, [1, 2])]
)
async def test_pages_are_bounded_by_bytes_but_hold_at_least_one_message(
    store: Store, max_bytes: int, expected: list[int]
) -> None:
    await store.append([message(body=b"0123456789")] * 3)
    page = await store.read("orders", 0, max_messages=10, max_bytes=max_bytes)
    assert [r.id for r in page.records] == expected
    assert page.scanned_to == expected[-1]


async def test_headers_count_against_the_bytes_of_a_page(store: Store) -> None:
    await store.append([message(body=b"", headers={"é": b"345"})] * 2)  # 5 bytes each
    assert len((await store.read("orders", 0, max_messages=10, max_bytes=9)).records) == 1
    assert len((await store.read("orders", 0, max_messages=10, max_bytes=10)).records) == 2


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(1, 100), (3, 100), (100, 1), (100, 7), (100, 1000)])
async def test_every_way_to_page_reads_the_same(store: Store, max_messages: int, max_bytes: int) -> None:
    await store.append([message(body=b"x" * (n % 5), expiration_s=n % 3 and 60) for n in range(50)])
    expected = [n + 1 for n in range(50) if n % 3]
    records = await read_all(store, "orders", max_messages=max_messages, max_bytes=max_bytes)
    assert [r.id for r in records] == expected


async def test_reading_over_a_long_hole_of_ids(store: Store) -> None:
    await store.append([message(body=b"first")])
    await store.append([message(expiration_s=0)] * 2_000)
    await store.append([message(body=b"last")])
    page = await store.read("orders", 1, max_messages=2, max_bytes=100)
    assert [(r.id, r.body) for r in page.records] == [(2_002, b"last")]
    assert page.scanned_to == 2_002


async def test_get_answers_each_key_in_order_and_repeats(store: Store) -> None:
    await store.append([message("a", body=b"a1"), message("b", body=b"b1"), message("a", body=b"a2")])
    found = await store.get([Key("b", 1), Key("a", 2), Key("a", 1), Key("b", 1)])
    assert [r.body for r in found if isinstance(r, Record)] == [b"b1", b"a2", b"a1", b"b1"]
    assert await store.get([]) == []


async def test_subjects_are_paged_in_the_order_of_their_utf8_bytes(store: Store) -> None:
    names = ["b", "a", "B", "a.b", "ab", "é", "z", "東", "🛫", "\uffee", "a.a"]
    await store.append([message(name, expiration_s=0) for name in names])
    in_order = sorted(names, key=str.encode)
    assert await store.subjects() == in_order
    paged: list[str] = []
    while page := await store.subjects(paged[-1] if paged else "", limit=3):
        assert len(page) <= 3
        paged += page
    assert paged == in_order
    assert await store.subjects("a") == in_order[in_order.index("a") + 1 :]
    assert await store.subjects("aa") == in_order[in_order.index("ab") :]


async def test_a_page_is_unmoved_by_what_is_appended_later(store: Store) -> None:
    await store.append([message()])
    page = await store.read("orders", 0, max_messages=10, max_bytes=100)
    await store.append([message()])
    assert ids(await store.append([message()])) == [3]
    assert len(page.records) == page.scanned_to == page.last_id == 1


async def test_the_store_tells_its_time_and_its_limits(store: Store, clock: Clock) -> None:
    assert await store.now() == START_US
    clock.advance(1.5)
    assert await store.now() == START_US + 1_500_000
    limits = store.limits()
    assert limits.lanes >= 1
    assert limits.flush_messages_max >= 1024
    assert limits.flush_bytes_max >= 4 * 1024 * 1024
    assert 0 < limits.expiration_max_s < 2**31
    durability = store.durability()
    assert isinstance(durability, Durability)
    assert durability.kind
    assert durability.setting


async def test_the_pools_tell_who_works_and_who_has_worked(store: Store) -> None:
    before = {pool.name: pool.turns for pool in store.pools()}
    await store.append([message()])
    await store.head("orders")
    used = {pool.name for pool in store.pools() if pool.turns > before[pool.name]}
    assert used == ({"write", "read"} if before else set()), "a store without threads has no pools"
    for pool in store.pools():
        assert (pool.in_use, pool.waiting) == (0, 0)
        assert pool.size >= 1
        assert pool.waited_s >= 0


async def test_who_reads_after_the_id_before_a_time_gets_all_since_and_nothing_else(store: Store, clock: Clock) -> None:
    assert await store.id_before("orders", START_US) == 0
    for second in range(6):
        kept = 0 if second == 2 else 3600
        await store.append([message(expiration_s=kept), message(expiration_s=kept), message(expiration_s=0)])
        clock.advance(1)
    records = await read_all(store, "orders")
    assert await store.id_before("orders", records[-1].time_us + 1) == 18
    for time_us in {record.time_us + off for record in records for off in (-1, 0, 1)}:
        after_id = await store.id_before("orders", time_us)
        page = await store.read("orders", after_id, max_messages=100, max_bytes=10_000)
        assert list(page.records) == [record for record in records if record.time_us >= time_us]


async def test_the_id_before_a_time_when_what_was_first_has_expired(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=5), message(expiration_s=5)])
    clock.advance(10)
    await store.append([message(expiration_s=3600)])
    (record,) = await read_all(store, "orders")
    assert await store.id_before("orders", START_US) == 2
    assert await store.id_before("orders", record.time_us) == 2
    assert await store.id_before("orders", record.time_us + 1) == 3
