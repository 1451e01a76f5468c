"""Idempotency keys and expected last ids: what is appended once, or only after what its sender has seen."""

import pytest
import trio
from contract_kit import SECOND_US, START_US, Clock, Peer, ids, message, open_peers, read_all, sweep_all, told

from persistence import KEY_KEPT_MIN_S, Appended, Conflict, Duplicate, Head, Rejected, Store, open_store


async def test_a_key_that_was_seen_gives_the_first_id_and_appends_nothing(store: Store, clock: Clock) -> None:
    assert told(await store.append([message(body=b"1", key="k")])) == told([Appended(1, START_US)])
    await store.append([message(body=b"2")])
    clock.advance(1)
    again = await store.append([message(body=b"3", key="k"), message(body=b"4", key="other")])
    assert told(again) == told([Duplicate(1, START_US), Appended(3, START_US + SECOND_US)])
    assert [r.body for r in await read_all(store, "orders")] == [b"1", b"2", b"4"]


async def test_of_two_equal_keys_in_a_batch_the_second_is_a_duplicate_of_the_first(store: Store) -> None:
    batch = [message(), message(key="k"), message(), message(key="k"), message(key="k2"), message(key="k")]
    expected = [
        Appended(1, START_US),
        Appended(2, START_US),
        Appended(3, START_US),
        Duplicate(2, START_US),
        Appended(4, START_US),
        Duplicate(2, START_US),
    ]
    assert told(await store.append(batch)) == told(expected)
    assert await store.head("orders") == Head(1, 4)


async def test_a_key_counts_in_its_own_subject_only(store: Store) -> None:
    batch = [message("a", key="k"), message("b", key="k"), message("a", key="K"), message("c")]
    assert ids(await store.append(batch)) == [1, 1, 2, 1]


@pytest.mark.parametrize("key", ["k" * 255, "ключ", "🛫", "a\0b", "a'b\"c\\", " "], ids=ascii)
async def test_any_key_will_do(store: Store, key: str) -> None:
    assert told(await store.append([message(key=key), message(key=key + ".")])) == told(
        [Appended(1, START_US), Appended(2, START_US)]
    )
    assert told(await store.append([message(key=key)])) == told([Duplicate(1, START_US)])


@pytest.mark.parametrize(
    ("expiration_s", "kept_s"), [(0, KEY_KEPT_MIN_S), (1, KEY_KEPT_MIN_S), (KEY_KEPT_MIN_S + 1, KEY_KEPT_MIN_S + 1)]
)
async def test_a_key_is_remembered_as_long_as_its_message_is_kept_and_for_120_s_at_least(
    store: Store, clock: Clock, expiration_s: int, kept_s: int
) -> None:
    await store.append([message(expiration_s=expiration_s, key="k")])
    clock.now_us = START_US + kept_s * SECOND_US - 1
    await sweep_all(store)
    assert told(await store.append([message(key="k")])) == told([Duplicate(1, START_US)])
    clock.now_us += 1
    assert told(await store.append([message(key="k")])) == told([Appended(2, clock.now_us)])
    await sweep_all(store)
    assert told(await store.append([message(key="k")])) == told([Duplicate(2, clock.now_us)])


async def test_the_key_of_a_message_that_is_kept_until_it_is_deleted_is_remembered(store: Store, clock: Clock) -> None:
    await store.append([message(expiration_s=None, key="k")])
    clock.advance(10 * 365 * 24 * 3600)
    await sweep_all(store)
    assert told(await store.append([message(key="k")])) == told([Duplicate(1, START_US)])


async def test_forgotten_keys_are_swept_step_by_step_and_not_counted(sweeping_store: Store, clock: Clock) -> None:
    store = sweeping_store
    batch = [message(f"s{n % 3}", expiration_s=0, key=f"{n}") for n in range(5_000)]
    await store.append(batch)
    clock.advance(KEY_KEPT_MIN_S)
    first = await store.sweep()
    assert (first.removed, first.more) == (0, True)
    assert await sweep_all(store) == 0
    assert len(ids(await store.append(batch))) == 5_000


async def test_a_rejected_message_leaves_its_key_unused(store: Store) -> None:
    refused, taken = await store.append([message(expiration_s=-1, key="k"), message(key="k")])
    assert isinstance(refused, Rejected)
    assert told([taken]) == told([Appended(1, START_US)])


async def test_a_message_is_appended_only_after_the_last_id_that_it_expects(store: Store) -> None:
    assert told(await store.append([message(after=0)])) == told([Appended(1, START_US)])
    assert told(await store.append([message(after=0)])) == told([Conflict(1)])
    assert told(await store.append([message(after=2)])) == told([Conflict(1)])
    assert told(await store.append([message(after=1)])) == told([Appended(2, START_US)])
    assert await store.head("orders") == Head(1, 2)


async def test_expected_last_ids_are_judged_in_batch_order(store: Store) -> None:
    batch = [message(after=0), message(after=1), message(after=1), message(), message(after=3), message("b", after=0)]
    expected = [
        Appended(1, START_US),
        Appended(2, START_US),
        Conflict(2),
        Appended(3, START_US),
        Appended(4, START_US),
        Appended(1, START_US),
    ]
    assert told(await store.append(batch)) == told(expected)


async def test_who_repeats_a_conditional_publish_that_was_appended_hears_so(store: Store) -> None:
    once = message(key="k", after=0)
    assert told(await store.append([once, once])) == told([Appended(1, START_US), Duplicate(1, START_US)])
    assert told(await store.append([message(key="other", after=0), once])) == told(
        [Conflict(1), Duplicate(1, START_US)]
    )
    assert told(await store.append([message(key="other", after=1)])) == told([Appended(2, START_US)])


async def test_a_conflict_in_a_new_subject_leaves_no_trace(store: Store) -> None:
    outcomes = await store.append([message("new", key="k", after=7), message("old")])
    assert told(outcomes) == told([Conflict(0), Appended(1, START_US)])
    assert told(await store.append([message("new", after=7)])) == told([Conflict(0)])
    assert await store.subjects() == ["old"]
    assert await store.head("new") == Head(1, 0)
    assert ids(await store.append([message("new", key="k")])) == [1]


async def test_a_large_batch_with_keys_that_is_repeated_in_part(store: Store) -> None:
    batch = [message(f"s{n % 7}", key=f"{n}") for n in range(1_400)]
    first = ids(await store.append(batch[:1_000]))
    outcomes = await store.append(batch)
    assert told(outcomes[:1_000]) == told([Duplicate(id_, START_US) for id_ in first])
    ids(outcomes[1_000:])
    assert [len(await read_all(store, f"s{n}", max_messages=1_000)) for n in range(7)] == [200] * 7


async def test_of_many_tasks_one_appends_with_each_key(store: Store) -> None:
    outcomes = []

    async def publish() -> None:
        for n in range(10):
            outcomes.extend(await store.append([message(key=f"{n}"), message(key="shared")]))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(publish)
    appended = ids(outcome for outcome in outcomes if isinstance(outcome, Appended))
    assert sorted(appended) == list(range(1, 12))
    assert all(isinstance(outcome, Appended | Duplicate) for outcome in outcomes)


async def test_keys_outlive_a_restart(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as store:
        await store.append([message(key="k")])
    async with open_store(durable_url, clock=clock) as store:
        assert told(await store.append([message(key="k")])) == told([Duplicate(1, START_US)])


async def test_two_stores_open_at_once_know_each_others_keys_and_last_ids(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as one, open_store(durable_url, clock=clock) as two:
        for n in range(3):
            assert ids(await one.append([message(key=f"one {n}")])) == [2 * n + 1]
            assert ids(await two.append([message(key=f"two {n}", after=2 * n + 1)])) == [2 * n + 2]
            assert told(await two.append([message(key=f"one {n}")])) == told([Duplicate(2 * n + 1, START_US)])
            assert told(await one.append([message(key=f"two {n}")])) == told([Duplicate(2 * n + 2, START_US)])
            assert told(await one.append([message(after=2 * n + 1)])) == told([Conflict(2 * n + 2)])


async def test_of_several_processes_one_appends_with_each_key(durable_url: str) -> None:
    heard: list[list[list[object]]] = []

    async def hear(peer: Peer) -> None:
        heard.append([await peer.hear() for _ in range(20)])

    async with open_peers(durable_url, 3) as peers, open_store(durable_url) as store:
        async with trio.open_nursery() as nursery:
            for peer in peers:
                await peer.tell("append keyed", "shared", 20)
                nursery.start_soon(hear, peer)
        assert [r.id for r in await read_all(store, "shared")] == list(range(1, 21))
    for of_key in zip(*heard, strict=True):
        assert sorted(str(kind) for kind, _ in of_key) == ["Appended", "Duplicate", "Duplicate"]
        assert len({id_ for _, id_ in of_key}) == 1


async def test_of_several_processes_one_appends_after_each_id(durable_url: str) -> None:
    async with open_peers(durable_url, 2) as peers:
        for peer in peers:
            await peer.tell("append expected", "shared", 10)
        appended = [id_ for peer in peers for id_ in await peer.hear()]
    assert sorted(appended) == list(range(1, 21))
