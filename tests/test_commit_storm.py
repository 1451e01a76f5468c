"""Every publish is completed exactly once, and truly, whatever is withdrawn, fails, hangs or stops."""

import random
from dataclasses import dataclass, field

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trial_store import POISON, TrialStore, message

import persistence
from persistence import Appended, NewMessage, Outcome
from trio_broker.commit import Committer
from trio_broker.config import Config
from trio_broker.errors import (
    BrokerClosed,
    Draining,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.runs import Group
from trio_broker.storage import Availability

NOTHING_APPENDED = (
    BrokerClosed,
    Draining,
    NotApplied,
    Overloaded,
    Rejected,
    StorageFull,
    StorageUnavailable,
)


@dataclass
class Storm:
    """Publishers of a few subjects with random bad luck, all decided by one seed."""

    dice: random.Random
    delivered: list[tuple[NewMessage, Appended]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = StormyStore(self.dice)
        self.committer = Committer(
            self.store,
            Config(queue_messages=20, flush_messages=7, commit_timeout=1),
            self.delivered.extend,
            Availability(),
        )

    async def run(self, end: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.committer.run)
            async with trio.open_nursery() as publishers:
                for source in range(4):
                    publishers.start_soon(self.publish, source)
                if end != "late":
                    for _ in range(self.dice.randrange(30)):
                        await trio.lowlevel.checkpoint()
                    self.end(end, nursery)
            self.end("close", nursery)
        for group in self.groups:
            await group.settled()
            assert await group.settled() == []

    def end(self, how: str, nursery: trio.Nursery) -> None:
        if how == "cancel":
            nursery.cancel_scope.cancel()
        elif how == "drain":
            nursery.start_soon(self.committer.drain)
        else:
            self.committer.close()

    async def publish(self, source: int) -> None:
        for number in range(self.dice.randrange(12)):
            body = POISON if self.dice.random() < 0.05 else b"%d.%d" % (source, number)
            subjects = self.dice.choices("abc", k=self.dice.randrange(1, 6))
            group = self.committer.hand_over([message(subject, body) for subject in subjects], source)
            self.groups.append(group)
            with trio.move_on_after(self.dice.choice([0, 0.1, 5])):
                while await group.settled():
                    pass
            for pending in group.pendings:
                if pending.outcome is None and self.dice.random() < 0.7:
                    assert pending.withdraw() == (isinstance(pending.outcome, NotApplied))

    def check(self) -> None:
        pendings = [pending for group in self.groups for pending in group.pendings]
        assert all(pending.outcome is not None for pending in pendings)
        applied = {id(new) for new in self.store.applied}
        for pending in pendings:
            if isinstance(pending.outcome, Appended):
                assert id(pending.message) in applied
            elif not isinstance(pending.outcome, OutcomeUnknown):
                assert isinstance(pending.outcome, NOTHING_APPENDED)
                assert id(pending.message) not in applied
        assert len(self.store.applied) == len(applied)  # nothing twice
        assert (self.committer.queued_messages, self.committer.queued_bytes) == (0, 0)
        for subject in "abc":
            ids = [appended.id for new, appended in self.delivered if new.subject == subject]
            assert ids == sorted(set(ids))
            told = [
                pending.outcome.id
                for pending in pendings
                if isinstance(pending.outcome, Appended) and pending.message.subject == subject
            ]
            assert set(told) <= set(ids)
            assert len(told) == len(set(told))


class StormyStore(TrialStore):
    """Slow, forgetful, full, away: each append is another surprise."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(lanes=dice.choice([1, 2]))
        self.dice = dice

    async def append(self, batch: list[NewMessage]) -> list[Outcome]:  # type: ignore[override]
        with trio.CancelScope(shield=True):
            await trio.sleep(self.dice.choice([0, 0, 0, 0.05, 3]))
        match self.dice.randrange(12):
            case 0:
                raise persistence.StoreUnavailable("away")
            case 1:
                raise persistence.StoreFull("full")
            case 2:
                await super().append(batch)
                raise persistence.OutcomeUnknown("lost after the commit")
            case 3:
                raise persistence.OutcomeUnknown("lost before the commit")
            case _:
                return await super().append(batch)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["late", "close", "cancel", "drain"]))
def test_every_publish_is_completed_once_and_truly(seed: int, end: str) -> None:
    async def main() -> None:
        storm = Storm(random.Random(seed))
        await storm.run(end)
        storm.check()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
