"""The memory store: what only it promises."""

import tracemalloc

import pytest

from persistence import CannotOpen, NewMessage, Store, open_store


class Clock:
    now_us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


async def sweep_all(store: Store) -> int:
    removed, more = await store.sweep()
    while more:
        now_removed, more = await store.sweep()
        removed += now_removed
    return removed


async def test_memory_is_given_back_when_messages_have_expired() -> None:
    clock = Clock()
    async with open_store("memory:", clock=clock) as store:
        await store.append([NewMessage("orders", b"x", None)])
        tracemalloc.start()
        try:
            for n in range(100):
                await store.append([NewMessage("orders", b"%100d" % n, 60) for n in range(200)])
                clock.now_us += 1
            full, _ = tracemalloc.get_traced_memory()
            clock.now_us += 60_000_000
            assert await sweep_all(store) == 20_000
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert full > 20_000 * 200
    assert left < full / 20  # the interpreter keeps some tuples for later


async def test_fire_and_forget_takes_no_memory() -> None:
    async with open_store("memory:") as store:
        batch = [NewMessage("orders", b"x" * 100, 0)] * 1000
        await store.append(batch)
        tracemalloc.start()
        try:
            for _ in range(20):
                await store.append(batch)
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert left < 50_000


async def test_what_it_promises_is_said() -> None:
    async with open_store("memory:") as store:
        assert not store.durability().durable
        assert store.durability().kind == "memory"


async def test_its_clock_is_this_machines() -> None:
    async with open_store("memory:") as store:
        before = await store.now()
        (outcome,) = await store.append([NewMessage("orders", b"x", 60)])
        assert before <= outcome.time_us <= await store.now()
        assert before > 1_700_000_000_000_000


@pytest.mark.parametrize("url", ["memory", "memory:x", "memory://", "MEMORY:"])
async def test_other_spellings_are_refused(url: str) -> None:
    with pytest.raises(CannotOpen, match="write memory:"):
        async with open_store(url):
            pass
