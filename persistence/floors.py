"""Purging and restoring, as far as it is the same for stores that sweep: what is dropped next, what is new.

Owns:      the rules.
Not here:  where a store keeps its floors, and who looks at them.
Threads:   any: pure functions.
"""

from collections.abc import Iterable, Sequence

from persistence.facade import Record


def drop_up_to(purged: Iterable[tuple[int, int]], until_id: int, messages_max: int, bytes_max: int) -> int:
    """Return up to which id one step drops, of ids and sizes in bytes in order: little enough, and at least one."""
    size_bytes = 0
    for number, (id_, body_bytes) in enumerate(purged, 1):
        size_bytes += body_bytes
        if size_bytes > bytes_max or number == messages_max:
            return id_
    return until_id


def to_restore(records: Sequence[Record], last_id: int, before_id: int) -> tuple[list[Record], int]:
    """Return what of a log comes after a subject's last id, and which is its last id then."""
    new = [record for record in records if record.id > before_id]
    return new, max([before_id, last_id, *(record.id for record in new)])
