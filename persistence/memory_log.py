"""What a store in memory is made of: a subject's log, and what expires when.

Owns:      how messages are kept, found and let go; the bounds of a step of letting go are its caller's.
Not here:  what is appended, and what a caller is told (persistence/memory.py).
Threads:   the trio thread only; nothing here waits.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Generic, NamedTuple, TypeVar

from persistence.facade import Duplicate, Record

_SEGMENT_BITS = 8

Kept = tuple[int, bytes, Mapping[str, bytes], int, int | None]
"""The fields of a `Record`, as a plain tuple: the garbage collector stops looking at those (a third of an append)."""

E = TypeVar("E")


class Remembered(NamedTuple):
    """What was appended with an idempotency key."""

    message: Duplicate
    expires_us: int | None


class Expiring(Generic[E]):
    """What is to be dropped, by when."""

    def __init__(self) -> None:
        self._entries: defaultdict[int, list[E]] = defaultdict(list)
        self._times: list[int] = []  # a heap of the keys of _entries

    def add(self, expires_us: int, entry: E) -> None:
        self.entries_at(expires_us).append(entry)

    def entries_at(self, expires_us: int) -> list[E]:
        """Return where entries for that time are put. At least one has to be, before others are taken."""
        due = self._entries[expires_us]
        if not due:
            heappush(self._times, expires_us)
        return due

    def is_due(self, now_us: int) -> bool:
        return bool(self._times) and self._times[0] <= now_us

    def take_due(self, now_us: int, limit: int) -> list[E]:
        """Return and forget up to ``limit`` entries that are due."""
        taken: list[E] = []
        while self.is_due(now_us) and len(taken) < limit:
            due = self._entries[self._times[0]]
            rest = max(0, len(due) - (limit - len(taken)))
            taken += due[rest:]
            del due[rest:]
            if not due:
                del self._entries[heappop(self._times)]
        return taken


class Log:
    """One subject's messages, in segments of 256 ids.

    An emptied segment is dropped whole, which gives its memory back, and reading over a long hole costs nothing.
    """

    __slots__ = ("_numbers", "_segments", "floor", "keys", "last_id", "last_time_us", "listed")

    def __init__(self) -> None:
        self.last_id = 0
        self.last_time_us = 0
        self.floor = 0
        """Messages up to it are not kept any more: they are still there until `drop_purged` has come to them."""
        self.listed = True
        self.keys: dict[str, Remembered] = {}  # in the order of their ids
        self._segments: dict[int, dict[int, Kept]] = {}
        self._numbers: list[int] = []

    def keep(self, id_: int, kept: Kept) -> None:
        """Add a message, whose id is above all before it."""
        number = id_ >> _SEGMENT_BITS
        segment = self._segments.get(number)
        if segment is None:
            segment = self._segments[number] = {}
            self._numbers.append(number)
        segment[id_] = kept

    def drop(self, id_: int) -> bool:
        """Drop a message; say whether it was there."""
        number = id_ >> _SEGMENT_BITS
        segment = self._segments.get(number, {})
        if id_ not in segment:
            return False
        del segment[id_]
        if not segment:
            del self._segments[number]
            del self._numbers[bisect_left(self._numbers, number)]
        return True

    def drop_purged(self, limit: int) -> int:
        """Drop about ``limit`` messages that are not above the floor; return how many; 0: none is left."""
        dropped = 0
        while self._numbers and dropped < limit:
            purged = [id_ for id_ in self._segments[self._numbers[0]] if id_ <= self.floor]
            if not purged:
                break
            for id_ in purged:
                self.drop(id_)
            dropped += len(purged)
        return dropped

    def forget_purged_keys(self, until_id: int, limit: int) -> bool:
        """Forget some of the keys of messages up to an id; say whether there are more."""
        for _ in range(limit):
            key = next(iter(self.keys), None)
            if key is None or self.keys[key].message.id > until_id:
                return False
            del self.keys[key]
        return True

    def get(self, id_: int) -> Record | None:
        segment = self._segments.get(id_ >> _SEGMENT_BITS, {})
        return Record(*segment[id_]) if id_ > self.floor and id_ in segment else None

    def after(self, after_id: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records with ids above ``after_id``, expired ones among them."""
        after_id = max(after_id, self.floor)
        found: list[Kept] = []
        for index in range(bisect_left(self._numbers, (after_id + 1) >> _SEGMENT_BITS), len(self._numbers)):
            segment = self._segments[self._numbers[index]]
            found.extend(kept for id_, kept in segment.items() if id_ > after_id)
            if len(found) >= limit:
                break
        return [Record(*kept) for kept in found[:limit]]

    def first_kept(self, now_us: int) -> int:
        """Return the lowest id still kept; ``last_id + 1`` when none is."""
        for number in self._numbers[bisect_left(self._numbers, (self.floor + 1) >> _SEGMENT_BITS) :]:
            for id_, (*_, expires_us) in self._segments[number].items():
                if id_ > self.floor and is_kept(expires_us, now_us):
                    return id_
        return self.last_id + 1


def is_kept(expires_us: int | None, now_us: int) -> bool:
    return expires_us is None or now_us < expires_us
