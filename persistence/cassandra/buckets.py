"""A subject's log is a chain of buckets, each a partition of bounded size.

Owns:      `Bucket`, the state of one; finding the one that has a message, the next one, and the last one, the head;
           beginning the first and each next one; listing a subject.
Not here:  messages (reading.py, writing.py), what takes them away (purging.py), the tables (schema.py).
Threads:   any; nothing waits.

A bucket is named by the id before its first: whoever sees that one is sealed knows the name of the next. Its state is
in static columns, written without a TTL by each append, and so it outlives all messages. It stays for ever: were it
deleted, then a writer that was stopped all this time could append to the bucket as if it were new. What goes is the
bucket's row in the table ``buckets``, by which readers find it.

A subject is deleted by a mark in its head, the time ``gone_at``. What is appended later has a later ``last_at``: so who
appends sees whether the subject is listed. Both listing and not listing it are written with a timestamp that is made
of ``gone_at``, and so it is the order of appending and deleting that counts, whatever is late on its way.
"""

from typing import NamedTuple, Self

from persistence.cassandra.steps import AtOnce, Batch, Bound, Row, Statement, Steps, surely

MESSAGES_MAX = 50_000
"""Messages that have expired cost a reader who passes them something, until they are compacted away; a node refuses to
pass more than 100,000 at once."""
BYTES_MAX = 64 * 1024 * 1024

FOR_EVER_US = 2**63 - 1
END_ID = 2**63 - 1
"""Every bucket has this row, without a TTL: the state is read with any range of ids that goes up to it."""

TTL_MAX_S = 20 * 365 * 24 * 3600
"""The longest that the database knows."""
_SLACK_S = 60
"""By so much a row outlives what is in it: the store's clock says when that has expired, and a row goes by a node's."""

_LAST = Statement("SELECT base_id, began_at FROM {keyspace}.buckets WHERE subject = ? LIMIT 1")
_HOLDING = Statement("SELECT base_id FROM {keyspace}.buckets WHERE subject = ? AND base_id < ? LIMIT 1")
_FROM = Statement(
    "SELECT base_id FROM {keyspace}.buckets WHERE subject = ? AND base_id >= ? ORDER BY base_id ASC LIMIT 1"
)
_ADD = Statement("INSERT INTO {keyspace}.buckets (subject, base_id, began_at) VALUES (?, ?, ?) USING TTL ?")
_ADD_SUBJECT = Statement("INSERT INTO {keyspace}.subjects (shard, subject) VALUES (?, ?) USING TIMESTAMP ?")
# Static columns alone may not be asked for by a row: that is why it says ``id``.
_STATE = Statement("""
    SELECT id, last_id, last_at, size, until, sealed, gone_at, floor
    FROM {keyspace}.log WHERE subject = ? AND base_id = ? AND id = ?
""")


class Bucket(NamedTuple):
    """The state of a bucket. Times are in microseconds."""

    base_id: int
    """The last id before it."""
    began_at: int
    """When that one was appended."""
    last_id: int
    """The last id in it or, when it is new, before it."""
    last_at: int
    """When that one was appended; what comes after has no earlier time."""
    size: int
    """Bytes in it."""
    until: int
    """When the last of its messages expires."""
    sealed: bool
    """It takes no more."""
    gone_at: int = 0
    """When the subject was deleted last, while this was its head; 0: never."""
    floor: int = 0
    """None of its messages up to this id is kept. It only rises; it may be above the last one."""

    @classmethod
    def new(cls, base_id: int, began_at: int) -> Self:
        """Return the state of a bucket that has nothing in it, and never had."""
        return cls(base_id, began_at, base_id, began_at, size=0, until=0, sealed=False)

    @property
    def next(self) -> Self:
        """The state of the bucket after this one, which is sealed, if that is new."""
        return self.new(self.last_id, self.last_at)

    @property
    def is_new(self) -> bool:
        return self.last_id == self.base_id

    @property
    def is_listed(self) -> bool:
        """Something was appended since the subject began, or was deleted."""
        return self.last_at > self.gone_at

    @property
    def moved(self) -> tuple[int | None, ...]:
        """What every append writes: the static columns `MOVED`."""
        return (None,) * len(MOVED) if self.is_new else tuple(getattr(self, name) for name in MOVED)

    @property
    def state(self) -> tuple[int | None, ...]:
        """What every append is conditional on: all static columns but the floor."""
        return *self.moved, self.gone_at or None

    def seen(self, row: Row) -> Self:
        """Return what it is by the static columns in a row: all, or those of a condition that did not hold."""
        bucket = self._replace(gone_at=row.get("gone_at") or 0, floor=row.get("floor") or self.floor)
        if row.get("last_id") is None:
            new = self.new(self.base_id, self.began_at)
            return new._replace(gone_at=bucket.gone_at, floor=bucket.floor)
        return bucket._replace(**{name: row[name] for name in MOVED})


MOVED = ("last_id", "last_at", "size", "until", "sealed")
"""The static columns that every append writes, by the names of the fields of `Bucket`."""


def ttl_s(expires_us: int, now_us: int) -> int:
    """Return the TTL of a row with something in it that expires then; 0, which is none, if it never does."""
    if expires_us == FOR_EVER_US:
        return 0
    return min(TTL_MAX_S, max(0, -((now_us - expires_us) // 1_000_000)) + _SLACK_S)


def shard_of(subject: str) -> int:
    """Return which partition of the table ``subjects`` has this one: in order, they have the subjects in order."""
    return subject.encode()[0]


def find_head(subject: str) -> Steps[Bucket | None]:
    """Return the last bucket of a subject; None when there is none. The next one may have been begun since."""
    rows = yield from surely(_LAST(subject))
    if not rows:
        return None
    return (yield from look_at(subject, Bucket.new(**rows[0])))


def look_at(subject: str, bucket: Bucket) -> Steps[Bucket]:
    """Return the state of a bucket as it is now."""
    rows = yield from surely(_STATE(subject, bucket.base_id, END_ID))
    return bucket.seen(rows[0] if rows else {})


def find_holding(subject: str, id_: int) -> Steps[int | None]:
    """Return the base of the bucket that has this id, if any has."""
    rows = yield from surely(_HOLDING(subject, id_))
    return rows[0]["base_id"] if rows else None


def find_from(subject: str, base_id: int) -> Steps[int | None]:
    """Return the base of the first bucket with this base or one above; None when there is none."""
    rows = yield from surely(_FROM(subject, base_id))
    return rows[0]["base_id"] if rows else None


def find_or_new(subject: str) -> Steps[Bucket]:
    """Return the last bucket of a subject; the first one, with nothing in it, when there is none."""
    return (yield from find_head(subject)) or Bucket.new(0, 0)


def seen_or_found(subject: str, head: Bucket, row: Row) -> Steps[Bucket]:
    """Return the head, given the row that stood in the way of what was conditional on another state of it."""
    if row.get("last_id") or row.get("gone_at"):
        return head.seen(row)
    return (yield from find_or_new(subject))  # somebody emptied the tables


def begin(subject: str, head: Bucket, sealed: Bucket | None, now_us: int) -> Steps[None]:
    """See that a subject is listed and its head is found, for what is to be appended there. Harmless when it is so.

    ``sealed`` is the bucket before, where it is known. At the moment at which the next one begins its end is settled:
    its row goes when all that is in it has expired.
    """
    parts: list[Bound | Batch] = []
    if not head.is_listed:
        parts.append(_ADD_SUBJECT(shard_of(subject), subject, head.gone_at + 1))
    if head.is_new:
        parts.append(_begin_bucket(subject, head, sealed, now_us))
    if parts:
        yield from surely(AtOnce(parts))


def begin_bucket(subject: str, head: Bucket, sealed: Bucket | None, now_us: int) -> Steps[None]:
    """See that a head is found, and no more of what `begin` does."""
    yield from surely(_begin_bucket(subject, head, sealed, now_us))


def _begin_bucket(subject: str, head: Bucket, sealed: Bucket | None, now_us: int) -> Bound | Batch:
    add = _ADD(subject, head.base_id, head.began_at, 0)
    if sealed is None:
        return add
    return Batch([add, _ADD(subject, sealed.base_id, sealed.began_at, ttl_s(sealed.until, now_us))])
