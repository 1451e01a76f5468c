"""The messages that were delivered last, so that who lags a little, or comes back, costs the store nothing.

Owns:      for each subject one run of consecutive ids; what of all runs is kept, and what goes when that is too much;
           what of it may be shown in place of a page of the log.
Not here:  what enters (trio_broker/fanout.py), who asks (trio_broker/replay.py, trio_broker/broker.py), the store's
           clock (trio_broker/storage.py).
Threads:   the trio thread only; no function here is a checkpoint.

What is kept are the batches that subscribers got, with their wire bytes: who reads them again shares them with all
others. A run is what this broker committed without a hole, so between its ends nobody else can have appended anything,
and what it shows is what the log has:

- A message that was not to be kept is not in the log, and is not shown. Its body is not kept here, either.
- One with an expiration is shown only while it cannot have expired (`StoreClock`). Otherwise the store is asked.
- A batch that does not continue its run (another process appended, or an outcome was not known) begins it anew.
- What is purged is dropped: at once if by this broker, and by another one when a subscription asks the store where the
  log begins.

A subject is kept while somebody listens to it, and then for as long as there is what its last listener got: those whom
nobody ever listened to cost nothing. The oldest batch over all subjects goes first.
"""

import sys
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from persistence import Page, Record
from persistence.headers import headers_size_bytes
from trio_broker.batch import Batch

KEEPING_BYTES = 512
"""What it takes to keep a batch besides the batch."""
EXPIRY_MARGIN_US = 2_000_000
"""A message that expires within this is not shown: stores may count in whole seconds, and clocks drift."""

PURGED_MAX = 1000
"""Subjects of which it is remembered that a flush under way may bring what was purged meanwhile."""


class Recent(NamedTuple):
    """Batches that hold all of a subject's log after some id, in order and without a hole."""

    batches: Sequence[Batch]
    """None: there is nothing after that id."""
    last_id: int
    """The subject's last id, as far as it is known here."""


class _Kept:
    """A batch that is kept."""

    __slots__ = ("batch", "lifetimes", "shown_until_us")

    def __init__(self, batch: Batch, lifetimes: Sequence[int | None], shown_until_us: int) -> None:
        self.batch = batch
        self.lifetimes = lifetimes
        """By message: how many seconds it is kept; None: until it is deleted."""
        self.shown_until_us = shown_until_us
        """As long as it is not so late, all of it is in the log. 0: some of it never was."""

    @property
    def size_bytes(self) -> int:
        """What it takes; more once the batch has a second encoding."""
        return self.batch.memory_bytes + KEEPING_BYTES


class _Run:
    """What is kept of one subject: at least one batch, each beginning where the one before ends."""

    __slots__ = ("heard_id", "kept", "last_id")

    def __init__(self) -> None:
        self.kept: deque[_Kept] = deque()
        self.last_id = 0
        self.heard_id = 0
        """The last id that somebody listened to."""

    @property
    def after_id(self) -> int:
        """All ids above this one, up to the last, are in it."""
        return self.kept[0].batch.after_id


class Cache:
    """The batches that were delivered last, over all subjects."""

    def __init__(self, max_bytes: int, latest_us: Callable[[], int]) -> None:
        """Keep up to ``max_bytes``, by `Batch.memory_bytes` and a little for each; 0: nothing.

        ``latest_us`` says how late it may be by the store's clock.
        """
        self.max_bytes = max_bytes
        self.bytes = 0
        """What is kept."""
        self.hits = 0
        """Pages that were read here."""
        self._latest_us = latest_us
        self._runs: dict[str, _Run] = {}
        self._purged: dict[str, int] = {}  # what comes up to there was purged before it came
        self._oldest: OrderedDict[_Kept, _Run] = OrderedDict()  # all that is kept; what is dropped leaves the middle

    @property
    def subjects(self) -> Mapping[str, object]:
        """Of these something is kept: what is committed next is kept too, whoever listens."""
        return self._runs

    def keep(self, batch: Batch, lifetimes: Sequence[int | None], *, heard: bool) -> None:
        """Keep what was committed, once it counts in the backlog.

        ``lifetimes``: see `NewMessage.expiration_s`, for each of its messages. ``heard``: somebody listens.
        """
        if not self.max_bytes:
            return
        if self._purged and self._was_purged(batch):
            self.forget(batch.subject)
            return
        run = self._runs.get(batch.subject)
        if run is not None and run.last_id != batch.after_id:
            self.forget(batch.subject)
            run = None
        kept = _keepable(batch, lifetimes)
        if kept.size_bytes > self.max_bytes:
            self.forget(batch.subject)
            return
        if run is None:
            run = self._runs[batch.subject] = _Run()
        run.last_id = batch.last_id
        if heard:
            run.heard_id = batch.last_id
        if not kept.batch.messages and run.kept and not run.kept[-1].batch.messages:
            run.kept[-1].batch.last_id = batch.last_id  # holes in a row are one
            return
        kept.batch.leave_backlog(self)
        run.kept.append(kept)
        self._oldest[kept] = run
        self.bytes += kept.size_bytes
        if self.bytes > self.max_bytes:
            self.shrink(self.max_bytes)

    def end_after(self, subject: str, after_id: int) -> int | None:
        """Return the last id of a subject's run if all that follows ``after_id`` is in it, or nothing does."""
        run = self._runs.get(subject)
        if run is None or not run.after_id <= after_id <= run.last_id:
            return None
        return run.last_id

    def read(
        self, subject: str, after_id: int, end_id: int, *, max_messages: int, max_bytes: int
    ) -> Recent | Page | None:
        """Return what follows ``after_id``; None: ask the store.

        As much as `Store.read` would return, but at least one batch, since it is shared. ``end_id``: an id that the
        subject is known to have: where this has nothing, the store is asked for those up to that.
        """
        found = None
        run = self._runs.get(subject)
        if run is not None and run.after_id <= after_id <= run.last_id:
            place = bisect_right(run.kept, after_id, key=_last_id)
            if place < len(run.kept):
                latest_us = self._latest_us() + EXPIRY_MARGIN_US
                found = _batches(run, place, latest_us, max_messages, max_bytes) or _page(
                    run, place, after_id, latest_us, max_messages, max_bytes
                )
            elif end_id <= after_id:
                found = Recent((), run.last_id)
        self.hits += found is not None
        return found

    def drop(self, subject: str, until_id: int) -> None:
        """Keep no message of a subject up to ``until_id``, which is not above its last id."""
        run = self._runs.get(subject)
        if until_id > (run.last_id if run is not None else 0):
            self._purged[subject] = until_id
            if len(self._purged) > PURGED_MAX:
                del self._purged[next(iter(self._purged))]
        if run is None:
            return
        dropped = 0
        for place, kept in enumerate(run.kept, 1):
            if kept.batch.after_id >= until_id:
                break
            if kept.batch.messages and kept.batch.messages[0].id <= until_id:
                dropped = place
        for _ in range(dropped):
            kept = run.kept.popleft()
            del self._oldest[kept]
            self._let_go(kept)
        if not run.kept:
            del self._runs[subject]

    def forget(self, subject: str) -> None:
        """Keep nothing of a subject."""
        run = self._runs.pop(subject, None)
        if run is not None:
            for kept in run.kept:
                del self._oldest[kept]
                self._let_go(kept)

    def shrink(self, max_bytes: int) -> None:
        """Let the oldest go until no more than ``max_bytes`` are kept."""
        while self.bytes > max_bytes:
            kept, run = self._oldest.popitem(last=False)
            run.kept.popleft()
            self._let_go(kept)
            if not run.kept or run.after_id > run.heard_id:  # nobody has come back in time
                self.forget(kept.batch.subject)

    def _was_purged(self, batch: Batch) -> bool:
        """Say whether what comes only now was purged, some of it at least."""
        purged_id = self._purged.get(batch.subject, 0)
        if batch.last_id >= purged_id:
            self._purged.pop(batch.subject, None)
        return batch.after_id < purged_id

    def _let_go(self, kept: _Kept) -> None:
        self.bytes -= kept.size_bytes
        kept.batch.return_to_backlog()


def _keepable(batch: Batch, lifetimes: Sequence[int | None]) -> _Kept:
    shortest = lifetimes[0]
    if lifetimes.count(shortest) == len(lifetimes) and shortest != 0:  # as nearly always
        return _Kept(batch, lifetimes, _expires_us(batch.messages[0].published_us, shortest))
    if 0 in lifetimes:  # the log does not have all of it, and neither does this
        pairs = [pair for pair in zip(batch.messages, lifetimes, strict=True) if pair[1] != 0]
        messages = [message for message, _ in pairs]
        logged = Batch.replayed(batch.subject, batch.after_id, messages, (), batch.last_id)
        return _Kept(logged, [lifetime for _, lifetime in pairs], 0)
    shortest = min(lifetime for lifetime in lifetimes if lifetime is not None)
    # the first is the oldest: none of them can expire before
    return _Kept(batch, lifetimes, _expires_us(batch.messages[0].published_us, shortest))


def _batches(run: _Run, place: int, latest_us: int, max_messages: int, max_bytes: int) -> Recent | None:
    """Return batches as they were delivered, as far as the log has all of them."""
    batches: list[Batch] = []
    messages = size_bytes = 0
    while place < len(run.kept) and run.kept[place].shown_until_us > latest_us:
        batch = run.kept[place].batch
        messages += batch.count
        size_bytes += batch.size_bytes
        if batches and (messages > max_messages or size_bytes > max_bytes):
            break
        batch.committed_s = None  # how long ago that was says nothing of this broker any more
        batches.append(batch)
        place += 1
    return Recent(batches, run.last_id) if batches else None


def _page(run: _Run, place: int, after_id: int, latest_us: int, max_messages: int, max_bytes: int) -> Page | None:
    """Return single messages, up to the first that may have expired."""
    records: list[Record] = []
    size_bytes = 0
    while place < len(run.kept):
        kept = run.kept[place]
        for message, lifetime in zip(kept.batch.messages, kept.lifetimes, strict=True):
            _, id_, body, headers, time_us = message
            if id_ <= after_id:
                continue
            expires_us = _expires_us(time_us, lifetime)
            size_bytes += len(body) + headers_size_bytes(headers)
            full = len(records) == max_messages or (records and size_bytes > max_bytes)
            if full or expires_us <= latest_us:
                scanned_to = id_ - 1
                return Page(records, scanned_to, run.last_id) if scanned_to > after_id else None
            records.append(Record(id_, body, headers, time_us, None if lifetime is None else expires_us))
        place += 1
    return Page(records, run.last_id, run.last_id)


def _expires_us(time_us: int, lifetime_s: int | None) -> int:
    return sys.maxsize if lifetime_s is None else time_us + lifetime_s * 1_000_000


def _last_id(kept: _Kept) -> int:
    return kept.batch.last_id
