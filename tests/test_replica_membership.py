"""Who is taken for a replica, by registers of the store or by a list of addresses."""

import json
import math
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing
from postgres_kit import until
from replicas_kit import replica, until_linked

from persistence import Store, StoreUnavailable, open_store
from trio_broker.replicas import membership as module
from trio_broker.replicas.membership import DEAD_S, FORGOTTEN_S, PREFIX, SECRET, Member, Membership, common_secret
from trio_broker.rpc.listeners import listen_tcp

ME = Member("me", "127.0.0.1:1", "machine", "1")


@pytest.fixture
async def store() -> AsyncGenerator[Store]:
    async with open_store("memory:") as store:
        yield store


class Told:
    """Counts changes."""

    changes = 0

    def __call__(self) -> None:
        self.changes += 1


def members(store: Store, told: Told | None = None) -> Membership:
    return Membership(store, ME, told or Told())


async def register(store: Store, id_: str, *, age_s: float = 0, address: str = "127.0.0.1:2") -> None:
    """Write another one's register, of so long ago."""
    beat_us = await store.now() - int(age_s * 1e6)
    member = Member(id_, address, "machine", "1", beat_us)
    assert await store.compare_and_set(PREFIX + id_, member.write(), version=0)


async def test_one_is_dead_after_some_seconds_and_forgotten_after_more(store: Store) -> None:
    await register(store, "alive", age_s=DEAD_S - 1)
    await register(store, "dead", age_s=DEAD_S + 1)
    await register(store, "forgotten", age_s=FORGOTTEN_S + 1)
    await register(store, "of-the-future", age_s=-1e6)
    for id_, beat_us in (("of-no-time", 10**400), ("of-no-time-either", -(10**400))):  # beyond what a float holds
        member = Member(id_, "127.0.0.1:2", "machine", "1", beat_us)
        await store.compare_and_set(PREFIX + id_, member.write(), version=0)
    ours = members(store)
    await ours._beat()
    assert list(ours.others) == ["alive"]
    assert [name for name, _ in await store.list(PREFIX)] == [PREFIX + id_ for id_ in ("alive", "dead", "me")]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"address": "127.0.0.1:1"}',
        b"[" * 100_000,
        json.dumps(ME._asdict() | {"address": "nowhere"}).encode(),
        json.dumps(ME._asdict() | {"address": None}).encode(),
        json.dumps(ME._asdict() | {"address": "unix:/socket"}).encode(),
        json.dumps(ME._asdict() | {"beat_us": math.inf}).encode(),
        json.dumps(ME._asdict() | {"beat_us": math.nan}).encode(),
        json.dumps(ME._asdict() | {"beat_us": [1]}).encode(),
    ],
    ids=lambda value: value[:40].decode(errors="replace"),
)
async def test_a_register_that_cannot_be_read_is_left_alone(
    store: Store, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(module.log, "warning", lambda event, **_: warnings.append(event))
    await store.compare_and_set(PREFIX + "other", value, version=0)
    await register(store, "third")
    ours = members(store)
    for _ in range(3):
        await ours._beat()
    assert list(ours.others) == ["third"]
    assert warnings == ["replica_unreadable"]  # once
    assert await store.load(PREFIX + "other")


async def test_a_register_that_others_deleted_is_written_again(store: Store) -> None:
    ours = members(store)
    await ours._beat()
    found = await store.load(PREFIX + "me")
    assert found is not None
    await store.delete(PREFIX + "me", version=found.version)
    await ours._beat()
    assert await store.load(PREFIX + "me")


async def test_who_has_left_does_not_come_back(store: Store) -> None:
    ours = members(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.keep)
        with trio.fail_after(10):
            while not await store.load(PREFIX + "me"):
                await trio.lowlevel.checkpoint()
            ours.look_now()
            await ours.leave()
            ours.look_now()
            while nursery.child_tasks:  # nothing is left to keep
                await trio.lowlevel.checkpoint()
    assert await store.list(PREFIX) == []


async def test_while_the_store_is_away_everybody_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    ours = members(store, told)
    await register(store, "other")
    await ours._beat()
    assert told.changes == 1

    async def away() -> int:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("away")

    monkeypatch.setattr(module, "BEAT_S", 0.001)
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(store, "now", away)
            nursery.start_soon(ours.keep)
            await trio.testing.wait_all_tasks_blocked()
            assert list(ours.others) == ["other"]
        nursery.cancel_scope.cancel()
    assert told.changes == 1


async def test_two_that_make_the_secret_at_once_agree(store: Store) -> None:
    found: list[bytes] = []

    async def learn() -> None:
        found.append(await common_secret(store))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(learn)
    kept = await store.load(SECRET)
    assert kept is not None
    assert set(found) == {kept.value}


async def test_two_with_the_same_address_are_not_taken_for_each_other(postgres_url: str) -> None:
    async with replica(postgres_url) as (_, first), replica(postgres_url, advertise=first.address) as (_, second):
        await until(lambda: second.heard == 1 and len(first.links) == 1)
        assert not first.is_linked()  # it calls itself, is told so, and goes on without the other
        assert first.others[second.id].address == first.address


async def test_another_one_at_the_same_port_is_another_one(postgres_url: str) -> None:
    async with replica(postgres_url) as (_, ours):
        async with replica(postgres_url) as (_, theirs):
            await until_linked([ours, theirs], 2)
            port = int(theirs.address.rpartition(":")[2])
            await trio.lowlevel.checkpoint()
        async with replica(postgres_url, listener=listen_tcp("127.0.0.1", port)) as (_, theirs):
            await until_linked([ours, theirs], 2)
            assert list(ours.links) == [theirs.id]


async def test_loopback_of_another_machine_is_not_followed(postgres_url: str) -> None:
    async with open_store(postgres_url) as store, replica(postgres_url) as (_, ours):
        beat_us = await store.now()
        away = Member("away", "127.0.0.1:9", "another machine", "1", beat_us)
        await store.compare_and_set(PREFIX + "away", away.write(), version=0)
        await until(lambda: "away" in ours.others)
        assert not ours.links
        assert (ours.heard, ours.known, ours.is_linked()) == (0, 1, False)


async def test_given_peers_are_followed_instead_of_registers_and_oneself_is_left_out(postgres_url: str) -> None:
    listener = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    peers = (f"127.0.0.1:{port}", f"localhost:{port}")
    async with (
        replica(postgres_url, peers=peers, listener=listener) as (ours, oneself),
        trio.open_nursery() as nursery,
    ):
        await until(lambda: oneself.known == 0 and not oneself.links)
        assert oneself.is_linked()
        async with replica(postgres_url, peers=(oneself.address,)) as (theirs, other):
            await until(other.is_linked)
            async with theirs.subscribe("a") as messages:
                with trio.fail_after(10):
                    assert await ours.publish("a", b"x", None) == 1
                    assert (await messages.receive()).id == 1
        nursery.cancel_scope.cancel()
