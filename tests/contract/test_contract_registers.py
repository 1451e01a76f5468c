"""Registers: compare and set, versions that are never used again."""

import trio
from contract_kit import Clock, open_peers

from persistence import Register, Store, open_store


async def test_a_register_is_made_only_where_there_is_none(store: Store) -> None:
    assert await store.load("leader") is None
    version = await store.compare_and_set("leader", b"a", version=0)
    assert version is not None
    assert version > 0
    assert await store.load("leader") == Register(b"a", version)
    assert await store.compare_and_set("leader", b"b", version=0) is None
    assert await store.load("leader") == Register(b"a", version)


async def test_a_register_is_set_only_at_the_version_that_was_seen(store: Store) -> None:
    first = await store.compare_and_set("leader", b"a", version=0)
    assert first is not None
    second = await store.compare_and_set("leader", b"\0\xff", version=first)
    assert second is not None
    assert second > first
    assert await store.compare_and_set("leader", b"c", version=first) is None
    assert await store.compare_and_set("leader", b"c", version=second + 1) is None
    assert await store.load("leader") == Register(b"\0\xff", second)


async def test_a_register_is_deleted_only_at_the_version_that_was_seen(store: Store) -> None:
    version = await store.compare_and_set("leader", b"a", version=0)
    assert version is not None
    assert not await store.delete("leader", version=version + 1)
    assert not await store.delete("unheard", version=0)
    assert not await store.delete("leader", version=0)
    assert await store.delete("leader", version=version)
    assert await store.load("leader") is None
    assert not await store.delete("leader", version=version)


async def test_versions_are_never_used_again(store: Store) -> None:
    seen: set[int] = set()
    for value in (b"1", b"2", b"3"):
        for name in ("a", "b"):
            version = await store.compare_and_set(name, value, version=0)
            assert version is not None
            assert version > max(seen, default=0)
            seen.add(version)
            assert await store.delete(name, version=version)
    assert await store.compare_and_set("a", b"", version=max(seen)) is None


async def test_registers_are_listed_by_prefix_in_order(store: Store) -> None:
    for name in ("replica/b", "replica/a", "replica", "replicas/a", "z", "réplica", "replica/é", "replica%"):
        assert await store.compare_and_set(name, name.encode(), version=0)
    assert [name for name, _ in await store.list("replica/")] == ["replica/a", "replica/b", "replica/é"]
    assert [name for name, _ in await store.list("replica%")] == ["replica%"]
    assert [register.value for _, register in await store.list("z")] == [b"z"]
    assert await store.list("unheard") == []
    assert [name for name, _ in await store.list("")] == sorted(name for name, _ in await store.list(""))
    assert len(await store.list("")) == 8


async def test_of_many_tasks_one_wins_each_version(store: Store) -> None:
    wins: list[int] = []

    async def add_one(times: int) -> None:
        done = 0
        while done < times:
            register = await store.load("counter")
            value, version = (int(register.value), register.version) if register else (0, 0)
            new_version = await store.compare_and_set("counter", b"%d" % (value + 1), version=version)
            if new_version is not None:
                wins.append(new_version)
                done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(add_one, 5)
    register = await store.load("counter")
    assert register == Register(b"25", max(wins))
    assert len(set(wins)) == 25


async def test_of_two_processes_one_wins_each_version(durable_url: str, clock: Clock) -> None:
    async with open_peers(durable_url, 2) as peers:
        for peer in peers:
            await peer.tell("count", "counter", 25)
        versions = [await peer.hear() for peer in peers]
    assert len({*versions[0], *versions[1]}) == 50
    async with open_store(durable_url, clock=clock) as store:
        register = await store.load("counter")
    assert register is not None
    assert register.value == b"50"


async def test_registers_and_their_versions_outlive_a_restart(durable_url: str, clock: Clock) -> None:
    async with open_store(durable_url, clock=clock) as store:
        first = await store.compare_and_set("kept", b"1", version=0)
        gone = await store.compare_and_set("gone", b"2", version=0)
        assert first is not None
        assert gone is not None
        await store.delete("gone", version=gone)
    async with open_store(durable_url, clock=clock) as store:
        assert await store.list("") == [("kept", Register(b"1", first))]
        again = await store.compare_and_set("gone", b"3", version=0)
        assert again is not None
        assert again > gone
