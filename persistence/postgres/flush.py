"""One flush: a batch as the parameters of one statement, and its answer as outcomes.

Owns:      the statement that appends.
Not here:  sending it, and what its failure means (writing.py); the row of the writer (outcome.py).
Threads:   worker threads; nothing here waits.

The statement is a transaction by itself: one round trip, and the locks last as long as the commit. It begins with the
writer's row: only if its epoch is still this connection's does anything happen. Then it takes the counters of the
subjects, in the order of their names, as every writer does, so that no two wait for each other. A counter's time is
read once its lock is held, and so the times of a subject are in commit order. Last, the writer's row says what was
done, in the same transaction.
"""

from collections.abc import Sequence
from typing import NamedTuple

from persistence.facade import Appended, NewMessage, Outcome, Rejected
from persistence.headers import encode_headers
from persistence.postgres.arrays import bytea_array, eight_byte_numbers, int4_array, text_array
from persistence.postgres.connection import unix_us

EXPIRATION_MAX_S = 2**31 - 1
"""What fits the wire's int32: 68 years."""

_PENDING = Appended(0, 0)

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
    SET last_id = subject.last_id + excluded.last_id, last_at = greatest(subject.last_at, clock_timestamp())
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


class Answer(NamedTuple):
    """What the database did: for each subject of the flush, by name."""

    last_ids: Sequence[int]
    times_us: Sequence[int]

    @classmethod
    def of(cls, last_ids: bytes, times: bytes) -> "Answer":
        """Read the columns of `APPEND`."""
        return cls(eight_byte_numbers(last_ids), [unix_us(time) for time in eight_byte_numbers(times)])


class Flush:
    """A batch on its way. What is refused without asking is left out of it."""

    def __init__(self, batch: Sequence[NewMessage]) -> None:
        self._outcomes: list[Outcome] = []
        indexes: dict[str, list[int]] = {}
        for index, (subject, _, seconds, _) in enumerate(batch):
            self._outcomes.append(_PENDING)
            if seconds is None or 0 <= seconds <= EXPIRATION_MAX_S:
                indexes.setdefault(subject, []).append(index)
            else:
                self._outcomes[index] = Rejected(f"expiration {seconds} s is not within 0..{EXPIRATION_MAX_S} s")
        # the order of code points is that of the UTF-8 bytes, which is COLLATE "C"
        self._subjects = sorted(indexes.items())
        self.subjects = [subject.encode() for subject, _ in self._subjects]
        """Their names, in order; none: there is nothing to append."""
        self.parameters = self._encode(batch)
        """$4 to $10 of `APPEND`."""

    def outcomes(self, answer: Answer) -> list[Outcome]:
        """Return one outcome for each message of the batch, in order."""
        for (_, indexes), last_id, time_us in zip(self._subjects, *answer, strict=True):
            for id_, index in enumerate(indexes, last_id - len(indexes) + 1):
                self._outcomes[index] = Appended(id_, time_us)
        return self._outcomes

    def _encode(self, batch: Sequence[NewMessage]) -> list[bytes]:
        places: list[int] = []
        afters: list[int] = []
        seconds: list[int | None] = []
        headers: list[bytes | None] = []
        bodies: list[bytes] = []
        for place, (_, indexes) in enumerate(self._subjects, 1):
            for after, index in zip(range(len(indexes) - 1, -1, -1), indexes, strict=True):
                _, body, expiration_s, given = batch[index]
                if expiration_s != 0:
                    places.append(place)
                    afters.append(after)
                    seconds.append(expiration_s)
                    headers.append(encode_headers(given))
                    bodies.append(body)
        return [
            text_array(self.subjects),
            int4_array([len(indexes) for _, indexes in self._subjects]),
            int4_array(places),
            int4_array(afters),
            int4_array(seconds),
            bytea_array(headers),
            bytea_array(bodies),
        ]
