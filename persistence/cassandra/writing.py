"""Appending.

Owns:      the statement that appends, and what is told of each message: appended, or not and never, or unknown; what
           is remembered of the heads of subjects.
Not here:  buckets (buckets.py), chunks (shares.py, chunks.py), what an answer that is missing means (steps.py).
Threads:   one worker thread; `Writer.append` blocks, for no longer than the commit timeout.

One conditional batch appends a share: it moves the head of the log from what it is believed to be, and it writes the
rows, all in one partition and so all or nothing. The order of ids is the order in which the nodes agreed on the heads.
Whoever was wrong about the head is told what it is, and tries again.

With the messages goes a row that says whose attempt this was. It is read when an answer was lost, and when a message
comes with a key that was claimed (keys.py); it lives for longer than anybody may still want to know.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID, uuid4

from persistence.cassandra.buckets import (
    BYTES_MAX,
    END_ID,
    MESSAGES_MAX,
    Bucket,
    begin,
    find_or_new,
    seen_or_found,
    ttl_s,
)
from persistence.cassandra.chunks import encode_chunk
from persistence.cassandra.clock import Clock
from persistence.cassandra.database import Database, Patience
from persistence.cassandra.keys import Claim, claim, find_known, place_after, took_effect
from persistence.cassandra.shares import Share, refusal
from persistence.cassandra.steps import Batch, Statement, Steps, apply_once, pause
from persistence.errors import BadContent, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from persistence.facade import Appended, Failed, NewMessage, Outcome, Rejected
from persistence.guards import judge, keys_of, reject_groups

ANSWER_SHARE = 0.95
"""Part of the commit timeout within which a flush is answered, finding its outcome included."""
SHARE_BYTES_MAX = 8 * 1024 * 1024
"""A node takes 16 MiB in one request, or less if it has little memory."""
HEADS_MAX = 20_000
"""How many subjects' heads are remembered. For another one there are two reads more."""

ATTEMPT_SLACK_S = 600
"""By so much the row of an attempt outlives its flush: the clock of a node may be set meanwhile."""
_CONTENTION_PAUSE_S = 0.002
"""Longer pauses only starve who pauses (measured): whoever was faster knows the head, and is faster again."""

_PENDING = Appended(0, 0)

_MOVE_HEAD = Statement("""
    UPDATE {keyspace}.log SET last_id = ?, last_at = ?, size = ?, until = ?, sealed = ?
    WHERE subject = ? AND base_id = ?
    IF last_id = ? AND last_at = ? AND size = ? AND until = ? AND sealed = ? AND gone_at = ?
""")
_PUT_CHUNK = Statement("INSERT INTO {keyspace}.log (subject, base_id, id, chunk) VALUES (?, ?, ?, ?) USING TTL ?")
_PUT_ATTEMPT = Statement("INSERT INTO {keyspace}.log (subject, base_id, id, attempt) VALUES (?, ?, ?, ?) USING TTL ?")
PUT_END = Statement("INSERT INTO {keyspace}.log (subject, base_id, id) VALUES (?, ?, ?)")


class Writer:
    """Appends batches, one at a time."""

    def __init__(self, database: Database, clock: Clock, commit_timeout_s: float) -> None:
        self._database = database
        self._clock = clock
        self._answer_s = commit_timeout_s * ANSWER_SHARE
        self._attempt_ttl_s = int(commit_timeout_s) + ATTEMPT_SLACK_S
        self._heads: dict[str, Bucket] = {}  # the longest unused first

    def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        """Do what the facade says."""
        outcomes: list[Outcome] = []
        places: dict[str, list[int]] = {}
        refused = False
        for place, message in enumerate(batch):
            why = refusal(message)
            outcomes.append(Rejected(why) if why else _PENDING)
            if not why:
                places.setdefault(message.subject, []).append(place)
            else:
                refused = True
        if refused:
            places = reject_groups(batch, outcomes, places)
        shares = [Share(subject, [batch[place] for place in mine]) for subject, mine in places.items()]
        results = self._database.run_all([self._append(share) for share in shares], Patience(self._answer_s))
        for mine, result in zip(places.values(), results, strict=True):
            told = [Failed(result)] * len(mine) if isinstance(result, StoreError) else result
            for place, outcome in zip(mine, told, strict=True):
                outcomes[place] = outcome
        _raise_common_failure(outcomes)
        return outcomes

    def _append(self, share: Share) -> Steps[list[Outcome]]:
        """Append a share, or else each half of it, down to single messages, if there is something in it to refuse."""
        count = len(share.messages)
        try:
            return (yield from self._append_whole(share))
        except BadContent as why:
            halves = share.halves()
            if halves is None:
                return [Rejected(str(why))] * count
            first, second = halves
            return [*(yield from self._append(first)), *(yield from self._append(second))]
        except StoreError as error:
            return [Failed(error)] * count

    def _append_whole(self, share: Share) -> Steps[list[Outcome]]:
        """Try until of the share is appended what may be."""
        if share.size > SHARE_BYTES_MAX:
            raise BadContent(f"{share.size} bytes are more than {SHARE_BYTES_MAX}")
        subject = share.subject
        head = self._heads.pop(subject, None)
        if head is None or share.is_conditional:  # one that is remembered may have been left behind
            head = yield from find_or_new(subject)
        while True:
            sealed = head if head.sealed else None
            head = sealed.next if sealed else head
            now_us = self._clock.now_us()
            plan = yield from _plan(share, head, now_us)
            if plan.passing is None:
                self._remember(subject, sealed or head)
                return plan.outcomes
            attempt = uuid4()
            place = place_after(subject, head)
            yield from claim(place, attempt, plan.claims, plan.time_us, now_us)
            yield from begin(subject, head, sealed, now_us)
            next_head, batch = self._attempt(plan, head, attempt, now_us)
            row = yield from apply_once(batch, partial(took_effect, place, attempt))
            if row is None:
                self._remember(subject, next_head)
                return plan.outcomes
            head = yield from seen_or_found(subject, head, row)
            yield pause(_CONTENTION_PAUSE_S)

    def _attempt(self, plan: "_Plan", head: Bucket, attempt: UUID, now_us: int) -> tuple[Bucket, Batch]:
        """Return the head after appending what passes, and the batch that does so."""
        share, time_us = plan.passing, plan.time_us
        assert share is not None
        rows = [
            ChunkRow(head.last_id + 1 + chunk.last, encode_chunk(time_us, chunk.messages), chunk.expires_us(time_us))
            for chunk in share.chunks
        ]
        next_head = head_after(head, head.last_id + len(share.messages), time_us, share.size, rows)
        attempt_ttl_s = self._ttl_of_attempt_s(plan.claims, now_us)
        return next_head, append_batch(share.subject, head, next_head, attempt, attempt_ttl_s, rows, now_us)

    def _ttl_of_attempt_s(self, claims: Sequence[Claim], now_us: int) -> int:
        """Return the TTL of the row of an attempt: its claims point to it."""
        if not claims:
            return self._attempt_ttl_s
        for_claims_s = ttl_s(max(claim.expires_us for claim in claims), now_us)
        return for_claims_s and max(for_claims_s, self._attempt_ttl_s)

    def _remember(self, subject: str, head: Bucket) -> None:
        self._heads[subject] = head
        if len(self._heads) > HEADS_MAX:
            del self._heads[next(iter(self._heads))]


class ChunkRow(NamedTuple):
    """A row of messages."""

    last_id: int
    """The id of the last one in it."""
    chunk: bytes
    expires_us: int
    """When all in it has expired."""


def head_after(head: Bucket, last_id: int, time_us: int, size: int, rows: Iterable[ChunkRow]) -> Bucket:
    """Return a head after appending rows of so many bytes, at a time, up to an id."""
    size += head.size
    return head._replace(
        last_id=last_id,
        last_at=max(time_us, head.gone_at + 1),
        size=size,
        until=max([head.until, *(row.expires_us for row in rows)]),
        sealed=last_id - head.base_id >= MESSAGES_MAX or size >= BYTES_MAX,
    )


def append_batch(
    subject: str,
    head: Bucket,
    next_head: Bucket,
    attempt: UUID,
    attempt_ttl_s: int,
    rows: Iterable[ChunkRow],
    now_us: int,
) -> Batch:
    """Return the batch that moves a head, if it is what it is believed to be, and writes rows."""
    partition = (subject, head.base_id)
    parts = [_MOVE_HEAD(*next_head.moved, *partition, *head.state)]
    if head.is_new:
        parts.append(PUT_END(*partition, END_ID))
    parts.append(_PUT_ATTEMPT(*partition, place_after(subject, head).row_id, attempt, attempt_ttl_s))
    parts += [_PUT_CHUNK(*partition, row.last_id, row.chunk, ttl_s(row.expires_us, now_us)) for row in rows]
    return Batch(parts)


class _Plan(NamedTuple):
    """What is to be done of a share at one head."""

    outcomes: list[Outcome]
    """Of all its messages, if it is done."""
    passing: Share | None
    """What of it is appended; None: nothing."""
    claims: Sequence[Claim]
    time_us: int
    """When that is."""


def _plan(share: Share, head: Bucket, now_us: int) -> Steps[_Plan]:
    """Judge a share, as what comes after ``head``."""
    time_us = max(now_us, head.last_at)
    messages = share.messages
    if not share.is_guarded:
        ids = range(head.last_id + 1, head.last_id + 1 + len(messages))
        return _Plan([Appended(id_, time_us) for id_ in ids], share, (), time_us)
    known = yield from find_known(share.subject, keys_of(messages), head, now_us)
    outcomes = judge(messages, head.last_id, time_us, known)
    passing: list[NewMessage] = []
    claims: list[Claim] = []
    for message, outcome in zip(messages, outcomes, strict=True):
        if isinstance(outcome, Appended):
            passing.append(message)
            if message.idempotency_key:
                claims.append(Claim.of(message.idempotency_key, outcome.id, time_us, message.expiration_s))
    return _Plan(outcomes, Share(share.subject, passing) if passing else None, claims, time_us)


def _raise_common_failure(outcomes: Sequence[Outcome]) -> None:
    """Raise how all failed, if all failed in the same way."""
    failures = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    for kind in (StoreUnavailable, StoreFull, OutcomeUnknown):
        if len([error for error in failures if isinstance(error, kind)]) == len(outcomes) > 0:
            raise failures[0]
