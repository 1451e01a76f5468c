"""Hearing of what others appended, by polling the subjects of interest; and the nodes' clock."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from uuid import UUID

import pytest
import trio
from blackhole import Blackhole
from cassandra_keyspaces import Keyspaces
from cassandra_kit import append, opened
from postgres_kit import message

from persistence import Failed, Store, open_store
from persistence.cassandra import clock as clock_module
from persistence.cassandra import writing
from persistence.cassandra.clock import Clock
from persistence.cassandra.store import CassandraStore


@pytest.fixture
async def other(cassandra_url: str) -> AsyncGenerator[CassandraStore]:
    """Another broker's store."""
    async with opened(cassandra_url) as store:
        yield store


def opened_to_poll(url: str, *, commit_timeout_s: float = 10.0) -> AbstractAsyncContextManager[Store]:
    return open_store(url, commit_timeout_s=commit_timeout_s, poll_interval_s=0.01)


async def test_what_another_broker_appends_is_heard_of(
    cassandra_url: str, other: CassandraStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MESSAGES_MAX", 3)  # also from bucket to bucket
    async with opened_to_poll(cassandra_url) as store, store.wakeups(lambda: ["orders", "unheard"]) as hints:
        assert isinstance(store, CassandraStore)
        with trio.fail_after(20):
            assert await anext(hints) == {"orders": 1}  # seen for the first time
            for last_id in range(2, 10):
                await other.append([message()])
                assert await anext(hints) == {"orders": last_id}
            await other.append([message("unheard", expiration_s=0)])
            assert await anext(hints) == {"unheard": 1}
        assert hints.connected


async def test_what_nobody_is_interested_in_is_not_asked_for(cassandra_url: str, other: CassandraStore) -> None:
    interest = ["quiet"]
    async with opened_to_poll(cassandra_url) as store, store.wakeups(lambda: interest) as hints:
        await other.append([message("loud"), message("orders")])
        with trio.move_on_after(0.5) as waiting:
            await anext(hints)
        assert waiting.cancelled_caught
        interest.append("loud")
        with trio.fail_after(20):
            assert await anext(hints) == {"loud": 1}


async def test_nodes_that_are_away_are_told_and_heard_of_again(cassandra: Keyspaces, cassandra_url: str) -> None:
    with Blackhole.before(cassandra.url) as hole:
        url = hole.through(cassandra_url)
        async with opened_to_poll(url, commit_timeout_s=1) as store, store.wakeups(lambda: ["orders"]) as hints:
            with trio.fail_after(20):
                await store.append([message()])
                assert await anext(hints) == {"orders": 1}
                hole.hold()
                assert await anext(hints) == {}
                assert not hints.connected
                hole.release()
                while isinstance((await append(store, message()))[0], Failed):
                    await trio.lowlevel.checkpoint()
                while (await anext(hints)).get("orders", 0) < 2:
                    pass
                assert hints.connected


TICK_US = clock_module.NODE_TICK_US


class Node:
    """A node whose clock shows what the test says, and the machine of the broker likewise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time_us = 1_700_000_000_000_000
        self.monotonic_s = 1000.0
        monkeypatch.setattr(clock_module.time, "monotonic_ns", lambda: int(self.monotonic_s * 1e9))
        monkeypatch.setattr(clock_module.time, "monotonic", lambda: self.monotonic_s)

    def ask(self, clock: Clock, *, there_s: float = 0.0, back_s: float = 0.0) -> int:
        steps = clock.ask()
        next(steps)
        self.monotonic_s += there_s
        ticks = (self.time_us + 12_219_292_800_000_000) * 10
        now = UUID(fields=(ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFF, ticks >> 48 | 0x1000, 0x80, 0, 0))
        self.monotonic_s += back_s
        with pytest.raises(StopIteration) as end:
            steps.send([{"now": now}])
        told: int = end.value.value
        return told


def test_the_clock_is_the_nodes_and_counts_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    node, clock = Node(monkeypatch), Clock(None)
    assert node.ask(clock) == node.time_us + TICK_US // 2
    node.monotonic_s += 1.5
    assert clock.now_us() == node.time_us + 1_500_000 + TICK_US // 2


def test_the_time_of_an_answer_is_taken_for_that_of_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    node, clock = Node(monkeypatch), Clock(None)
    assert node.ask(clock, there_s=0.1, back_s=0.3) == node.time_us + 200_000 + TICK_US // 2


def test_the_clock_is_adjusted_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    node, clock = Node(monkeypatch), Clock(None)
    node.ask(clock)
    node.monotonic_s += 59
    assert node.ask(clock) == node.time_us + 59_000_000 + TICK_US // 2  # the node's clock stood still
    node.monotonic_s += 1
    assert node.ask(clock) == node.time_us + TICK_US


def test_a_slow_answer_that_agrees_with_the_clock_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node, clock = Node(monkeypatch), Clock(None)
    node.ask(clock)
    for there_s, back_s in ((0.0, 0.8), (0.8, 0.0)):
        node.monotonic_s += 60
        node.time_us += 60_000_000 + int(there_s * 1e6)
        assert node.ask(clock, there_s=there_s, back_s=back_s) == node.time_us + int(back_s * 1e6) + TICK_US // 2
        node.time_us += int(back_s * 1e6)
