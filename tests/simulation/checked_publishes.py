"""What publishes were promised, beside the log of the store.

Every publish is answered once. One that has an id is in the log with that id and its body, once, before it is told.
One that is told that nothing was appended is not in the log. One that is told that it is not known what became of it
was given to a store, or to another broker, that did not answer. A key is not appended twice. The messages of an atomic
batch to one subject are all there, or none is.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from persistence import Appended, Duplicate
from trio_broker.errors import (
    Aborted,
    BrokerClosed,
    BrokerError,
    Conflict,
    Draining,
    InvalidArgument,
    MessageTooLarge,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.message import Draft

from .store import Fact, SimulatedStore
from .world import World

NOTHING_APPENDED = (
    Aborted,
    BrokerClosed,
    Conflict,
    Draining,
    InvalidArgument,
    MessageTooLarge,
    NotApplied,
    Overloaded,
    StorageFull,
    StorageUnavailable,
)
CANCELLED = "cancelled"

Answer = int | Appended | Duplicate | BrokerError | str
"""An id, where the caller is not told more; what the broker says of a message; or `CANCELLED`."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One message that somebody publishes."""

    who: str
    draft: Draft
    group: str
    """Of those that are to be appended together; empty: none."""
    begun: int
    given: int
    """How often the store had been given the body when this began."""
    repeated: bool
    """It has a key, and was tried before."""
    place: str
    """The broker."""
    whole: bool
    """It is answered with others."""
    answers: list[Answer] = field(default_factory=list)
    withdrawn: bool = False
    """It was cancelled before the store was given it."""

    def __str__(self) -> str:
        return f"{self.who} {self.draft.subject} {self.draft.body[:16]!r}"

    @property
    def failed(self) -> bool:
        """Nothing was appended, as the publisher was told."""
        return self.withdrawn or (bool(self.answers) and isinstance(self.answers[0], NOTHING_APPENDED))

    @property
    def id(self) -> int | None:
        if not self.answers or isinstance(self.answers[0], BrokerError | str):
            return None
        return self.answers[0] if isinstance(self.answers[0], int) else self.answers[0].id


class Acknowledged(NamedTuple):
    """A message of which its publisher was told that it is new, and its id."""

    subject: str
    id: int
    number: int
    """Of the event."""
    place: str
    """The broker."""


class CheckedPublishes:
    def __init__(self, world: World, store: SimulatedStore) -> None:
        self.acknowledged: list[Acknowledged] = []
        self._world = world
        self._store = store
        self._attempts: list[Attempt] = []
        self._tries: Counter[bytes] = Counter()

    def begin(self, who: str, draft: Draft, group: str = "", *, place: str = "", whole: bool = False) -> Attempt:
        """Note a publish that is about to be handed over, to the broker at ``place``.

        ``whole``: it is answered with others, when the last of them is.
        """
        details = (draft.subject, draft.body[:16], draft.expiration, draft.idempotency_key, draft.expected_last_id)
        number = self._world.note(who, "publishes", *details, group)
        given = self._store.given.get(draft.body, 0)
        attempt = Attempt(who, draft, group, number, given, draft.body in self._tries, place, whole)
        self._tries[draft.body] += 1
        self._attempts.append(attempt)
        return attempt

    def answer(self, attempt: Attempt, answer: Answer) -> None:
        """Check what a publisher is told, at the moment it is."""
        told = type(answer).__name__ if isinstance(answer, BrokerError) else answer
        self._world.note(attempt.who, "is told", attempt.draft.body[:16], told)
        if attempt.answers:
            self._world.violated("answered once", f"{attempt} was told {attempt.answers[0]!r} and then {answer!r}")
        attempt.answers.append(answer)
        if answer == CANCELLED:
            attempt.withdrawn = self._store.given.get(attempt.draft.body, 0) == attempt.given
            self._world.count("cancelled before hand-over" if attempt.withdrawn else "cancelled after hand-over")
        elif isinstance(answer, BrokerError):
            self._world.count(f"told: {type(answer).__name__}")
            if isinstance(answer, OutcomeUnknown):
                self._check_unknown(attempt)
            elif isinstance(answer, Conflict):
                self._check_conflict(attempt, int(answer.metadata["last_id"]))
            elif not isinstance(answer, NOTHING_APPENDED):
                self._world.violated("answered", f"{attempt} was told {answer!r}")
        else:
            self._check_acknowledged(attempt, answer)
            if attempt.id is not None and not (isinstance(answer, Duplicate) or attempt.repeated or attempt.whole):
                number = len(self._world.trace)
                self.acknowledged.append(Acknowledged(attempt.draft.subject, attempt.id, number, attempt.place))

    def check_order(self, attempts: Sequence[Attempt]) -> None:
        """Check that what one source published got ids in this order, within each subject.

        What was asked of another broker, and of which nobody was told anything, may come late.
        """
        last: dict[str, int] = {}
        for attempt in attempts:
            fact = None if attempt.repeated else self._fact(attempt)
            if fact is None or (self._store.leaves_subjects and attempt.id is None):
                continue
            if fact.id <= last.get(attempt.draft.subject, 0):
                self._world.violated("in order", f"{attempt} has id {fact.id}, which is not above the one before")
            last[attempt.draft.subject] = fact.id

    def check_settled(self, before: int = sys.maxsize) -> None:
        """Check that everything was answered that the broker was given before an event."""
        for attempt in self._attempts:
            if attempt.begun < before and not attempt.answers:
                self._world.violated("answered", f"{attempt} was never answered")

    def check_log(self) -> None:
        """Check the store's log at the end, against all that was told."""
        facts: defaultdict[tuple[str, bytes], list[Fact]] = defaultdict(list)
        for subject, history in self._store.history.items():
            if [fact.id for fact in history] != list(range(1, len(history) + 1)):
                self._world.violated("ids", f"those of {subject} are not contiguous in commit order")
            if any(before.time_us > after.time_us for before, after in pairwise(history)):
                self._world.violated("times", f"those of {subject} decrease")
            for fact in history:
                facts[subject, fact.message.body].append(fact)
        attempts: defaultdict[tuple[str, bytes], list[Attempt]] = defaultdict(list)
        for attempt in self._attempts:
            attempts[attempt.draft.subject, attempt.draft.body].append(attempt)
        for place, mine in attempts.items():
            self._check_body(mine, facts.pop(place, []))
        for (subject, body), strays in facts.items():
            if any(fact.ours for fact in strays):
                self._world.violated("nothing else", f"{body!r} is in the log of {subject}, and nobody published it")
        self._check_groups()

    def _check_body(self, attempts: list[Attempt], facts: list[Fact]) -> None:
        """Check a body that was published, and tried again if it has a key."""
        if all(attempt.failed for attempt in attempts) and facts:
            told = [attempt.answers for attempt in attempts]
            self._world.violated("nothing was appended", f"{attempts[0]} has id {facts[0].id}, and was told {told}")
        for before, after in pairwise(facts):
            if not attempts[0].draft.idempotency_key:
                self._world.violated("exactly once", f"{attempts[0]} has ids {before.id} and {after.id}")
            elif before.is_key_kept(after.latest_us):
                self._world.violated("keys", f"{attempts[0]} has ids {before.id} and {after.id}, with one key")

    def _check_groups(self) -> None:
        groups: defaultdict[tuple[str, str], list[Attempt]] = defaultdict(list)
        for attempt in self._attempts:
            if attempt.group:
                groups[attempt.group, attempt.draft.subject].append(attempt)
        for (group, subject), together in groups.items():
            fresh = [each for each in together if self._tries[each.draft.body] == 1]
            ids = [fact.id for each in fresh if (fact := self._fact(each)) is not None]
            bodies = {each.draft.body for each in together}
            all_ids = {fact.id for fact in self._store.history.get(subject, []) if fact.message.body in bodies}
            if ids and (len(ids) < len(fresh) or not all_ids.issuperset(range(ids[0], ids[-1] + 1))):
                self._world.violated("atomic", f"of {len(fresh)} messages of {group} to {subject} there are {ids}")
            if any(each.failed for each in fresh) and any(each.id is not None for each in fresh):
                self._world.violated("atomic", f"of {group} to {subject} some were told ids, and some that they failed")

    def _check_acknowledged(self, attempt: Attempt, answer: int | Appended | Duplicate) -> None:
        self._world.count("acknowledged")
        draft = attempt.draft
        id_ = answer if isinstance(answer, int) else answer.id
        fact = self._store.fact(draft.subject, id_)
        if fact is None:
            self._world.violated("durable", f"{attempt} was told id {id_}, which is not in the log")
            return
        if fact.message.body != draft.body:
            self._world.violated("durable", f"{attempt} was told id {id_}, which is {fact.message.body[:16]!r}")
        if not isinstance(answer, int) and fact.time_us != answer.time_us:
            self._world.violated("times", f"{attempt} was told another time than that of {id_}")
        is_new = fact.number > attempt.begun
        if isinstance(answer, Appended) and not is_new:
            self._world.violated("duplicates are told", f"{attempt} was told that {id_} is new")
        if isinstance(answer, Duplicate) or not is_new:
            self._world.count("told: Duplicate")
            if not draft.idempotency_key or fact.message.idempotency_key != draft.idempotency_key:
                self._world.violated("keys", f"{attempt} is no duplicate of {id_}")
        elif fact.heard is None and not draft.idempotency_key:
            self._world.violated("durable", f"{attempt} was told id {id_} before the store had answered")
        if is_new and not attempt.group and draft.expected_last_id not in (None, id_ - 1):
            self._world.violated("expected last id", f"{attempt} was told {id_}, after {draft.expected_last_id}")

    def _check_unknown(self, attempt: Attempt) -> None:
        body = attempt.draft.body
        if body not in self._world.doubtful and body not in self._world.given_up:
            self._world.violated("outcome known", f"{attempt} was told that its outcome is not known, and it is")

    def _check_conflict(self, attempt: Attempt, last_id: int) -> None:
        expected = attempt.draft.expected_last_id
        if last_id > self._store.last_id(attempt.draft.subject) or (not attempt.group and expected == last_id):
            self._world.violated("expected last id", f"{attempt} expected {expected}, and was told {last_id}")

    def _fact(self, attempt: Attempt) -> Fact | None:
        """Return what was appended for an attempt, or for one before it with its key."""
        facts = self._store.history.get(attempt.draft.subject, [])
        if attempt.id is not None:
            return facts[attempt.id - 1] if attempt.id <= len(facts) else None
        return next((fact for fact in facts if fact.message.body == attempt.draft.body), None)
