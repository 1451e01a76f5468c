"""Reads of the log for those who call once: fetch by id, fetch a range.

Owns:      `Reading`: lookups and pages, how a read that fails is told, and the end of reads when the broker stops.
Not here:  what subscribers read (trio_broker/replay.py), where a page is cut (trio_broker/paging.py).
Threads:   the trio thread only.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import assert_never

import trio

import persistence
from persistence import Key, Record, Store
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    ExpiredId,
    InvalidId,
    InvalidSubject,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.message import Message, MessagePage
from trio_broker.paging import PAGE_MAX_MESSAGES, cut_page, never_assigned
from trio_broker.start import After, Earliest, Last, New
from trio_broker.storage import Availability
from trio_broker.subject import check_subject
from trio_broker.validation import ID_MAX, check_range


class Reading:
    """The store as callers read it, until `stop`."""

    def __init__(self, store: Store, availability: Availability) -> None:
        """``availability`` hears of a store that cannot be read."""
        self._store = store
        self._availability = availability
        self._stopped = False
        self._reads: set[trio.CancelScope] = set()

    async def fetch_many(self, keys: Sequence[Key]) -> list[Message | BrokerError]:
        """See `Broker.fetch_many`. A checkpoint."""
        self._check()
        faults = [_fault(key) for key in keys]
        asked = [Key(subject, _clamped(id_)) for (subject, id_), fault in zip(keys, faults, strict=True) if not fault]
        with self.guarded():
            found = iter(await self._store.get(asked))
        return [fault or _answer(key, next(found)) for key, fault in zip(keys, faults, strict=True)]

    async def fetch_range(
        self, subject: str, after_id: int, until_id: int, max_messages: int, max_bytes: int
    ) -> MessagePage:
        """See `Broker.fetch_range`. A checkpoint."""
        self._check()
        check_subject(subject)
        check_range(after_id, until_id, max_messages)
        until_id = until_id or ID_MAX
        most = min(max_messages or PAGE_MAX_MESSAGES, PAGE_MAX_MESSAGES, max(1, until_id - after_id))
        with self.guarded():
            page = await self._store.read(subject, after_id, max_messages=most, max_bytes=max_bytes)
        if after_id > page.last_id:
            raise never_assigned(subject, after_id, page.last_id)
        return cut_page(subject, page, after_id, until_id, max_bytes)

    @contextmanager
    def guarded(self) -> Generator[None]:
        """Read the store; raise how it fails as ours, and if the broker stops meanwhile, at once `BrokerClosed`."""
        with trio.CancelScope() as scope:
            self._reads.add(scope)
            try:
                yield
            except persistence.StoreError as error:
                self._availability.failed(error)
                if isinstance(error, persistence.StoreFull):  # to purge takes space, too
                    raise StorageFull("the store has no space left; nothing was changed") from error
                raise StorageUnavailable("the store is not available") from error
            finally:
                self._reads.discard(scope)
        if scope.cancelled_caught:
            raise closed()

    def stop(self) -> None:
        """End reads that wait, and refuse more, with `BrokerClosed`."""
        self._stopped = True
        for read in self._reads:
            read.cancel()

    def _check(self) -> None:
        if self._stopped:
            raise closed()


def begin_after(start: New | Earliest | Last | After, subject: str, first_id: int, last_id: int) -> int:
    """Return after which id a subscription begins, in a log from ``first_id`` to ``last_id``.

    Raises:
        InvalidId: it is to begin after an id that was never assigned.
    """
    match start:
        case New():
            return last_id
        case Earliest():
            return first_id - 1
        case Last(count):
            return max(first_id - 1, last_id - count)
        case After(after_id):
            if after_id > last_id:
                raise never_assigned(subject, after_id, last_id)
            return after_id
        case _:
            assert_never(start)


def closed() -> BrokerClosed:
    """Return what every call of a broker raises after its end."""
    return BrokerClosed("the broker is closed")


def _fault(key: Key) -> InvalidSubject | None:
    if not isinstance(key.id, int):
        raise TypeError(f"an id is an int, not {type(key.id).__name__}")
    try:
        check_subject(key.subject)
    except InvalidSubject as fault:
        return fault
    return None


def _clamped(id_: int) -> int:
    """Return an id that any store can look up, and as invalid as ``id_`` if it is."""
    return max(0, min(id_, ID_MAX))


def _answer(key: Key, found: Record | persistence.InvalidId | persistence.ExpiredId) -> Message | InvalidId | ExpiredId:
    match found:
        case Record():
            return Message(key.subject, found.id, found.body, found.headers, found.time_us)
        case persistence.InvalidId(last_id):
            return never_assigned(key.subject, key.id, last_id)
        case persistence.ExpiredId(last_id):
            text = f"id {key.id} of {key.subject!r} is no longer kept (or never was: expiration 0)"
            return ExpiredId(text, last_id=last_id)
