"""Expiry: exact by the store's clock at the time of reading, whether or not a sweep has been there."""

from contract_kit import SECOND_US, START_US, Backend, Clock, get, message, read_all, sweep_all

from persistence import ExpiredId, Head, InvalidId, Key, Page, Record, Store, Swept


async def test_a_message_is_kept_until_its_time_and_gone_at_it(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=2)])
    clock.now_us = START_US + 2 * SECOND_US - 1
    record = await get(store, "orders", 1)
    assert isinstance(record, Record)
    assert record.expires_us == START_US + 2 * SECOND_US
    assert await store.head("orders") == Head(1, 1)
    assert len(await read_all(store, "orders")) == 1

    clock.now_us += 1
    assert await get(store, "orders", 1) == ExpiredId(1)
    assert await store.head("orders") == Head(2, 1)
    assert await read_all(store, "orders") == []


async def test_never_assigned_and_no_longer_kept_stay_apart_after_sweeping(
    backend: Backend, store: Store, clock: Clock
) -> None:
    await store.append([message(expiration_s=1), message(expiration_s=1), message(expiration_s=None)])
    clock.advance(1)
    keys = [Key("orders", id_) for id_ in (-1, 0, 1, 2, 3, 4, 2**63 - 1)] + [Key("unheard", 1)]
    before = await store.get(keys)
    assert before[:4] == [InvalidId(3), InvalidId(3), ExpiredId(3), ExpiredId(3)]
    assert isinstance(before[4], Record)
    assert before[5:] == [InvalidId(3), InvalidId(3), InvalidId(0)]
    assert await sweep_all(store) == backend.swept(2)
    assert await store.get(keys) == before
    assert await store.head("orders") == Head(3, 3)


async def test_the_last_id_outlives_all_messages(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=1)] * 3)
    clock.advance(1)
    await sweep_all(store)
    assert await store.head("orders") == Head(4, 3)
    assert await get(store, "orders", 3) == ExpiredId(3)
    assert await store.subjects() == ["orders"]
    await store.append([message()])
    assert await store.head("orders") == Head(4, 4)


async def test_expiration_0_takes_an_id_and_is_not_kept(store: Store) -> None:
    await store.append([message(expiration_s=0), message(), message(expiration_s=0)])
    assert await get(store, "orders", 1) == ExpiredId(3)
    assert await get(store, "orders", 3) == ExpiredId(3)
    assert await store.head("orders") == Head(2, 3)
    assert [r.id for r in await read_all(store, "orders")] == [2]
    assert await store.sweep() == Swept(removed=0, more=False)


async def test_keep_keeps(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=None)])
    clock.advance(1000 * 365 * 24 * 3600)
    assert await sweep_all(store) == 0
    record = await get(store, "orders", 1)
    assert isinstance(record, Record)
    assert record.expires_us is None


async def test_the_longest_expiration_is_kept_to_its_end(store: Store, clock: Clock) -> None:
    longest = store.limits().expiration_max_s
    await store.append([message(expiration_s=longest)])
    clock.advance(longest - 1)
    assert isinstance(await get(store, "orders", 1), Record)
    clock.advance(1)
    assert await get(store, "orders", 1) == ExpiredId(1)


async def test_sweeping_drops_what_has_expired_and_nothing_else(backend: Backend, store: Store, clock: Clock) -> None:
    await store.append([message(f"s{n % 3}", expiration_s=1 + n % 5) for n in range(60)])
    await store.append([message("s0", expiration_s=None), message("s1", expiration_s=0)])
    kept = 61
    for _ in range(5):
        clock.now_us += SECOND_US - 1
        assert await sweep_all(store) == 0
        clock.now_us += 1
        assert await sweep_all(store) == backend.swept(12)
        kept -= 12
        assert sum([len(await read_all(store, f"s{n}")) for n in range(3)]) == kept


async def test_one_step_of_sweeping_is_bounded_and_says_that_there_is_more(sweeping_store: Store, clock: Clock) -> None:
    store = sweeping_store
    for _ in range(5):
        await store.append([message(f"s{n % 7}", expiration_s=1) for n in range(1_000)])
    clock.advance(1)
    first = await store.sweep()
    assert first.more
    assert 0 < first.removed <= 2_000
    assert await sweep_all(store) == 5_000 - first.removed


async def test_a_page_of_expired_messages_is_empty_and_still_advances(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=1)] * 10 + [message(expiration_s=60)])
    clock.advance(1)
    page = await store.read("orders", 0, max_messages=4, max_bytes=1000)
    assert page == Page([], 4, 11)
    page = await store.read("orders", 8, max_messages=4, max_bytes=1000)
    assert [r.id for r in page.records] == [11]
    assert page.scanned_to == page.last_id == 11
    assert [r.id for r in await read_all(store, "orders", max_messages=1)] == [11]


async def test_expired_messages_do_not_count_against_the_bytes_of_a_page(store: Store, clock: Clock) -> None:
    await store.append([message(body=b"x" * 1000, expiration_s=1)] * 5 + [message(body=b"y", expiration_s=60)])
    clock.advance(1)
    page = await store.read("orders", 0, max_messages=10, max_bytes=10)
    assert [r.body for r in page.records] == [b"y"]


async def test_a_message_appended_when_the_clock_went_back_is_kept_as_long_as_asked(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=None)])
    clock.advance(-10)
    await store.append([message(expiration_s=5)])
    clock.advance(14)
    assert isinstance(await get(store, "orders", 2), Record)
    clock.advance(1)
    assert await get(store, "orders", 2) == ExpiredId(2)
