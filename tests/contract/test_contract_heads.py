"""The last ids of many subjects at once, by which a broker sees what it has missed."""

import pytest
from contract_kit import Backend, Clock, ids, message, open_peers, sweep_all, told

from persistence import Conflict, Store, open_store

ODD = ["ö", "a'b", 'a"b', "a\\b", "{a,b}", "%s", "?", "NULL", "a:b", "\U0001f600", "x" * 255, "A", "a", "0"]


async def test_the_last_ids_of_the_subjects_that_are_asked_for_and_no_others(store: Store) -> None:
    await store.append([message("a")] * 3 + [message("b")] + [message("c")] * 2)
    assert await store.heads(["a", "c"]) == {"a": 3, "c": 2}
    await store.append([message("a"), message("b")])
    assert await store.heads({"a", "b"}) == {"a": 4, "b": 2}
    assert await store.heads(("b", "b")) == {"b": 2}


async def test_a_subject_that_never_had_a_message_has_no_last_id(store: Store) -> None:
    await store.append([message()])
    assert await store.heads(["unheard", "orders"]) == {"orders": 1}
    assert await store.heads(["unheard"]) == {}
    assert await store.heads([]) == {}


async def test_what_is_refused_gives_a_subject_no_last_id(store: Store) -> None:
    assert told(await store.append([message(after=7)])) == told([Conflict(0)])
    await store.append([message("other", expiration_s=-1)])
    assert await store.heads(["orders", "other"]) == {}


async def test_messages_that_are_not_kept_count(store: Store, clock: Clock) -> None:
    await store.append([message("fired", expiration_s=0)] * 3)
    await store.append([message("short", expiration_s=1)] * 2)
    clock.advance(2)
    await sweep_all(store)
    assert await store.heads(["fired", "short"]) == {"fired": 3, "short": 2}


async def test_purged_and_deleted_subjects_have_their_last_ids(store: Store) -> None:
    for name in ("purged", "deleted", "restored"):
        await store.append([message(name)] * 3)
    await store.purge("purged", 3)
    await store.delete_subject("deleted", 3)
    await store.restore("restored", [], 40)
    await sweep_all(store)
    assert await store.heads(["purged", "deleted", "restored"]) == {"purged": 3, "deleted": 3, "restored": 40}
    await store.append([message("deleted")])
    assert await store.heads(["deleted"]) == {"deleted": 4}


async def test_subjects_of_odd_characters_are_found_by_their_names(store: Store) -> None:
    for count, name in enumerate(ODD, 1):
        await store.append([message(name)] * count)
    assert await store.heads(ODD) == {name: count for count, name in enumerate(ODD, 1)}
    assert await store.heads(["o", "b", "%", "_", "X" * 255, "x" * 254]) == {}


async def test_of_many_subjects_all_are_found(store: Store) -> None:
    names = [f"many.{n}" for n in range(3_000)]
    heard = names[::5]
    await store.append([message(name, expiration_s=0) for name in heard])
    await store.append([message(heard[-1])])
    assert await store.heads(names) == dict.fromkeys(heard, 1) | {heard[-1]: 2}


async def test_what_was_acknowledged_to_another_process_is_seen(durable_backend: Backend, durable_url: str) -> None:
    async with open_peers(durable_url, 1) as (peer,), open_store(durable_url) as store:
        await peer.tell("append", "orders", 30, 2)
        for n in range(1, 31):
            await peer.hear()
            heads = await store.heads(["orders", "unheard"])
            assert heads.keys() == {"orders"}
            assert 2 * n <= heads["orders"] <= 60


async def test_a_head_is_that_of_heads(store: Store) -> None:
    assert ids(await store.append([message("a"), message("b", expiration_s=0), message("a")])) == [1, 1, 2]
    for name in ("a", "b"):
        assert await store.heads([name]) == {name: (await store.head(name)).last_id}


@pytest.mark.parametrize("count", [500, 501, 1_001, 5_001])
async def test_pieces_of_a_long_call_are_one_answer(store: Store, count: int) -> None:
    """The pieces of each store are of another size: SQLite's of 500, Cassandra's of 1,000, PostgreSQL's of 5,000."""
    await store.append([message("first"), message("last")])
    between = [f"unheard.{n}" for n in range(count - 1)]
    assert await store.heads(["first", *between, "last"]) == {"first": 1, "last": 1}
