"""Many tasks, cancellation at each wait, sweeping while appending."""

from collections import defaultdict
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from contract_kit import Clock, ids, message, read_all

from persistence import Appended, Key, Record, Store


async def test_many_tasks_get_unique_contiguous_ids_in_order(store: Store) -> None:
    got: defaultdict[str, list[list[int]]] = defaultdict(list)

    async def publish(subject: str) -> None:
        mine = []
        for _ in range(10):
            mine += ids(await store.append([message(subject), message(subject)]))
        got[subject].append(mine)

    async with trio.open_nursery() as nursery:
        for task in range(12):
            nursery.start_soon(publish, f"s{task % 3}")

    for subject, of_tasks in got.items():
        assert all(mine == sorted(mine) for mine in of_tasks)
        assert sorted(id_ for mine in of_tasks for id_ in mine) == list(range(1, 81))
        assert [r.id for r in await read_all(store, subject)] == list(range(1, 81))


async def test_readers_see_whole_batches_only(store: Store) -> None:
    async def publish() -> None:
        for _ in range(20):
            await store.append([message("a"), message("a"), message("a")])
        publishing.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as publishing:
            nursery.start_soon(publish)
            while True:
                page = await store.read("a", 0, max_messages=1000, max_bytes=1000)
                assert len(page.records) == page.last_id == page.scanned_to
                assert page.last_id % 3 == 0
    assert (await store.head("a")).last_id == 60


async def test_a_cancelled_append_is_applied_whole_or_not_at_all(store: Store) -> None:
    """One whose caller heard "cancelled" was not begun; one that was begun ends and is heard of."""
    heard: list[int] = []

    async def publish(scope: trio.CancelScope) -> None:
        with scope:
            heard.extend(ids(await store.append([message(), message()])))

    for _ in range(5):
        scopes = [trio.CancelScope() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(publish, scope)
            await trio.lowlevel.checkpoint()
            for scope in scopes:
                scope.cancel()
    assert sorted(heard) == list(range(1, len(heard) + 1))
    assert [r.id for r in await read_all(store, "orders")] == sorted(heard)
    assert ids(await store.append([message()])) == [len(heard) + 1]


CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "append": lambda store: store.append([message()]),
    "read": lambda store: store.read("orders", 0, max_messages=10, max_bytes=10),
    "get": lambda store: store.get([Key("orders", 1)]),
    "head": lambda store: store.head("orders"),
    "subjects": lambda store: store.subjects(),
    "purge": lambda store: store.purge("orders", 1),
    "delete_subject": lambda store: store.delete_subject("orders", 0),
    "restore": lambda store: store.restore("orders", [Record(1, b"x", {}, 1, None)], 1),
    "load": lambda store: store.load("a"),
    "list": lambda store: store.list(""),
    "compare_and_set": lambda store: store.compare_and_set("a", b"1", version=0),
    "delete": lambda store: store.delete("a", version=1),
    "sweep": lambda store: store.sweep(),
    "now": lambda store: store.now(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_method_is_a_checkpoint(store: Store, call: str) -> None:
    with trio.testing.assert_checkpoints():
        await CALLS[call](store)


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_in_a_cancelled_scope_does_nothing(store: Store, call: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await CALLS[call](store)
    assert scope.cancelled_caught
    assert await store.subjects() == []
    assert await store.list("") == []


@pytest.mark.parametrize("call", CALLS)
async def test_calls_cancelled_midway_leave_the_store_working(store: Store, call: str) -> None:
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(8):  # more than there are connections
                nursery.start_soon(CALLS[call], store)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        for try_call in CALLS.values():
            nursery.start_soon(try_call, store)
    (outcome,) = await store.append([message("after")])
    assert outcome == Appended(1, await store.now())
    assert len(await read_all(store, "after")) == 1


async def test_an_append_waits_for_at_most_the_step_of_sweeping_in_progress(
    sweeping_store: Store, clock: Clock
) -> None:
    store = sweeping_store
    for _ in range(6):
        await store.append([message(f"s{n % 7}", expiration_s=1) for n in range(2_000)])
    clock.advance(1)
    steps = removed = 0

    async def sweep() -> None:
        nonlocal steps, removed
        more = True
        while more:
            removed_now, more = await store.sweep()
            steps += 1
            removed += removed_now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweep)
        appended = 0
        while removed < 12_000:
            before = steps
            await store.append([message("live")])
            appended += 1
            assert steps - before <= 2  # the one in progress, and one more that ended before this task ran again
    assert (await store.head("live")).last_id == appended
    assert removed == 12_000
    assert [len(await read_all(store, f"s{n}")) for n in range(7)] == [0] * 7
