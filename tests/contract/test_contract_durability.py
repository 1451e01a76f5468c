"""Stores that outlive their opener: restart, several processes, a process that is killed."""

from collections.abc import Iterable

from contract_kit import START_US, Backend, Clock, get, ids, message, open_peers, read_all

from persistence import Appended, ExpiredId, Head, InvalidId, Record, open_store


async def test_everything_is_there_after_a_restart_and_ids_go_on(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as store:
        await store.append([message(body=b"1", headers={"h": b"v"}), message(body=b"2", expiration_s=None)])
        await store.append([message("other", expiration_s=0)])
        before = await read_all(store, "orders")
    async with open_store(durable_url, clock=clock) as store:
        assert await read_all(store, "orders") == before
        assert await store.subjects() == ["orders", "other"]
        assert await get(store, "other", 1) == ExpiredId(1)
        assert await get(store, "other", 2) == InvalidId(1)
        assert ids(await store.append([message(), message("other")])) == [3, 2]


async def test_what_expired_while_closed_is_expired_and_swept_later(
    durable_backend: Backend, durable_url: str, clock: Clock
) -> None:
    async with open_store(durable_url, clock=clock) as store:
        await store.append([message(expiration_s=1)])
    clock.advance(1)
    async with open_store(durable_url, clock=clock) as store:
        assert await get(store, "orders", 1) == ExpiredId(1)
        assert (await store.sweep()).removed == durable_backend.swept(1)
        assert await store.head("orders") == Head(2, 1)


async def test_times_do_not_go_back_over_a_restart(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as store:
        await store.append([message()])
    clock.advance(-60)
    async with open_store(durable_url, clock=clock) as store:
        assert await store.append([message()]) == [Appended(2, START_US)]


async def test_two_stores_open_at_once_see_each_other(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as one, open_store(durable_url, clock=clock) as two:
        assert ids(await one.append([message(body=b"one")])) == [1]
        assert ids(await two.append([message(body=b"two")])) == [2]
        assert [r.body for r in await read_all(one, "orders")] == [b"one", b"two"]
        assert await two.head("orders") == Head(1, 2)


async def test_two_processes_share_a_subject_without_gap_or_duplicate(durable_url: str, clock: Clock) -> None:
    async with open_peers(durable_url, 2) as peers, open_store(durable_url) as store:
        for peer in peers:
            await peer.tell("append", "shared", 30, 5)
        acknowledged = [[await peer.hear() for _ in range(30)] for peer in peers]
        records = await read_all(store, "shared")

    assert [r.id for r in records] == list(range(1, 301))
    assert [r.time_us for r in records] == sorted(r.time_us for r in records)
    times = {r.id: r.time_us for r in records}
    seen: set[int] = set()
    for batches in acknowledged:
        last_id = 0
        for batch in batches:
            first_id = batch[0][0]
            assert batch == [[id_, times[id_]] for id_ in range(first_id, first_id + 5)]
            assert first_id > last_id
            last_id = first_id + 4
            seen.update(id_ for id_, _ in batch)
    assert len(seen) == 300


async def test_a_new_store_may_be_opened_by_several_processes_at_once(durable_url: str) -> None:
    async with open_peers(durable_url, 4) as peers:
        for peer in peers:
            await peer.tell("append", "shared", 1, 1)
        assert sorted([(await peer.hear())[0][0] for peer in peers]) == [1, 2, 3, 4]


async def test_what_a_killed_process_was_told_is_there_and_ids_go_on(durable_url: str, clock: Clock) -> None:
    told: list[Iterable[list[int]]] = []
    async with open_peers(durable_url, 1) as (peer,):
        await peer.tell("append", "shared", 1_000_000, 7)
        told += [await peer.hear() for _ in range(20)]
        peer.process.kill()
        await peer.process.wait()
    async with open_store(durable_url) as store:
        records = {r.id: r.time_us for r in await read_all(store, "shared")}
        assert len(records) >= 140
        assert len(records) % 7 == 0  # batches are whole
        assert list(records) == list(range(1, len(records) + 1))
        assert all(records[id_] == time_us for batch in told for id_, time_us in batch)
        assert ids(await store.append([message("shared")])) == [len(records) + 1]
        assert isinstance(await get(store, "shared", 140), Record)
