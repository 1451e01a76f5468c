"""One flush: a batch as the parameters of one statement, and its answer as outcomes.

Owns:      the statement that appends.
Not here:  sending it, and what its failure means (writing.py); the row of the writer (outcome.py).
Threads:   worker threads; nothing here waits.

The statement is a transaction by itself: one round trip, and the locks last as long as the commit. It begins with the
writer's row: only if its epoch is still this connection's does anything happen. Then it takes the counters of the
subjects, in the order of their names, as every writer does, so that no two wait for each other. A counter's time is
read once its lock is held, and so the times of a subject are in commit order. Last, the writer's row says what was
done, in the same transaction.

A flush with idempotency keys or expected last ids is judged first: a transaction locks the counters, all of them and in
the same order, looks the keys up, appends what may be appended by the same statement, and writes its keys.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from persistence.facade import Appended, Duplicate, NewMessage, Outcome
from persistence.guards import judge, key_kept_s, keys_of, sort_out
from persistence.headers import encode_headers
from persistence.postgres.arrays import bytea_array, eight_byte_numbers, int4_array, text_array
from persistence.postgres.connection import unix_us

EXPIRATION_MAX_S = 2**31 - 1
"""What fits the wire's int32: 68 years."""


# `place` is that of a subject among those of the flush, by name; `after` how many messages of the flush and the subject
# come after this one. No messages: no row, and the writer's row is not changed.
APPEND = b"""
WITH fence AS MATERIALIZED (
    SELECT FROM trio_broker.writers WHERE id = $1::uuid AND epoch = $2::bigint FOR UPDATE
), heads AS (
    INSERT INTO trio_broker.subjects AS subject (name, last_id, last_at)
    SELECT new.name, new.count, clock_timestamp()
    FROM fence, unnest($4::text[], $5::int[]) WITH ORDINALITY AS new (name, count, place) ORDER BY new.place
    ON CONFLICT (name) DO UPDATE
    SET last_id = subject.last_id + excluded.last_id, last_at = greatest(subject.last_at, clock_timestamp()),
        listed = true
    RETURNING id, name, last_id, last_at
), flushed AS MATERIALIZED (
    SELECT array_agg(id) AS subject_ids, array_agg(last_id) AS last_ids, array_agg(last_at) AS times
    FROM (SELECT * FROM heads ORDER BY name) AS in_order HAVING count(*) > 0 AND count(*) = cardinality($4::text[])
), kept AS (
    INSERT INTO trio_broker.messages (subject_id, id, published_at, expires_at, headers, body)
    SELECT subject_ids[place], last_ids[place] - after, times[place], times[place] + seconds * interval '1 second',
           headers, body
    FROM flushed, unnest($6::int[], $7::int[], $8::int[], $9::bytea[], $10::bytea[])
        AS new (place, after, seconds, headers, body)
), token AS (
    UPDATE trio_broker.writers AS writer
    SET flush = $3::bigint, last_ids = flushed.last_ids, times = flushed.times, seen_at = clock_timestamp()
    FROM flushed WHERE writer.id = $1::uuid
)
SELECT last_ids, times FROM flushed
"""

# The writer's row is changed, and not only locked: so the transaction waits for its place in the log, and for the
# standbys, also if all that it has to say is what others have committed just now.
FENCE = """
    UPDATE trio_broker.writers SET seen_at = clock_timestamp() WHERE id = %s::uuid AND epoch = %s::bigint RETURNING 1
"""
# Plans are kept while the tables grow, and one that was made when they were small would read them whole: hence this,
# and a LIMIT in what is to be looked up row by row.
BY_THE_INDEX = "SET LOCAL enable_seqscan = off"
# A new subject begins at 0, which holds up others that begin it.
LOCK = """
    INSERT INTO trio_broker.subjects AS subject (name, last_id, last_at)
    SELECT new.name, 0, clock_timestamp()
    FROM unnest(%s::text[]) WITH ORDINALITY AS new (name, place) ORDER BY new.place
    ON CONFLICT (name) DO UPDATE SET last_id = subject.last_id
    RETURNING name, last_id
"""
# In a statement of its own, which sees what was committed while the one before waited for its locks.
KNOWN = """
    SELECT asked.name, asked.key, known.id, known.published_at
    FROM unnest(%s::text[], %s::bytea[]) AS asked (name, key),
    LATERAL (SELECT id FROM trio_broker.subjects WHERE name = asked.name LIMIT 1) AS subject,
    LATERAL (
        SELECT id, published_at, expires_at FROM trio_broker.keys
        WHERE subject_id = subject.id AND key = asked.key LIMIT 1
    ) AS known
    WHERE known.expires_at IS NULL OR known.expires_at > clock_timestamp()
"""
# After APPEND, which has moved the counters. What is there with the same key has expired.
REMEMBER = """
    INSERT INTO trio_broker.keys AS known (subject_id, key, id, published_at, expires_at)
    SELECT subject.id, new.key, subject.last_id - new.after, subject.last_at,
           subject.last_at + new.seconds * interval '1 second'
    FROM unnest(%s::text[], %s::bytea[], %s::int[], %s::int[]) AS new (name, key, after, seconds),
    LATERAL (SELECT id, last_id, last_at FROM trio_broker.subjects WHERE name = new.name LIMIT 1) AS subject
    ON CONFLICT (subject_id, key) DO UPDATE
    SET id = excluded.id, published_at = excluded.published_at, expires_at = excluded.expires_at
"""
FORGET_NEW = "DELETE FROM trio_broker.subjects WHERE name = ANY (%s::text[]) AND last_id = 0"


class Answer(NamedTuple):
    """What the database did: for each subject of the flush, by name."""

    last_ids: Sequence[int]
    times_us: Sequence[int]

    @classmethod
    def of(cls, last_ids: bytes, times: bytes) -> "Answer":
        """Read the columns of `APPEND`."""
        return cls(eight_byte_numbers(last_ids), [unix_us(time) for time in eight_byte_numbers(times)])


class _Judged(NamedTuple):
    """What a subject was found to be when its counter was locked."""

    last_id: int
    known: dict[str, Duplicate]


class Flush:
    """A batch on its way. What is refused without asking is left out of it."""

    def __init__(self, batch: Sequence[NewMessage]) -> None:
        self._batch = batch
        self._outcomes, indexes, guarded = sort_out(batch, EXPIRATION_MAX_S)
        self.is_guarded = bool(guarded)
        """It has to be judged by `judge` before it is appended."""
        # the order of code points is that of the UTF-8 bytes, which is
        self._asked = sorted(indexes.items())
        self._passed = self._asked
        self._judged: dict[str, _Judged] = {}
        if not self.is_guarded:
            self._encode()

    @property
    def is_empty(self) -> bool:
        """There is nothing to ask the database."""
        return not self._asked

    @property
    def names(self) -> set[str]:
        """The subjects of all messages that are not refused without asking."""
        return {subject for subject, _ in self._asked}

    def lock_parameters(self) -> list[list[str]]:
        """Return those of `LOCK`."""
        return [[subject for subject, _ in self._asked]]

    def known_parameters(self) -> list[list[str] | list[bytes]]:
        """Return those of `KNOWN`."""
        asked = [(subject, key) for subject, indexes in self._asked for key in keys_of(self._messages(indexes))]
        return [[subject for subject, _ in asked], [key.encode() for _, key in asked]]

    def judge(self, last_ids: Mapping[str, int], known: Sequence[tuple[str, bytes, int, int]]) -> None:
        """Leave in the flush what may be appended, given the subjects' last ids and the rows of `KNOWN`."""
        self._judged = {subject: _Judged(last_ids[subject], {}) for subject, _ in self._asked}
        for subject, key, id_, time_us in known:
            self._judged[subject].known[key.decode()] = Duplicate(id_, time_us)
        self._passed = []
        for subject, indexes in self._asked:
            last_id, known_here = self._judged[subject]
            outcomes = judge(self._messages(indexes), last_id, 0, known_here)
            passed = [index for index, it in zip(indexes, outcomes, strict=True) if isinstance(it, Appended)]
            if passed:
                self._passed.append((subject, passed))
        self._encode()

    def remember_parameters(self) -> list[list[str] | list[bytes] | list[int] | list[int | None]]:
        """Return those of `REMEMBER`."""
        names: list[str] = []
        keys: list[bytes] = []
        afters: list[int] = []
        seconds: list[int | None] = []
        for subject, indexes in self._passed:
            for after, message in zip(range(len(indexes) - 1, -1, -1), self._messages(indexes), strict=True):
                if message.idempotency_key:
                    names.append(subject)
                    keys.append(message.idempotency_key.encode())
                    afters.append(after)
                    seconds.append(key_kept_s(message.expiration_s))
        return [names, keys, afters, seconds]

    def new_and_empty(self) -> list[str]:
        """Return the subjects that `LOCK` made for nothing."""
        passed = {subject for subject, _ in self._passed}
        return [subject for subject, (last_id, _) in self._judged.items() if last_id == 0 and subject not in passed]

    def outcomes(self, answer: Answer) -> list[Outcome]:
        """Return one outcome for each message of the batch, in order."""
        ends = {
            subject: (last_id - len(indexes), time_us)
            for (subject, indexes), last_id, time_us in zip(self._passed, *answer, strict=True)
        }
        for subject, indexes in self._asked:
            if subject in self._judged:
                last_id, known = self._judged[subject]
                before, time_us = ends.get(subject, (last_id, 0))
                judged = judge(self._messages(indexes), before, time_us, known)
                for index, outcome in zip(indexes, judged, strict=True):
                    self._outcomes[index] = outcome
            else:
                before, time_us = ends[subject]
                for id_, index in enumerate(indexes, before + 1):
                    self._outcomes[index] = Appended(id_, time_us)
        return self._outcomes

    def _messages(self, indexes: Sequence[int]) -> list[NewMessage]:
        return [self._batch[index] for index in indexes]

    def _encode(self) -> None:
        places: list[int] = []
        afters: list[int] = []
        seconds: list[int | None] = []
        headers: list[bytes | None] = []
        bodies: list[bytes] = []
        for place, (_, indexes) in enumerate(self._passed, 1):
            for after, index in zip(range(len(indexes) - 1, -1, -1), indexes, strict=True):
                _, body, expiration_s, given, *_ = self._batch[index]
                if expiration_s != 0:
                    places.append(place)
                    afters.append(after)
                    seconds.append(expiration_s)
                    headers.append(encode_headers(given))
                    bodies.append(body)
        self.subjects = [subject.encode() for subject, _ in self._passed]
        """The names of what is appended to, in order; none: there is nothing to append."""
        self.parameters = [
            text_array(self.subjects),
            int4_array([len(indexes) for _, indexes in self._passed]),
            int4_array(places),
            int4_array(afters),
            int4_array(seconds),
            bytea_array(headers),
            bytea_array(bodies),
        ]
        """$4 to $10 of `APPEND`."""
