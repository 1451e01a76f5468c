"""A store that keeps everything in this process: for tests, and for messages that need not survive it.

Owns:      the logs and registers, and the order in which messages expire.
Not here:  durability: nothing outlives the `MemoryStore`.
Threads:   the trio thread only. Each method is one checkpoint, and then runs to its end without another.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter

import trio

from persistence.facade import (
    KEY_KEPT_MIN_S,
    NO_HEADERS,
    Appended,
    Conflict,
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
from persistence.floors import to_restore
from persistence.guards import judge, key_kept_s, keys_of, out_of_range, sort_out
from persistence.headers import headers_size_bytes
from persistence.memory_log import Expiring, Log, Remembered, is_kept

LIMITS = Limits(lanes=1, flush_messages_max=16_384, flush_bytes_max=64 * 1024 * 1024, expiration_max_s=2**31 - 1)
SWEEP_MESSAGES_MAX = 2_000
"""Messages, and keys, that one step of `MemoryStore.sweep` drops at most: about a millisecond."""

_GROUP = attrgetter("group")
_ABSENT = Register(b"", 0)
_NO_LOG = Log()
_NOTHING: list[tuple[str, int]] = []


class MemoryStore(Store):
    """A store in memory. It grows with what is kept and, for good, by a little with each new subject."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._logs: dict[str, Log] = {}
        self._subjects: list[str] = []  # sorted; the order of code points is that of their UTF-8 bytes
        self._expiring: Expiring[tuple[str, int]] = Expiring()
        self._expiring_keys: Expiring[tuple[str, str]] = Expiring()
        self._purged: deque[str] = deque()
        self._purged_keys: deque[tuple[int, str, int]] = deque()  # when they may go, of which subject, up to which id
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
                if not log.listed:
                    self._list(subject, log)
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
            if is_kept(record.expires_us, now_us):
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

    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {subject: self._logs[subject].last_id for subject in subjects if subject in self._logs}

    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        await trio.lowlevel.checkpoint()
        start = bisect_right(self._subjects, after)
        return self._subjects[start : start + limit]

    async def purge(self, subject: str, until_id: int) -> int:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(subject, _NO_LOG)
        self._purge(subject, log, min(until_id, log.last_id))
        return log.last_id

    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(subject, _NO_LOG)
        if log.last_id != last_id:
            return Conflict(log.last_id)
        self._purge(subject, log, last_id)
        if log.listed and log is not _NO_LOG:
            del self._subjects[bisect_left(self._subjects, subject)]
            log.listed = False
        return None

    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(subject)
        before_id = log.last_id if log else 0
        new, last_id = to_restore(records, last_id, before_id)
        if last_id == before_id:
            return 0
        log = log or self._new_log(subject)
        if not log.listed:
            self._list(subject, log)
        for record in new:
            log.keep(record.id, (record.id, record.body, dict(record.headers), record.time_us, record.expires_us))
            log.last_time_us = max(log.last_time_us, record.time_us)
            if record.expires_us is not None:
                self._expiring.add(record.expires_us, (subject, record.id))
        log.last_id = last_id
        return len(new)

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
        removed = sum(self._logs[subject].drop(id_) for subject, id_ in due)
        for subject, key in self._expiring_keys.take_due(now_us, SWEEP_MESSAGES_MAX):
            keys = self._logs[subject].keys
            if key in keys and not is_kept(keys[key].expires_us, now_us):  # else it was used again
                del keys[key]
        dropped, more = self._sweep_purged(now_us)
        return Swept(
            removed + dropped, more=more or self._expiring.is_due(now_us) or self._expiring_keys.is_due(now_us)
        )

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

    def _new_log(self, subject: str) -> Log:
        log = self._logs[subject] = Log()
        insort(self._subjects, subject)
        return log

    def _list(self, subject: str, log: Log) -> None:
        """List a subject again that was deleted."""
        insort(self._subjects, subject)
        log.listed = True

    def _purge(self, subject: str, log: Log, until_id: int) -> None:
        if until_id <= log.floor:
            return
        log.floor = until_id
        self._purged.append(subject)
        forget_us = max(self._clock(), log.last_time_us) + KEY_KEPT_MIN_S * 1_000_000
        self._purged_keys.append((forget_us, subject, until_id))

    def _sweep_purged(self, now_us: int) -> tuple[int, bool]:
        """Drop some of what was purged; return how many messages, and whether there is more to drop now."""
        dropped = 0
        if self._purged:
            dropped = self._logs[self._purged[0]].drop_purged(SWEEP_MESSAGES_MAX)
            if not dropped:
                self._purged.popleft()
        if self._keys_are_due(now_us):
            _, subject, until_id = self._purged_keys[0]
            if not self._logs[subject].forget_purged_keys(until_id, SWEEP_MESSAGES_MAX):
                self._purged_keys.popleft()
        return dropped, bool(self._purged) or self._keys_are_due(now_us)

    def _keys_are_due(self, now_us: int) -> bool:
        return bool(self._purged_keys) and self._purged_keys[0][0] <= now_us

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
            if (remembered := log.keys.get(key)) and is_kept(remembered.expires_us, now_us)
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
        keys = self._logs[subject].keys
        keys.pop(key, None)  # one that has expired: the new one is the last
        keys[key] = Remembered(message, expires_us)

    def _get(self, subject: str, id_: int, now_us: int) -> Record | InvalidId | ExpiredId:
        log = self._logs.get(subject)
        if log is None:
            return InvalidId(0)
        if not 1 <= id_ <= log.last_id:
            return InvalidId(log.last_id)
        record = log.get(id_)
        if record is None or not is_kept(record.expires_us, now_us):
            return ExpiredId(log.last_id)
        return record
