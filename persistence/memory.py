"""A store that keeps everything in this process: for tests, and for messages that need not survive it.

Owns:      the logs and registers, and the order in which messages expire.
Not here:  durability: nothing outlives the `MemoryStore`.
Threads:   the trio thread only. Each method is one checkpoint, and then runs to its end without another.
"""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

import trio

from persistence.facade import (
    NO_HEADERS,
    Appended,
    Duplicate,
    Durability,
    ExpiredId,
    Head,
    InvalidId,
    Key,
    Limits,
    NewMessage,
    Outcome,
    Page,
    Record,
    Register,
    Store,
    Swept,
)
from persistence.guards import judge, key_kept_s, keys_of, out_of_range, sort_out
from persistence.headers import headers_size_bytes

LIMITS = Limits(lanes=1, flush_messages_max=16_384, flush_bytes_max=64 * 1024 * 1024, expiration_max_s=2**31 - 1)
SWEEP_MESSAGES_MAX = 2_000
"""Messages, and keys, that one step of `MemoryStore.sweep` drops at most: about a millisecond."""

_GROUP = attrgetter("group")
_SEGMENT_BITS = 8
_ABSENT = Register(b"", 0)

_Kept = tuple[int, bytes, Mapping[str, bytes], int, int | None]
"""The fields of a `Record`, as a plain tuple: the garbage collector stops looking at those (a third of an append)."""

E = TypeVar("E")


class _Remembered(NamedTuple):
    """What was appended with an idempotency key."""

    message: Duplicate
    expires_us: int | None


class _Expiring(Generic[E]):
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


class _Log:
    """One subject's messages, in segments of 256 ids.

    An emptied segment is dropped whole, which gives its memory back, and reading over a long hole costs nothing.
    """

    __slots__ = ("_numbers", "_segments", "keys", "last_id", "last_time_us")

    def __init__(self) -> None:
        self.last_id = 0
        self.last_time_us = 0
        self.keys: dict[str, _Remembered] = {}
        self._segments: dict[int, dict[int, _Kept]] = {}
        self._numbers: list[int] = []

    def keep(self, id_: int, kept: _Kept) -> None:
        """Add a message, whose id is above all before it."""
        number = id_ >> _SEGMENT_BITS
        segment = self._segments.get(number)
        if segment is None:
            segment = self._segments[number] = {}
            self._numbers.append(number)
        segment[id_] = kept

    def drop(self, id_: int) -> None:
        number = id_ >> _SEGMENT_BITS
        segment = self._segments[number]
        del segment[id_]
        if not segment:
            del self._segments[number]
            del self._numbers[bisect_left(self._numbers, number)]

    def get(self, id_: int) -> Record | None:
        segment = self._segments.get(id_ >> _SEGMENT_BITS, {})
        return Record(*segment[id_]) if id_ in segment else None

    def after(self, after_id: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records with ids above ``after_id``, expired ones among them."""
        found: list[_Kept] = []
        for index in range(bisect_left(self._numbers, (after_id + 1) >> _SEGMENT_BITS), len(self._numbers)):
            segment = self._segments[self._numbers[index]]
            found.extend(kept for id_, kept in segment.items() if id_ > after_id)
            if len(found) >= limit:
                break
        return [Record(*kept) for kept in found[:limit]]

    def first_kept(self, now_us: int) -> int:
        """Return the lowest id still kept; ``last_id + 1`` when none is."""
        for number in self._numbers:
            for id_, (*_, expires_us) in self._segments[number].items():
                if _is_kept(expires_us, now_us):
                    return id_
        return self.last_id + 1


_NO_LOG = _Log()
_NOTHING: list[tuple[str, int]] = []


class MemoryStore(Store):
    """A store in memory. It grows with what is kept and, for good, by a little with each new subject."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._logs: dict[str, _Log] = {}
        self._subjects: list[str] = []  # sorted; the order of code points is that of their UTF-8 bytes
        self._expiring: _Expiring[tuple[str, int]] = _Expiring()
        self._expiring_keys: _Expiring[tuple[str, str]] = _Expiring()
        self._registers: dict[str, Register] = {}
        self._last_version = 0

    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        await trio.lowlevel.checkpoint()
        now_us = self._clock()
        outcomes: list[Outcome] = []
        log_of, log = None, _NO_LOG  # what neighbours have in common is looked up once
        due_us, due = -1, _NOTHING
        left_out = self._judge_groups(batch, now_us) if any(map(_GROUP, batch)) else {}
        for place, message in enumerate(batch):
            if left_out and place in left_out:
                outcomes.append(left_out[place])
                continue
            subject, body, expiration_s, headers, key, expected_last_id, _ = message
            if expiration_s is not None and not 0 <= expiration_s <= LIMITS.expiration_max_s:
                outcomes.append(out_of_range(expiration_s, LIMITS.expiration_max_s))
                continue
            if key or expected_last_id is not None:
                outcome = self._judge(message, now_us)
                if not isinstance(outcome, Appended):
                    outcomes.append(outcome)
                    continue
            if subject != log_of:
                log_of, log = subject, self._logs.get(subject) or self._new_log(subject)
                log.last_time_us = max(now_us, log.last_time_us)
            log.last_id = id_ = log.last_id + 1
            time_us = log.last_time_us
            outcomes.append(Appended(id_, time_us))
            if key:
                self._remember(subject, key, Duplicate(id_, time_us), key_kept_s(expiration_s))
            if expiration_s == 0:
                continue
            expires_us = None
            if expiration_s is not None:
                expires_us = time_us + expiration_s * 1_000_000
                if expires_us != due_us:
                    due_us, due = expires_us, self._expiring.entries_at(expires_us)
                due.append((subject, id_))
            log.keep(id_, (id_, body, dict(headers) if headers else NO_HEADERS, time_us, expires_us))
        return outcomes

    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(subject)
        if log is None:
            return Page([], after_id, 0)
        now_us = self._clock()
        candidates = log.after(after_id, max_messages)
        records: list[Record] = []
        scanned_to, size = after_id, 0
        for record in candidates:
            if _is_kept(record.expires_us, now_us):
                size += len(record.body) + headers_size_bytes(record.headers)
                if records and size > max_bytes:
                    return Page(records, scanned_to, log.last_id)
                records.append(record)
            scanned_to = record.id
        if len(candidates) < max_messages:
            scanned_to = max(after_id, log.last_id)
        return Page(records, scanned_to, log.last_id)

    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        await trio.lowlevel.checkpoint()
        now_us = self._clock()
        return [self._get(subject, id_, now_us) for subject, id_ in keys]

    async def head(self, subject: str) -> Head:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(subject)
        if log is None:
            return Head(1, 0)
        return Head(log.first_kept(self._clock()), log.last_id)

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        await trio.lowlevel.checkpoint()
        start = bisect_right(self._subjects, after)
        return self._subjects[start : start + limit]

    async def load(self, name: str) -> Register | None:
        await trio.lowlevel.checkpoint()
        return self._registers.get(name)

    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        await trio.lowlevel.checkpoint()
        return sorted(item for item in self._registers.items() if item[0].startswith(prefix))

    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        await trio.lowlevel.checkpoint()
        if self._registers.get(name, _ABSENT).version != version:
            return None
        self._last_version += 1
        self._registers[name] = Register(value, self._last_version)
        return self._last_version

    async def delete(self, name: str, *, version: int) -> bool:
        await trio.lowlevel.checkpoint()
        register = self._registers.get(name)
        if register is None or register.version != version:
            return False
        del self._registers[name]
        return True

    async def sweep(self) -> Swept:
        await trio.lowlevel.checkpoint()
        now_us = self._clock()
        due = self._expiring.take_due(now_us, SWEEP_MESSAGES_MAX)
        for subject, id_ in due:
            self._logs[subject].drop(id_)
        for subject, key in self._expiring_keys.take_due(now_us, SWEEP_MESSAGES_MAX):
            keys = self._logs[subject].keys
            if key in keys and not _is_kept(keys[key].expires_us, now_us):  # else it was used again
                del keys[key]
        return Swept(len(due), more=self._expiring.is_due(now_us) or self._expiring_keys.is_due(now_us))

    async def now(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._clock()

    def limits(self) -> Limits:
        return LIMITS

    def durability(self) -> Durability:
        return Durability(
            kind="memory",
            setting="kept in this process only",
            durable=False,
            meaning="NOT DURABLE: acknowledged messages do not outlive the process",
        )

    def _new_log(self, subject: str) -> _Log:
        log = self._logs[subject] = _Log()
        insort(self._subjects, subject)
        return log

    def _judge(self, message: NewMessage, now_us: int) -> Outcome:
        (outcome,) = self._judge_all([message], now_us)
        return outcome

    def _judge_all(self, messages: Sequence[NewMessage], now_us: int) -> Sequence[Outcome]:
        """Judge messages of one subject."""
        log = self._logs.get(messages[0].subject)
        if log is None:
            return judge(messages, 0, now_us, {})
        known = {
            key: remembered.message
            for key in keys_of(messages)
            if (remembered := log.keys.get(key)) and _is_kept(remembered.expires_us, now_us)
        }
        return judge(messages, log.last_id, max(now_us, log.last_time_us), known)

    def _judge_groups(self, batch: Sequence[NewMessage], now_us: int) -> dict[int, Outcome]:
        """Return by its place what is not appended, and why, of a batch with groups; the rest may be."""
        outcomes, places, _ = sort_out(batch, LIMITS.expiration_max_s)
        for mine in places.values():
            for place, outcome in zip(mine, self._judge_all([batch[place] for place in mine], now_us), strict=True):
                outcomes[place] = outcome
        return {place: outcome for place, outcome in enumerate(outcomes) if not isinstance(outcome, Appended)}

    def _remember(self, subject: str, key: str, message: Duplicate, kept_s: int | None) -> None:
        expires_us = None
        if kept_s is not None:
            expires_us = message.time_us + kept_s * 1_000_000
            self._expiring_keys.add(expires_us, (subject, key))
        self._logs[subject].keys[key] = _Remembered(message, expires_us)

    def _get(self, subject: str, id_: int, now_us: int) -> Record | InvalidId | ExpiredId:
        log = self._logs.get(subject)
        if log is None:
            return InvalidId(0)
        if not 1 <= id_ <= log.last_id:
            return InvalidId(log.last_id)
        record = log.get(id_)
        if record is None or not _is_kept(record.expires_us, now_us):
            return ExpiredId(log.last_id)
        return record


def _is_kept(expires_us: int | None, now_us: int) -> bool:
    return expires_us is None or now_us < expires_us
