"""A store in memory that fails as stores do, and that knows the truth.

What it appended is in `history`, and its answers to questions about it are worked out from there a second time: the
broker is measured by that. A fault is one of `Faults`; each scenario has some of them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from persistence import (
    Appended,
    BadContent,
    ExpiredId,
    Failed,
    Head,
    InvalidId,
    Key,
    Limits,
    NewMessage,
    Outcome,
    OutcomeUnknown,
    Page,
    Record,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Swept,
)
from persistence.guards import key_kept_s
from persistence.memory import MemoryStore

from .world import World, ticks

START_US = 1_700_000_000_000_000
POISON = b"poison"


@dataclass(slots=True)
class Fact:
    """A message that the store appended."""

    id: int
    message: NewMessage
    time_us: int
    ours: bool
    """This broker handed it over, and not another process."""
    number: int
    """That of the event."""
    latest_us: int
    """The latest time that the store had gone by."""
    heard: int | None = None
    """The number of the event when this broker was told, and so its subscribers were; None: never."""
    is_swept: bool = False
    """It is gone, also if the clock is set back."""

    @property
    def expires_us(self) -> int | None:
        expiration_s = self.message.expiration_s
        return None if expiration_s is None else self.time_us + expiration_s * 1_000_000

    def is_kept(self, now_us: int) -> bool:
        if self.message.expiration_s == 0 or self.is_swept:
            return False
        return self.expires_us is None or now_us < self.expires_us

    def is_key_kept(self, now_us: int) -> bool:
        kept_s = key_kept_s(self.message.expiration_s)
        return kept_s is None or now_us < self.time_us + kept_s * 1_000_000


@dataclass(slots=True)
class Faults:
    """How likely each is, per operation; 0.0: it never happens."""

    slow: float = 0.0
    unavailable: float = 0.0
    full: float = 0.0
    lost_reply: float = 0.0
    half: float = 0.0
    bug: float = 0.0
    read_fails: float = 0.0
    foreign: float = 0.0
    slow_s: float = 0.5

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        names = ("slow", "unavailable", "full", "lost_reply", "half", "bug", "read_fails", "foreign")
        calm = random.random() < 0.25
        rates = {name: 0.0 if calm or random.random() < 0.6 else random.choice([0.05, 0.2, 0.4]) for name in names}
        return cls(**rates, slow_s=random.choice([0.02, 0.5, 3.0]))


@dataclass(slots=True)
class Asked:
    """What the store told one task, worked out from its history."""

    heads: list[Head] = field(default_factory=list)
    """Since it began to listen."""
    found: list[object] = field(default_factory=list)


class SimulatedStore(MemoryStore):
    """Every operation takes some ticks, or time; then it does what the dice say."""

    def __init__(self, world: World, faults: Faults, *, lanes: int, apart: bool, leaves_subjects: bool = False) -> None:
        """``apart``: it appends each subject by itself, and may fail for some."""
        super().__init__(self._time_us)
        self._world = world
        self._random = world.random("store")
        self._lanes = lanes
        self._apart = apart
        self.leaves_subjects = leaves_subjects
        self._shared = faults.foreign > 0.0
        self.faults = faults
        self.step_us = 0
        """By how much its clock is ahead."""
        self.latest_us = START_US
        """The latest time that it has gone by."""
        self.down_until = 0.0
        self.history: dict[str, list[Fact]] = {}
        self._sweepable: list[Fact] = []
        self.given: dict[bytes, int] = {}
        """How often the store was given a body."""
        self.asked: dict[str, Asked] = {}
        """By the name of the task."""
        self.bugs = 0
        self.on_commit: list[Callable[[dict[str, int]], None]] = []
        """Each is told of the last ids of what was appended, whoever asked for it."""
        self._foreign = 0

    def heal(self) -> None:
        """Do all that is asked from now on, soon."""
        self.faults = Faults()
        self.down_until = 0.0

    def limits(self) -> Limits:
        return super().limits()._replace(lanes=self._lanes, shared=self._shared, leaves_subjects=self.leaves_subjects)

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        self.note_given(batch)
        self._world.note("store", "append", len(batch))
        with trio.CancelScope(shield=True):  # as in a thread, deaf to cancellation
            return await self._append(batch)

    def note_given(self, batch: Sequence[NewMessage]) -> None:
        """Note that whoever published these cannot take them back any more."""
        for message in batch:
            self.given[message.body] = self.given.get(message.body, 0) + 1

    async def _append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        await self._take_time()
        if self._happens("foreign"):
            await self._append_foreign(batch[-1].subject)
        if (error := self._refusal()) is not None:
            self._world.note("store", "refuses", type(error).__name__)
            raise error
        if self._apart and (self._happens("half") or any(POISON in message.body for message in batch)):
            outcomes = await self._append_apart(batch)
        else:
            if any(POISON in message.body for message in batch):
                raise BadContent("poison")
            outcomes = await self._commit(batch)
        await self._take_time()  # it is in the log, and the broker does not know
        if self._happens("lost_reply"):
            self._world.doubtful.update(message.body for message in batch)
            raise OutcomeUnknown("the reply was lost")
        if self._happens("bug"):
            self.bugs += 1
            self._world.doubtful.update(message.body for message in batch)
            raise ZeroDivisionError("a bug of the store")
        self._hear(batch, outcomes)
        return outcomes

    async def _append_apart(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(batch)
        for subject in dict.fromkeys(message.subject for message in batch):
            places = [place for place, message in enumerate(batch) if message.subject == subject]
            mine = [batch[place] for place in places]
            fate = self._random.random()
            if any(POISON in message.body for message in mine):
                results: list[Outcome] = [Failed(BadContent("poison"))] * len(mine)
            elif fate < 0.5:
                results = await self._commit(mine)
            else:
                if fate < 0.7:
                    await self._commit(mine)
                error: StoreError = StoreUnavailable("down") if fate > 0.8 else OutcomeUnknown("lost")
                if fate <= 0.8:
                    self._world.doubtful.update(message.body for message in mine)
                results = [Failed(error)] * len(mine)
                self._world.count("fault: half failed")
                self._world.note("store", "half failed", subject, type(error).__name__)
            for place, result in zip(places, results, strict=True):
                outcomes[place] = result
        return [outcome for outcome in outcomes if outcome is not None]

    async def _append_foreign(self, subject: str) -> None:
        """Let another process append."""
        batch = []
        for _ in range(self._random.randint(1, 3)):
            self._foreign += 1
            body = f"foreign {self._foreign}".encode()
            batch.append(NewMessage(subject, body, self._random.choice([0, 1, None, None])))
        await self._commit(batch, ours=False)

    async def _commit(self, batch: Sequence[NewMessage], *, ours: bool = True) -> list[Outcome]:
        outcomes = await super().append(batch)
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Appended):
                number = self._world.note("store", "appended", message.subject, outcome.id, message.body[:16])
                fact = Fact(outcome.id, message, outcome.time_us, ours, number, self.latest_us)
                self.history.setdefault(message.subject, []).append(fact)
                if message.expiration_s is not None:
                    self._sweepable.append(fact)
        last_ids = {message.subject: self.last_id(message.subject) for message in batch}
        for tell in self.on_commit:
            tell(last_ids)
        return outcomes

    def _hear(self, batch: Sequence[NewMessage], outcomes: Sequence[Outcome]) -> None:
        """Note what the broker, and with it its subscribers, is told in this stretch."""
        number = self._world.note("store", "answers", len(batch))
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Appended):
                self.history[message.subject][outcome.id - 1].heard = number

    def unhear(self, batch: Sequence[NewMessage], outcomes: Sequence[Outcome]) -> None:
        """Note that what `append` just returned never reached the broker."""
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Appended):
                self.history[message.subject][outcome.id - 1].heard = None

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        await self._before_read()
        max_messages = self._random.randint(1, max_messages)
        page = await super().read(subject, after_id, max_messages=max_messages, max_bytes=max_bytes)
        self._world.note("store", "page", subject, after_id, page.scanned_to, page.last_id)
        await self._take_time()  # more may be appended meanwhile
        return page

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        await self._before_read()
        answers = await super().get(keys)
        now_us = self._time_us()
        self._asked().found = [self._truth(key, now_us) for key in keys]
        await self._take_time()
        return answers

    async def head(self, subject: str) -> Head:
        await self._before_read()
        head = await super().head(subject)
        now_us = self._time_us()
        facts = self.history.get(subject, [])
        first_id = next((fact.id for fact in facts if fact.is_kept(now_us)), len(facts) + 1)
        self._asked().heads.append(Head(first_id, len(facts)))
        await self._take_time()
        return head

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        await self._before_read()
        heads = await super().heads(subjects)
        await self._take_time()
        return heads

    async def sweep(self) -> Swept:
        await self._before_read()
        swept = await super().sweep()
        now_us = self._time_us()
        for fact in self._sweepable:
            fact.is_swept = not fact.is_kept(now_us)
        self._sweepable = [fact for fact in self._sweepable if not fact.is_swept]
        return swept

    async def now(self) -> int:
        await self._before_read()
        return await super().now()

    async def reach_register(self) -> None:
        """Take the time, or fail, as what is asked of a register does."""
        await self._before_read()

    def fact(self, subject: str, id_: int) -> Fact | None:
        """Return what has an id, if anything has."""
        facts = self.history.get(subject, [])
        return facts[id_ - 1] if 1 <= id_ <= len(facts) else None

    def last_id(self, subject: str) -> int:
        return len(self.history.get(subject, []))

    def last_heard_id(self, subject: str) -> int:
        """Return the last id of which the broker was told."""
        return max((fact.id for fact in self.history.get(subject, []) if fact.heard is not None), default=0)

    def _truth(self, key: Key, now_us: int) -> object:
        fact = self.fact(key.subject, key.id)
        if fact is None:
            return "InvalidId"
        return fact.message.body if fact.is_kept(now_us) else "ExpiredId"

    def _asked(self) -> Asked:
        return self.asked.setdefault(trio.lowlevel.current_task().name, Asked())

    def _time_us(self) -> int:
        now_us = START_US + round(trio.current_time() * 1_000_000) + self.step_us
        self.latest_us = max(self.latest_us, now_us)
        return now_us

    async def _before_read(self) -> None:
        await self._take_time()
        if trio.current_time() < self.down_until or self._happens("read_fails"):
            raise StoreUnavailable("down")

    async def _take_time(self) -> None:
        if self._happens("slow"):
            await trio.sleep(self._random.random() * self.faults.slow_s)
        else:
            await ticks(self._random.randint(0, 3))

    def _refusal(self) -> StoreError | None:
        """Return why an append is refused, if so: nothing is appended then."""
        if trio.current_time() < self.down_until:
            self._world.count("fault: down")
            return StoreUnavailable("down")
        if self._happens("unavailable"):
            return StoreUnavailable("not now")
        if self._happens("full"):
            return StoreFull("full")
        return None

    def _happens(self, fault: str) -> bool:
        rate = getattr(self.faults, fault)
        happens = rate > 0.0 and self._random.random() < rate
        if happens:
            self._world.count(f"fault: {fault.replace('_', ' ')}")
        return happens
