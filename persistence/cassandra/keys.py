"""Idempotency keys: who wants to append with one says so first, and is found by it.

Owns:      the table ``keys``.
Not here:  appending (writing.py), what becomes of a message with a key that is known (persistence/guards.py).
Threads:   any; nothing waits.

Before an attempt appends messages with keys, it writes a claim for each: the id that the message gets if the attempt
takes effect. Nothing else is written later. Whether it did take effect, the row of the attempt says, which is part of
the append (writing.py) and lives for as long as the keys: for a claim of ids that the head has passed that is settled
for ever. A claim of ids that the head has not reached yet is no obstacle: whoever appends next, on condition of that
head, settles it.

So no two messages with one key are appended. Both append on condition of a head. The second of them saw its head after
the first had taken effect, then looked for claims, and that of the first had been there since before it was appended.
A crash leaves a claim without an attempt, which says nothing, or one whose attempt took effect, which says all.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from persistence.cassandra.buckets import FOR_EVER_US, Bucket, ttl_s
from persistence.cassandra.steps import AtOnce, Statement, Steps, surely
from persistence.facade import Duplicate
from persistence.guards import key_kept_s

AT_ONCE_MAX = 64
"""How many claims are read or written at once: each has a partition of its own."""

_CLAIMS = Statement("""
    SELECT key, attempt, base_id, first_id, id, appended_at, expires_at FROM {keyspace}.keys
    WHERE subject = ? AND key = ?
""")
_CLAIM = Statement("""
    INSERT INTO {keyspace}.keys (subject, key, attempt, base_id, first_id, id, appended_at, expires_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?
""")
_ATTEMPT = Statement("SELECT attempt FROM {keyspace}.log WHERE subject = ? AND base_id = ? AND id = ?", serial=True)


class Place(NamedTuple):
    """Where an attempt appends: there is one that takes effect at most."""

    subject: str
    base_id: int
    first_id: int
    """The id of its first message."""

    @property
    def row_id(self) -> int:
        """The id of the row that says whose attempt took effect: out of the way of readers."""
        return -self.first_id


class Claim(NamedTuple):
    """A message that is about to be appended with a key."""

    key: str
    id: int
    expires_us: int
    """When the key is forgotten."""

    @classmethod
    def of(cls, key: str, id_: int, time_us: int, expiration_s: int | None) -> "Claim":
        kept_s = key_kept_s(expiration_s)
        return cls(key, id_, FOR_EVER_US if kept_s is None else time_us + kept_s * 1_000_000)


def place_after(subject: str, head: Bucket) -> Place:
    """Return where the next attempt appends."""
    return Place(subject, head.base_id, head.last_id + 1)


def took_effect(place: Place, attempt: UUID) -> Steps[bool]:
    """Say whether this attempt appended there, once any has."""
    rows = yield from surely(_ATTEMPT(place.subject, place.base_id, place.row_id))
    return bool(rows) and rows[0]["attempt"] == attempt


def find_known(subject: str, keys: Sequence[str], head: Bucket, now_us: int) -> Steps[dict[str, Duplicate]]:
    """Return what was appended with these keys up to ``head``, which was seen before this is called."""
    known: dict[str, Duplicate] = {}
    settled: dict[UUID, bool] = {}
    for start in range(0, len(keys), AT_ONCE_MAX):
        some = keys[start : start + AT_ONCE_MAX]
        for row in (yield from surely(AtOnce([_CLAIMS(subject, key) for key in some]))):
            if row["expires_at"] <= now_us or row["first_id"] > head.last_id:
                continue
            attempt = row["attempt"]
            if attempt not in settled:
                settled[attempt] = yield from took_effect(Place(subject, row["base_id"], row["first_id"]), attempt)
            if settled[attempt]:
                known[row["key"]] = Duplicate(row["id"], row["appended_at"])
    return known


def claim(place: Place, attempt: UUID, claims: Sequence[Claim], time_us: int, now_us: int) -> Steps[None]:
    """Say what an attempt is about to append at a time with keys. Harmless when it does not."""
    rows = [
        _CLAIM(place.subject, key, attempt, place.base_id, place.first_id, id_, time_us, until, ttl_s(until, now_us))
        for key, id_, until in claims
    ]
    for start in range(0, len(rows), AT_ONCE_MAX):
        yield from surely(AtOnce(rows[start : start + AT_ONCE_MAX]))
