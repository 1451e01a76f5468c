"""The store as one broker of several sees it: sometimes out of reach, with hints that are late, wrong, or lost."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from persistence import Appended, Duplicate, NewMessage, Outcome, OutcomeUnknown, StoreUnavailable, Wakeups
from persistence.facade import Limits

from .store import SimulatedStore
from .world import World

_READS = frozenset({"read", "get", "head", "heads", "id_before", "now", "sweep"})
_REGISTERS = frozenset({"load", "list", "compare_and_set", "delete"})


class StoreView:
    """A broker's way to the store that it shares with others."""

    def __init__(self, world: World, store: SimulatedStore, who: str, nursery: trio.Nursery) -> None:
        self.cut_until = 0.0
        """Until then the store is out of this broker's reach."""
        self.crashed = False
        """Nobody hears of what comes back."""
        random = world.random(f"{who} wakeups")
        self.hints = SimulatedWakeups(connected=random.choice([True, True, False, None]))
        self.hint_loss = random.choice([0.0, 0.0, 0.3, 1.0])
        self._hint_s = random.choice([0.0005, 0.005, 0.3])
        self._random = random
        self._world = world
        self._store = store
        self._who = who
        self._nursery = nursery
        store.on_commit.append(self._hint)

    def hint_delay_max(self, seconds: float) -> None:
        self._hint_s = seconds

    def limits(self) -> Limits:
        return self._store.limits()._replace(shared=True)

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        self._store.note_given(batch)
        doubtful = self._world.unanswered.intersection(message.body for message in batch)
        self._world.doubtful |= doubtful  # until it is known
        await self._reach()
        outcomes = await self._store.append(batch)
        self._world.doubtful -= {
            message.body
            for message, outcome in zip(batch, outcomes, strict=True)
            if message.body in doubtful and isinstance(outcome, Appended | Duplicate)
        }
        if self.crashed:
            self._store.unhear(batch, outcomes)
            await trio.sleep_forever()  # until what is left of the broker is cancelled
        if self._is_cut():
            self._store.unhear(batch, outcomes)
            self._world.count("partition: reply lost")
            self._world.doubtful.update(message.body for message in batch)
            raise OutcomeUnknown("cut off")
        return outcomes

    @asynccontextmanager
    async def wakeups(self, interest: Callable[[], Collection[str]]) -> AsyncGenerator[Wakeups]:
        await trio.lowlevel.checkpoint()
        yield self.hints

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in _READS and name not in _REGISTERS:
            return found

        async def reach_and_ask(*args: object, **options: object) -> object:
            await self._reach()
            if name in _REGISTERS:
                await self._store.reach_register()
            answer: Awaitable[object] = found(*args, **options)
            result = await answer
            if self._is_cut():
                raise StoreUnavailable("cut off")
            return result

        return reach_and_ask

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._is_cut():
            self._world.count("partition: store")
            raise StoreUnavailable("cut off")

    def _is_cut(self) -> bool:
        return trio.current_time() < self.cut_until

    def _hint(self, changed: Mapping[str, int]) -> None:
        """Let this broker hear of a commit, as the dice say."""
        fate = self._random.random()
        delay_s = self._random.random() * self._hint_s
        if not self.hints.connected or self._is_cut() or self._random.random() < self.hint_loss:
            self._world.count("hint lost")
            return
        if fate < 0.1:
            changed = {}
        elif fate < 0.2:
            changed = dict.fromkeys(changed, 0)
        self._world.count("hint of anything" if not changed else "hint")
        self._nursery.start_soon(self._hint_later, changed, delay_s)

    async def _hint_later(self, changed: Mapping[str, int], delay_s: float) -> None:
        await trio.sleep(delay_s)
        self.hints.put(changed)


class SimulatedWakeups(Wakeups):
    def __init__(self, *, connected: bool | None) -> None:
        self.is_connected = connected
        self._waiting: deque[Mapping[str, int]] = deque()
        self._something = trio.lowlevel.ParkingLot()

    @property
    def connected(self) -> bool | None:
        return self.is_connected

    def put(self, changed: Mapping[str, int]) -> None:
        self._waiting.append(changed)
        self._something.unpark_all()

    async def __anext__(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._something.park()
        return self._waiting.popleft()
