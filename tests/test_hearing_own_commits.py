"""A broker on a shared log may hear of its own commit before the store has answered: nothing is lost by it."""

from collections.abc import Collection, Sequence

import trio
from trio.testing import MockClock

from persistence import Limits, NewMessage, Outcome
from persistence.memory import MemoryStore
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.fanout import POLL


class SlowlyAnsweringStore(MemoryStore):
    """It appends at once, and answers when it may."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_700_000_000_000_000)
        self.may_answer = trio.Event()
        self.asked = trio.Event()

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        outcomes = await super().append(batch)
        await self.may_answer.wait()
        return outcomes

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        heads = await super().heads(subjects)
        if any(heads.values()):
            self.asked.set()
        return heads

    def limits(self) -> Limits:
        return super().limits()._replace(shared=True)


async def test_what_the_log_does_not_keep_comes_though_the_log_is_known_to_go_beyond_it(
    autojump_clock: MockClock,
) -> None:
    store = SlowlyAnsweringStore()
    async with (
        run_broker(store, Config()) as broker,
        broker.subscribe("a") as messages,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(broker.publish, "a", b"fire and forget")
        await store.asked.wait()
        await trio.sleep(1.0)
        store.may_answer.set()
        with trio.fail_after(5):
            assert (await messages.receive()).body == b"fire and forget"
        assert broker.fanout.learned[POLL] == 0


async def test_nothing_is_noted_of_subjects_that_nobody_here_listens_to(
    autojump_clock: MockClock,
) -> None:
    """They are as many as clients choose."""
    store = SlowlyAnsweringStore()
    store.may_answer.set()
    async with run_broker(store, Config()) as broker:
        async with broker.subscribe("a") as messages:
            await broker.publish("a", b"", None)
            await messages.receive()
        await broker.publish("a", b"", None)  # the cache keeps it
        broker.fanout.hear("b", 7, POLL)
        assert (broker.fanout.offered_id("a"), broker.fanout.offered_id("b")) == (0, 0)
