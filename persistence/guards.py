"""Idempotency keys, expected last ids and groups: what of a batch is appended.

Owns:      the rule, the same for every store; for how long a key is remembered.
Not here:  where a store keeps keys, and how it makes sure that nobody appends between looking and appending.
Threads:   any: pure functions.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from persistence.facade import KEY_KEPT_MIN_S, Appended, Conflict, Duplicate, NewMessage, Outcome, Rejected

_GROUP = attrgetter("group")
_PENDING = Appended(0, 0)


def key_kept_s(expiration_s: int | None) -> int | None:
    """Return for how many seconds the key of a message with this expiration is remembered; None: for good."""
    return None if expiration_s is None else max(expiration_s, KEY_KEPT_MIN_S)


def keys_of(messages: Sequence[NewMessage]) -> list[str]:
    """Return the idempotency keys of messages, each once, in order."""
    return [*dict.fromkeys(message.idempotency_key for message in messages if message.idempotency_key)]


def judge(messages: Sequence[NewMessage], last_id: int, time_us: int, known: Mapping[str, Duplicate]) -> list[Outcome]:
    """Return what becomes of the messages of one subject, one after another, in their order.

    ``last_id`` is the subject's before them, ``time_us`` that of what is appended of them, ``known`` what was appended
    before with their keys. A key goes before an expected last id: who repeats a publish that was appended hears so.
    Messages of a group are appended together, or those that are no duplicates are all conflicts.
    """
    known = dict(known)
    outcomes: list[Outcome] = []
    for group, together in groupby(messages, key=_GROUP):
        if group:
            judged, fresh = _judge_all(list(together), last_id, time_us, known)
            known.update(fresh)
            outcomes += judged
            last_id += sum(isinstance(outcome, Appended) for outcome in judged)
            continue
        for message in together:
            outcome = _judge_one(message, last_id, time_us, known, known)
            if isinstance(outcome, Appended):
                last_id = outcome.id
            outcomes.append(outcome)
    return outcomes


def _judge_all(
    messages: Sequence[NewMessage], last_id: int, time_us: int, known: Mapping[str, Duplicate]
) -> tuple[list[Outcome], dict[str, Duplicate]]:
    """Judge the messages of a group, each as if those before it were appended; return also the keys they leave."""
    fresh: dict[str, Duplicate] = {}
    outcomes: list[Outcome] = []
    before = last_id
    for message in messages:
        outcome = _judge_one(message, last_id, time_us, known, fresh)
        if not isinstance(outcome, Duplicate):
            last_id += 1
        outcomes.append(outcome)
    at_fault = [isinstance(outcome, Conflict) for outcome in outcomes]
    if not any(at_fault):
        return outcomes, fresh
    return [
        known.get(message.idempotency_key) or Conflict(before, of_neighbour=not its_fault)
        for message, its_fault in zip(messages, at_fault, strict=True)
    ], {}


def _judge_one(
    message: NewMessage, last_id: int, time_us: int, known: Mapping[str, Duplicate], fresh: dict[str, Duplicate]
) -> Outcome:
    """Judge one message; its key is added to ``fresh``."""
    key = message.idempotency_key
    if duplicate := known.get(key) or fresh.get(key):
        return duplicate
    if message.expected_last_id not in (None, last_id):
        return Conflict(last_id)
    if key:
        fresh[key] = Duplicate(last_id + 1, time_us)
    return Appended(last_id + 1, time_us)


class Sorted(NamedTuple):
    """A batch as it was found without asking the database."""

    outcomes: list[Outcome]
    """`Rejected` in the places of what is refused; the others are yet to be filled in."""
    places: dict[str, list[int]]
    """Those of what is not refused, by subject."""
    guarded: set[str]
    """The subjects of messages with a key or an expected last id: those need `judge`."""


def sort_out(batch: Sequence[NewMessage], expiration_max_s: int) -> Sorted:
    """Refuse what has an expiration that the store cannot keep, with its group; sort the rest by subject."""
    outcomes: list[Outcome] = [_PENDING] * len(batch)
    places: dict[str, list[int]] = {}
    guarded: set[str] = set()
    refused = False
    mine: list[int] = []
    of_subject: str | None = None
    for place, (subject, _, expiration_s, _, key, expected_last_id, _) in enumerate(batch):
        if expiration_s is None or 0 <= expiration_s <= expiration_max_s:
            if subject != of_subject:
                of_subject, mine = subject, places.setdefault(subject, [])
            mine.append(place)
            if key or expected_last_id is not None:
                guarded.add(subject)
        else:
            outcomes[place] = out_of_range(expiration_s, expiration_max_s)
            refused = True
    return Sorted(outcomes, reject_groups(batch, outcomes, places) if refused else places, guarded)


def out_of_range(expiration_s: int, expiration_max_s: int) -> Rejected:
    """Refuse a message for its expiration."""
    return Rejected(f"expiration {expiration_s} s is not within 0..{expiration_max_s} s")


def reject_groups(
    batch: Sequence[NewMessage], outcomes: list[Outcome], places: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Reject what has a rejected message in its group; return what is left of ``places``, by subject."""
    why = {
        (message.subject, message.group): outcome.why
        for message, outcome in zip(batch, outcomes, strict=True)
        if message.group and isinstance(outcome, Rejected)
    }
    left: dict[str, list[int]] = {}
    for subject, mine in places.items():
        for place in mine:
            reason = why.get((subject, batch[place].group))
            if reason is None:
                left.setdefault(subject, []).append(place)
            else:
                outcomes[place] = Rejected(f"another message of its group: {reason}")
    return left
