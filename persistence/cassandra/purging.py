"""Taking messages away: purging a subject, and deleting it.

Owns:      the floor of a bucket, up to which nothing is kept; the mark of a subject that was deleted.
Not here:  how readers go by the floor (reading.py), how a subject is listed again (buckets.py, writing.py).
Threads:   any; nothing waits.

The floor is in a static column: who reads messages sees it in the same read. So it does not matter when their rows go,
nor whether some of them come back from a node that was away for too long. Floor and rows change by one conditional
batch for each bucket, whose timestamp is later than that of every append there before, whatever the clocks show.

Appends are not conditional on the floor, and go on meanwhile. Whatever of a purge was done when it came to a sudden end
stays done, and the rest is done by doing it again.
"""

from functools import partial

from persistence.cassandra.buckets import (
    END_ID,
    Bucket,
    begin_bucket,
    find_head,
    find_holding,
    look_at,
    shard_of,
)
from persistence.cassandra.clock import Clock
from persistence.cassandra.steps import AtOnce, Batch, Statement, Steps, apply_once, pause, surely
from persistence.cassandra.writing import PUT_END
from persistence.errors import OutcomeUnknown, StoreUnavailable
from persistence.facade import Conflict

AT_ONCE_MAX = 64
"""How many buckets are emptied at once."""

_BELOW = Statement("""
    SELECT base_id FROM {keyspace}.buckets WHERE subject = ? AND base_id > ? AND base_id < ?
    ORDER BY base_id ASC LIMIT ?
""")
_DROP_UNTIL = Statement("DELETE FROM {keyspace}.buckets WHERE subject = ? AND base_id <= ?")
_CLOSE = Statement("UPDATE {keyspace}.log SET floor = ? WHERE subject = ? AND base_id = ? IF sealed = true")
_RAISE = Statement("UPDATE {keyspace}.log SET floor = ? WHERE subject = ? AND base_id = ? IF floor = ?")
_DROP_CHUNKS = Statement("DELETE FROM {keyspace}.log WHERE subject = ? AND base_id = ? AND id > 0 AND id <= ?")
_MARK = Statement("""
    UPDATE {keyspace}.log SET gone_at = ?, floor = ? WHERE subject = ? AND base_id = ?
    IF last_id = ? AND last_at = ? AND size = ? AND until = ? AND sealed = ? AND gone_at = ?
""")
_UNLIST = Statement("DELETE FROM {keyspace}.subjects USING TIMESTAMP ? WHERE shard = ? AND subject = ?")


def purge(subject: str, until_id: int, clock: Clock) -> Steps[int]:
    """Do what the facade says.

    Raises:
        OutcomeUnknown: some of it was done, or may have been.
        StoreUnavailable: nothing was.
    """
    head = yield from find_head(subject)
    if head is None:
        return 0
    yield from _partly(_purge(subject, head, min(until_id, head.last_id), clock))
    return head.last_id


def delete_subject(subject: str, last_id: int, clock: Clock) -> Steps[Conflict | None]:
    """Do what the facade says; raise as `purge` does."""
    while True:
        head = yield from find_head(subject)
        found = head.last_id if head else 0
        if found != last_id:
            return Conflict(found)
        if head is None:
            return None
        if head.sealed:  # the mark has to be where the next append looks
            yield from begin_bucket(subject, head.next, head, clock.now_us())
            head = yield from look_at(subject, head.next)
        gone_at = max(clock.now_us(), head.last_at + 1, head.gone_at + 2)
        if head.last_id == last_id and (yield from _mark(subject, head, gone_at)):
            break
        yield pause()
    yield from _partly(_purge(subject, head, last_id, clock))
    yield from _partly(surely(_UNLIST(gone_at, shard_of(subject), subject)))
    return None


def _mark(subject: str, head: Bucket, gone_at: int) -> Steps[bool]:
    """Mark a subject as deleted, and purge its head, if that is as it is believed to be; say whether it was."""
    partition = (subject, head.base_id)
    parts = [
        _MARK(gone_at, head.last_id, *partition, *head.state),
        PUT_END(*partition, END_ID),  # a new one has none yet
        _DROP_CHUNKS(*partition, head.last_id),
    ]
    return (yield from apply_once(Batch(parts), partial(_is_marked, subject, head, gone_at))) is None


def _is_marked(subject: str, head: Bucket, gone_at: int) -> Steps[bool]:
    return (yield from look_at(subject, head)).gone_at == gone_at


def _purge(subject: str, head: Bucket, until_id: int, clock: Clock) -> Steps[None]:
    """Purge a subject up to an id that it has, from the first bucket on."""
    if head.is_new:  # who began it may have been cut off: on some node it could be the only one that is left
        yield from begin_bucket(subject, head, None, clock.now_us())
    base_id = yield from find_holding(subject, until_id + 1)
    if base_id is None:
        return
    bucket = yield from look_at(subject, Bucket.new(base_id, 0))
    yield from _purge_below(subject, base_id, until_id)
    while max(bucket.floor, base_id) < until_id:
        parts = [_RAISE(until_id, subject, base_id, bucket.floor or None), _DROP_CHUNKS(subject, base_id, until_id)]
        (row, *_) = yield from surely(Batch(parts))
        if row["[applied]"]:
            return
        bucket = bucket._replace(floor=row["floor"] or 0)
        yield pause()


def _purge_below(subject: str, base_id: int, until_id: int) -> Steps[None]:
    """Purge all buckets before this one, each of which is sealed; readers find them no longer."""
    after = -1
    while rows := (yield from surely(_BELOW(subject, after, base_id, AT_ONCE_MAX))):
        bases = [row["base_id"] for row in rows]
        emptying = [Batch([_CLOSE(until_id, subject, each), _DROP_CHUNKS(subject, each, until_id)]) for each in bases]
        yield from surely(AtOnce(emptying))
        after = bases[-1]
        yield from surely(_DROP_UNTIL(subject, after))


def _partly(steps: Steps[object]) -> Steps[None]:
    """Take steps that change one thing after the other."""
    try:
        yield from steps
    except StoreUnavailable as error:
        raise OutcomeUnknown(f"{error}; it may have been done in part: do it again") from error
