"""What changes a subject as a whole: purging and deleting it, and bringing back a log that was kept elsewhere."""

import sys
from unittest import mock

from contract_kit import (
    SECOND_US,
    START_US,
    Backend,
    Clock,
    get,
    ids,
    message,
    open_peers,
    read_all,
    sweep_all,
    told,
)

from persistence import (
    Conflict,
    Duplicate,
    ExpiredId,
    Head,
    InvalidId,
    Page,
    Record,
    Store,
    Swept,
    open_store,
)

NAMES = ["a", "orders", "ö", "\U0001f600"]


def record(id_: int, *, body: bytes = b"x", expires_us: int | None = None) -> Record:
    return Record(id_, body, {"h": b"%d" % id_}, START_US - 1000 + id_, expires_us)


async def test_what_is_purged_is_gone_at_once_for_every_read(store: Store) -> None:
    await store.append([message(body=b"%d" % n) for n in range(1, 11)])
    assert await store.purge("orders", 7) == 10
    assert await store.head("orders") == Head(8, 10)
    assert [r.id for r in await read_all(store, "orders", max_messages=2)] == [8, 9, 10]
    assert await get(store, "orders", 7) == ExpiredId(10)
    assert isinstance(await get(store, "orders", 8), Record)
    assert await get(store, "orders", 11) == InvalidId(10)
    assert await store.id_before("orders", 0) == 7
    assert await store.subjects() == ["orders"]


async def test_sweeping_drops_what_was_purged_and_changes_no_answer(backend: Backend, store: Store) -> None:
    await store.append([message(expiration_s=None)] * 10)
    await store.append([message("other", expiration_s=None)] * 10)
    await store.purge("orders", 7)
    assert await sweep_all(store) == backend.swept(7)
    assert [r.id for r in await read_all(store, "orders")] == [8, 9, 10]
    assert len(await read_all(store, "other")) == 10
    assert await get(store, "orders", 7) == ExpiredId(10)
    assert await store.sweep() == Swept(0, more=False)


async def test_a_purge_reaches_no_further_than_what_was_appended(store: Store) -> None:
    await store.append([message()] * 3)
    assert await store.purge("orders", 1000) == 3
    assert await store.head("orders") == Head(4, 3)
    assert ids(await store.append([message(body=b"new")])) == [4]
    assert [r.body for r in await read_all(store, "orders")] == [b"new"]


async def test_a_floor_never_goes_back(store: Store) -> None:
    await store.append([message()] * 9)
    assert await store.purge("orders", 6) == 9
    assert await store.purge("orders", 2) == 9
    assert await store.head("orders") == Head(7, 9)
    assert await store.purge("orders", 0) == 9
    assert await store.purge("orders", 8) == 9
    assert [r.id for r in await read_all(store, "orders")] == [9]
    await sweep_all(store)
    assert [r.id for r in await read_all(store, "orders")] == [9]


async def test_purging_what_never_was_does_nothing(store: Store) -> None:
    assert await store.purge("unheard", 5) == 0
    assert await store.head("unheard") == Head(1, 0)
    assert await store.subjects() == []
    assert await get(store, "unheard", 1) == InvalidId(0)


async def test_a_page_begins_above_the_floor_and_still_ends_with_the_log(store: Store) -> None:
    await store.append([message(expiration_s=0)] * 3 + [message()] * 3)
    await store.purge("orders", 6)
    assert await store.read("orders", 0, max_messages=2, max_bytes=1000) == Page([], 6, 6)
    await store.append([message(expiration_s=0), message()])
    page = await store.read("orders", 2, max_messages=10, max_bytes=1000)
    assert ([r.id for r in page.records], page.scanned_to, page.last_id) == ([8], 8, 8)


async def test_a_purged_log_of_some_length_goes_in_steps(store: Store, backend: Backend) -> None:
    for _ in range(6):
        await store.append([message(expiration_s=None)] * 1000)
    await store.purge("orders", 5500)
    assert await store.head("orders") == Head(5501, 6000)
    first = await store.sweep()
    if backend.sweeps:
        assert 0 < first.removed <= 2_500
        assert first.more
    assert first.removed + await sweep_all(store) == backend.swept(5500)
    assert len(await read_all(store, "orders", max_messages=1000)) == 500


async def test_messages_that_expire_after_they_were_purged_are_no_trouble(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=n) for n in (1, 2, 3, 4)])
    await store.purge("orders", 2)
    await sweep_all(store)
    clock.advance(2)
    await sweep_all(store)
    assert [r.id for r in await read_all(store, "orders")] == [3, 4]
    clock.advance(2)
    await sweep_all(store)
    assert await store.head("orders") == Head(5, 4)


async def test_keys_of_what_was_purged_are_remembered_for_a_while(store: Store, clock: Clock) -> None:
    (first,) = await store.append([message(key="k")])
    await store.purge("orders", 1)
    await sweep_all(store)
    clock.advance(100)
    assert told(await store.append([message(key="k")])) == told([Duplicate(1, START_US)])
    assert ids([first]) == [1]


async def test_keys_of_what_was_purged_are_forgotten_in_the_end(sweeping_store: Store, clock: Clock) -> None:
    store = sweeping_store
    await store.append([message(key=f"k{n}", expiration_s=None) for n in range(5_000)])
    await store.purge("orders", 4_000)
    clock.advance(119)
    await sweep_all(store)
    assert told(await store.append([message(key="k0")])) == told([Duplicate(1, START_US)])
    clock.advance(1)
    await sweep_all(store)
    assert ids(await store.append([message(key="k0"), message(key="k3999")])) == [5_001, 5_002]
    assert told(await store.append([message(key="k4000")])) == told([Duplicate(4_001, START_US)])
    assert await store.sweep() == Swept(0, more=False)


async def test_a_key_used_again_after_a_purge_is_not_forgotten_with_it(sweeping_store: Store, clock: Clock) -> None:
    store = sweeping_store
    await store.append([message(key="k", expiration_s=1)])
    clock.advance(100)
    await store.purge("orders", 1)
    clock.advance(30)  # its key has expired by itself
    assert ids(await store.append([message(key="k", expiration_s=None)])) == [2]
    clock.advance(200)
    await sweep_all(store)
    assert told(await store.append([message(key="k")])) == told([Duplicate(2, START_US + 130 * SECOND_US)])


async def test_purges_one_after_another_all_forget_their_keys(sweeping_store: Store, clock: Clock) -> None:
    store = sweeping_store
    for n in range(1, 5):
        await store.append([message(key=f"k{n}", expiration_s=None)])
        await store.purge("orders", n)
        await sweep_all(store)
        clock.advance(60)
    await sweep_all(store)  # 240 s after the first, 60 s after the last
    outcomes = await store.append([message(key=f"k{n}") for n in range(1, 5)])
    assert [type(outcome) is Duplicate for outcome in outcomes] == [False, False, False, True]


async def test_a_deleted_subject_is_not_listed_and_its_ids_go_on(store: Store) -> None:
    for name in NAMES:
        await store.append([message(name)] * 3)
    assert await store.delete_subject("orders", 3) is None
    assert await store.subjects() == [name for name in NAMES if name != "orders"]
    assert await store.subjects(limit=2) == ["a", "ö"]
    assert await store.head("orders") == Head(4, 3)
    assert await get(store, "orders", 3) == ExpiredId(3)
    assert await get(store, "orders", 4) == InvalidId(3)
    await sweep_all(store)
    assert await store.head("orders") == Head(4, 3)
    assert ids(await store.append([message()])) == [4]
    assert await store.subjects() == NAMES
    assert [r.id for r in await read_all(store, "orders")] == [4]


async def test_a_subject_is_only_deleted_as_it_is_known(store: Store) -> None:
    await store.append([message()] * 3)
    assert await store.delete_subject("orders", 2) == Conflict(3)
    assert await store.delete_subject("unheard", 1) == Conflict(0)
    assert await store.delete_subject("unheard", 0) is None
    assert await store.head("orders") == Head(1, 3)
    assert await store.subjects() == ["orders"]


async def test_deleting_again_does_nothing(store: Store) -> None:
    await store.append([message()] * 3)
    assert await store.delete_subject("orders", 3) is None
    assert await store.delete_subject("orders", 3) is None
    assert await store.subjects() == []
    await store.append([message()])
    assert await store.delete_subject("orders", 3) == Conflict(4)
    assert await store.subjects() == ["orders"]


async def test_what_is_refused_does_not_list_a_deleted_subject(store: Store) -> None:
    await store.append([message()])
    await store.delete_subject("orders", 1)
    assert told(await store.append([message(after=7)])) == told([Conflict(1)])
    assert await store.subjects() == []
    assert ids(await store.append([message(after=1)])) == [2]
    assert await store.subjects() == ["orders"]


async def test_a_restored_log_is_what_it_was(store: Store, clock: Clock) -> None:
    end_us = START_US + 60 * SECOND_US
    log = [record(3), record(4, expires_us=end_us), record(9, body=b"y" * 1000)]
    assert await store.restore("orders", log, 12) == 3
    assert await read_all(store, "orders") == log
    assert await store.head("orders") == Head(3, 12)
    assert await get(store, "orders", 5) == ExpiredId(12)
    assert await get(store, "orders", 12) == ExpiredId(12)
    assert await get(store, "orders", 13) == InvalidId(12)
    assert await store.subjects() == ["orders"]
    assert ids(await store.append([message()])) == [13]
    clock.advance(60)
    assert [r.id for r in await read_all(store, "orders")] == [3, 9]


async def test_restoring_again_does_nothing(store: Store) -> None:
    log = [record(n) for n in range(1, 6)]
    assert await store.restore("orders", log, 5) == 5
    assert await store.restore("orders", log, 5) == 0
    assert await store.restore("orders", [*log, record(7)], 5) == 1
    assert await store.restore("orders", [], 3) == 0
    assert [r.id for r in await read_all(store, "orders")] == [1, 2, 3, 4, 5, 7]
    assert await store.head("orders") == Head(1, 7)


async def test_a_last_id_can_be_restored_without_messages(store: Store) -> None:
    assert await store.restore("orders", [], 0) == 0
    assert await store.subjects() == []
    assert await store.restore("orders", [], 40) == 0
    assert await store.head("orders") == Head(41, 40)
    assert await store.subjects() == ["orders"]
    assert await store.restore("orders", [record(42)], 45) == 1
    assert await store.head("orders") == Head(42, 45)


async def test_what_is_appended_to_a_restored_log_is_not_older_than_it(store: Store, clock: Clock) -> None:
    ahead = record(1)._replace(time_us=clock.now_us + 5 * SECOND_US)
    await store.restore("orders", [ahead], 1)
    (appended,) = await store.append([message()])
    assert (appended.id, appended.time_us >= ahead.time_us) == (2, True)


async def test_a_long_log_is_restored_flush_by_flush(store: Store) -> None:
    log = [record(2 * n) for n in range(1, 1501)]
    for start in range(0, 1500, 500):
        part = log[start : start + 500]
        assert await store.restore("orders", part, part[-1].id) == 500
    assert await read_all(store, "orders", max_messages=700) == log
    assert await store.purge("orders", 2999) == 3000
    assert [r.id for r in await read_all(store, "orders")] == [3000]


async def test_a_deleted_subject_can_be_restored_above_its_last_id(store: Store) -> None:
    await store.append([message()] * 3)
    await store.delete_subject("orders", 3)
    assert await store.restore("orders", [record(2), record(5)], 5) == 1
    assert await store.subjects() == ["orders"]
    assert [r.id for r in await read_all(store, "orders")] == [5]


async def test_purged_and_deleted_stay_so_when_the_store_is_opened_again(
    durable_url: str, clock: Clock, durable_backend: Backend
) -> None:
    async with open_store(durable_url, clock=clock) as store:
        await store.append([message()] * 3)
        await store.append([message("gone")] * 3)
        await store.purge("orders", 2)
        await store.delete_subject("gone", 3)
    async with open_store(durable_url, clock=clock) as store:
        assert [r.id for r in await read_all(store, "orders")] == [3]
        assert await store.subjects() == ["orders"]
        assert await store.head("gone") == Head(4, 3)
        await sweep_all(store)
    async with open_store(durable_url, clock=clock) as store:
        assert [r.id for r in await read_all(store, "orders")] == [3]
        assert await store.head("gone") == Head(4, 3)


async def test_purging_and_deleting_beside_another_process_that_appends(
    durable_backend: Backend, durable_url: str
) -> None:
    """Whatever the order, no id is given twice, and what was appended after the last purge is kept and listed."""
    async with open_peers(durable_url, 1) as (peer,), open_store(durable_url) as store:
        await peer.tell("append", "orders", 150, 3)
        floor = deleted_at = 0
        for n in range(150):
            assert await peer.hear() == [[3 * n + 1 + i, mock.ANY] for i in range(3)]
            if n % 3 == 0:
                last_id = (await store.head("orders")).last_id
                if await store.delete_subject("orders", last_id) is None:
                    floor = deleted_at = last_id
            elif n % 3 == 1:
                last_id = await store.purge("orders", sys.maxsize)
                floor = max(floor, last_id)
        assert (await store.head("orders")).last_id == 450
        assert [r.id for r in await read_all(store, "orders")] == list(range(floor + 1, 451))
        await sweep_all(store)
        assert [r.id for r in await read_all(store, "orders")] == list(range(floor + 1, 451))
        assert await store.subjects() == (["orders"] if deleted_at < 450 else [])
