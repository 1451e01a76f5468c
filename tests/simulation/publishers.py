"""Those who publish: one by one, in batches, as a connection does, and in streams; cancelled anywhere."""

from collections.abc import Sequence

import trio

from persistence import NewMessage
from trio_broker.broker import Broker
from trio_broker.errors import BrokerError, NotApplied, OutcomeUnknown
from trio_broker.message import Draft
from trio_broker.publishing import Publishing, abort_others
from trio_broker.runs import Pending

from .checked_publishes import CANCELLED, Attempt, CheckedPublishes
from .store import POISON, SimulatedStore
from .world import World, cancel_perhaps, pause, ticks

RETRIES = 2


class Publisher:
    def __init__(
        self,
        world: World,
        store: SimulatedStore,
        checked: CheckedPublishes,
        broker: Broker,
        who: str,
        subjects: list[str],
    ) -> None:
        self.who = who
        self._world = world
        self._store = store
        self._checked = checked
        self._broker = broker
        self._subjects = subjects
        self._random = world.random(who)
        self._published = 0
        self._groups = 0
        self._keyed: list[Draft] = []

    async def run(self) -> None:
        random = self._random
        ways = [self._publish_one, self._publish_one, self._batch, self._batch_call, self._burst, self._stream]
        for _ in range(random.randint(2, 12)):
            await self._move()
            if self._broker.refusal() is not None and random.random() < 0.7:
                return
            await random.choice(ways)()
            await pause(random, 0.8)

    async def publish_end(self, subject: str, expiration: int | None = None) -> int:
        """Publish, what is kept for good if nothing else is said, and try until it is there; return its id."""
        while True:
            await self._move()
            self._published += 1
            draft = Draft(subject, f"{self.who}.{self._published}".encode(), expiration)
            attempt = self._begin(draft)
            await self._await_one(attempt)
            if attempt.id is not None:
                return attempt.id
            await trio.sleep(0.5)

    async def _move(self) -> None:
        """Go on at another broker, if there is one. A checkpoint only then."""

    def _drafts(self, most: int) -> list[Draft]:
        """Make up messages: new ones, and some with a key that were published before."""
        drafts = [self._draft() for _ in range(self._random.randint(1, most))]
        return list({draft.body: draft for draft in drafts}.values())

    def _begin(self, draft: Draft, group: str = "", *, whole: bool = False) -> Attempt:
        place = self._world.places.get(self._broker, "")
        return self._checked.begin(self.who, draft, group, place=place, whole=whole)

    def _draft(self) -> Draft:
        random = self._random
        if self._keyed and random.random() < 0.15:
            return random.choice(self._keyed)
        self._published += 1
        name = f"{self.who}.{self._published}"
        body = f"{name} ".encode() + b"." * random.choice([0, 0, 50, 150])
        if random.random() < 0.01:
            body += random.choice([POISON, b"too large" * 1000])
        subject = random.choice(self._subjects)
        expected = None
        if random.random() < 0.1:
            expected = max(0, self._store.last_id(subject) + random.choice([-1, 0, 0, 1]))
        key = f"key of {name}" if random.random() < 0.3 else ""
        draft = Draft(subject, body, random.choice([0, 0, 1, 5, None, None]), {}, key, expected)
        if key:
            self._keyed.append(draft)
        return draft

    async def _publish_one(self) -> None:
        """Publish; where there is a key, try again if it is not known what became of it."""
        draft = self._draft()
        for _ in range(RETRIES + 1 if draft.idempotency_key else 1):
            attempt = self._begin(draft)
            await cancel_perhaps(self._random, lambda attempt=attempt: self._await_one(attempt))
            if not attempt.answers:
                self._checked.answer(attempt, CANCELLED)
            if attempt.id is not None:
                return
            await pause(self._random, 1.0)
            await self._move()

    async def _await_one(self, attempt: Attempt) -> None:
        subject, body, expiration, headers, key, expected = attempt.draft
        try:
            id_ = await self._broker.publish(
                subject, body, expiration, headers=headers, idempotency_key=key, expected_last_id=expected
            )
        except BrokerError as error:
            self._checked.answer(attempt, error)
        else:
            self._checked.answer(attempt, id_)

    async def _batch(self) -> None:
        """Publish a batch, as in Python."""
        attempts, is_atomic = self._begin_batch()
        await cancel_perhaps(self._random, lambda: self._await_batch(attempts, atomic=is_atomic))
        for attempt in attempts:
            if not attempt.answers:
                self._checked.answer(attempt, CANCELLED)
        self._checked.check_order(attempts)

    async def _await_batch(self, attempts: Sequence[Attempt], *, atomic: bool) -> None:
        try:
            results = await self._broker.publish_batch([attempt.draft for attempt in attempts], atomic=atomic)
        except BrokerError as error:
            results = [error] * len(attempts)
        for attempt, result in zip(attempts, results, strict=True):
            self._checked.answer(attempt, result)

    def _begin_batch(self) -> tuple[list[Attempt], bool]:
        self._groups += 1
        is_atomic = self._random.random() < 0.5
        group = f"{self.who} group {self._groups}" if is_atomic else ""
        self._world.count("atomic batch", is_atomic)
        return [self._begin(draft, group, whole=True) for draft in self._drafts(9)], is_atomic

    async def _batch_call(self) -> None:
        """Publish a batch, as a call on gRPC: nobody waits, and its deadline may pass."""
        attempts, is_atomic = self._begin_batch()
        number = self._broker.committer.next_group() if is_atomic else 0
        messages = [self._check(attempt, number) for attempt in attempts]
        if is_atomic:
            abort_others(messages, [attempt.draft.subject for attempt in attempts])
        call = _BatchCall(self._world, self._checked, attempts)
        call.publishing = Publishing(self._broker.committer, messages, self, atomic=is_atomic, done=call.done)
        if call.is_done:
            call.answer()
        await pause(self._random, 0.5)
        if self._random.random() < 0.5:
            call.abandon()
        self._checked.check_order(attempts)

    async def _burst(self) -> None:
        """Publish one by one what one read of a socket brought; some of it is taken back."""
        attempts = [self._begin(draft) for draft in self._drafts(12)]
        passed = self._checked_all(attempts)
        callers = [(attempt,) for attempt, _ in passed]
        group = self._broker.hand_over([message for _, message in passed], self, callers, self._answered)
        await ticks(self._random.randint(0, 4))
        for pending in group.pendings:
            if self._random.random() < 0.2:
                self._withdraw(pending)
        self._checked.check_order(attempts)

    async def _stream(self) -> None:
        """Publish in requests, each when there is room; the rest may be taken back."""
        attempts: list[Attempt] = []
        pendings: list[Pending] = []
        seen: set[bytes] = set()
        committer = self._broker.committer
        for _ in range(self._random.randint(1, 4)):
            drafts = [draft for draft in self._drafts(20) if draft.body not in seen]
            seen.update(draft.body for draft in drafts)
            await self._room(len(drafts), 2000 * len(drafts))
            mine = [self._begin(draft) for draft in drafts]
            attempts += mine
            passed = self._checked_all(mine)
            runs = committer.cut([message for _, message in passed])
            callers, begin = [], 0
            for messages, _ in runs:
                callers.append([attempt for attempt, _ in passed[begin : begin + len(messages)]])
                begin += len(messages)
            pendings += committer.hand_over_runs(runs, self, callers, self._answered, had_room=True).pendings
            await ticks(self._random.randint(0, 3))
        if self._random.random() < 0.3:
            for pending in pendings:
                self._withdraw(pending)
        self._checked.check_order(attempts)

    async def _room(self, messages: int, size: int) -> None:
        """Wait until the queue has room, or until the broker stops. A checkpoint."""
        broker = self._broker
        while not broker.committer.has_room(messages, size) and broker.refusal() is None:
            self._world.count("waited for room")
            told = trio.Event()
            broker.committer.when_room(told.set)
            stopped = lambda _error, told=told: told.set()  # noqa: E731 - it is a key, too
            broker.on_stopping[stopped] = None
            await told.wait()
            del broker.on_stopping[stopped]
        await trio.lowlevel.checkpoint()

    def _check(self, attempt: Attempt, group: int = 0) -> NewMessage | BrokerError:
        try:
            return self._broker.check(*attempt.draft, group)
        except BrokerError as error:
            return error

    def _checked_all(self, attempts: Sequence[Attempt]) -> list[tuple[Attempt, NewMessage]]:
        """Return what may be handed over, and answer the rest."""
        passed = []
        for attempt in attempts:
            message = self._check(attempt)
            if isinstance(message, BrokerError):
                self._checked.answer(attempt, message)
            else:
                passed.append((attempt, message))
        return passed

    def _answered(self, pending: Pending) -> None:
        assert pending.outcomes is not None
        for attempt, outcome in zip(pending.caller, pending.outcomes, strict=True):
            self._checked.answer(attempt, outcome)

    def _withdraw(self, pending: Pending) -> None:
        if pending.withdraw():
            self._answered(pending)


class _BatchCall:
    """A PublishBatch that is under way, as in trio_broker/service/publishing.py."""

    publishing: Publishing

    def __init__(self, world: World, checked: CheckedPublishes, attempts: Sequence[Attempt]) -> None:
        self._world = world
        self._checked = checked
        self._attempts = attempts
        self._abandoned = False
        self.is_done = False

    def done(self) -> None:
        self.is_done = True
        if hasattr(self, "publishing") and not self._abandoned:
            self.answer()

    def answer(self) -> None:
        for attempt, result in zip(self._attempts, self.publishing.results(), strict=True):
            self._checked.answer(attempt, result)

    def abandon(self) -> None:
        """Its deadline has passed."""
        if self.is_done:
            return
        self._abandoned = True
        error = NotApplied("out of time") if self.publishing.withdraw() else OutcomeUnknown("out of time")
        for attempt in self._attempts:
            self._world.doubtful.add(attempt.draft.body)
            self._checked.answer(attempt, error)
