"""A memory store whose appends a test can hold, fail or lose; and messages to append."""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from persistence import NO_HEADERS, BadContent, Limits, NewMessage, Outcome
from persistence.memory import MemoryStore

START_US = 1_700_000_000_000_000
POISON = b"poison"


def message(subject: str = "a", body: bytes = b"", expiration_s: int | None = None) -> NewMessage:
    return NewMessage(subject, body, expiration_s, NO_HEADERS)


def messages(*bodies: bytes, subject: str = "a") -> list[NewMessage]:
    return [message(subject, body) for body in bodies]


class TrialStore(MemoryStore):
    """Appends are logged when they begin, wait while held, and then do what `plan` says, or simply append."""

    def __init__(self, *, lanes: int = 1) -> None:
        self.clock_us = START_US
        super().__init__(lambda: self.clock_us)
        self._lanes = lanes
        self._held: trio.Event | None = None
        self.appends: list[list[NewMessage]] = []
        self.plan: deque[Exception | Callable[[list[Outcome]], list[Outcome]]] = deque()
        """For each append to come: what it raises, or what becomes of its outcomes."""
        self.applied: list[NewMessage] = []

    def hold(self) -> None:
        """Let appends wait from now on: as in a thread, deaf to cancellation."""
        self._held = trio.Event()

    def release(self) -> None:
        assert self._held is not None
        self._held.set()
        self._held = None

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        self.appends.append(list(batch))
        if self._held is not None:
            with trio.CancelScope(shield=True):
                await self._held.wait()
        step = self.plan.popleft() if self.plan else None
        if isinstance(step, Exception):
            await trio.lowlevel.checkpoint()
            raise step
        if any(POISON in new.body for new in batch):
            await trio.lowlevel.checkpoint()
            raise BadContent("poison")
        with trio.CancelScope(shield=True):
            outcomes = await super().append(batch)
        self.applied += batch
        return step(outcomes) if step else outcomes

    def limits(self) -> Limits:
        return super().limits()._replace(lanes=self._lanes)

    def appended_bodies(self) -> list[list[bytes]]:
        """What each append was asked for."""
        return [[new.body for new in batch] for batch in self.appends]
