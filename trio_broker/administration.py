"""What operators ask and do about subjects: list, look at, purge, delete.

Owns:      what each answer is made of; how a subject is deleted that others publish to.
Not here:  gRPC (trio_broker/service/admin.py), the store (persistence/).
Threads:   the trio thread only.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import structlog
import trio

from persistence import Key, Record, Store
from trio_broker import errors
from trio_broker.errors import BrokerError, InvalidPage
from trio_broker.fanout import Fanout
from trio_broker.message import SubjectInfo, SubjectPage, time_of
from trio_broker.paging import never_assigned
from trio_broker.subject import check_subject, is_prefix

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1000
LOOKS = 4
"""Subjects that are looked at together, over all calls: each look holds two messages, which may be of any size."""
DELETE_ATTEMPTS = 10
"""How often a subject is deleted that somebody publishes to meanwhile, before whoever asks hears of it."""
_SURROGATES = range(0xD800, 0xE000)

log = structlog.get_logger()


class Administration:
    """Subjects as operators see them. Each method is a checkpoint.

    All raise `StorageUnavailable` when the store does not answer, and `BrokerClosed` when the broker stops meanwhile;
    those that drop messages `StorageFull`, if there is no space even for noting that.
    """

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        reading: Callable[[], AbstractContextManager[None]],
        refusal: Callable[[], BrokerError | None],
        dropped: Callable[[str, int], None],
    ) -> None:
        """Look at and change ``store``.

        Args:
            store: where the subjects are.
            fanout: knows who listens.
            reading: is entered around what the store is asked.
            refusal: says why nothing is changed any more.
            dropped: is told of a subject of which nothing is kept any more up to an id.
        """
        self._store = store
        self._fanout = fanout
        self._reading = reading
        self._refusal = refusal
        self._dropped = dropped
        self._looks = trio.CapacityLimiter(LOOKS)

    async def list(self, prefix: str = "", *, size: int = 0, after: str = "") -> SubjectPage:
        """Return subjects that begin with ``prefix``, in the order of their UTF-8 bytes, a page at a time.

        Args:
            prefix: of their names; empty: all. One that no name can begin with is of none.
            size: how many at most; 0: `PAGE_SIZE`; no more than `PAGE_SIZE_MAX`.
            after: `SubjectPage.next_token` of the page before.

        Raises:
            InvalidPage: a size that no page can have.
        """
        if size < 0:
            raise InvalidPage(f"page_size is {size}; it cannot be negative")
        size = min(size or PAGE_SIZE, PAGE_SIZE_MAX)
        names: list[str] = []
        begin, more = after, is_prefix(prefix)
        if more:
            begin = max(after, _just_below(prefix))
        with self._reading():
            while more and len(names) <= size:
                found = await self._store.subjects(begin, limit=size + 1)
                names += [name for name in found if name.startswith(prefix)]
                more = len(found) > size and (found[-1] < prefix or found[-1].startswith(prefix))
                begin = found[-1] if found else begin
            subjects = [await self._look_at(name) for name in names[:size]]
        return SubjectPage(subjects, names[size - 1] if len(names) > size else "")

    async def info(self, subject: str) -> SubjectInfo:
        """Return what is known of one subject, also of one to which nothing was ever published.

        Raises:
            InvalidSubject.
        """
        check_subject(subject)
        with self._reading():
            return await self._look_at(subject)

    async def purge(self, subject: str, until_id: int = 0, *, asked_by: str = "") -> SubjectInfo:
        """Drop the messages of a subject up to an id, or all that are there now (0); return what it is then.

        ``asked_by`` is logged.

        Raises:
            InvalidSubject; InvalidId: the id was never assigned.
        """
        self._check_changing(subject)
        with self._reading():
            last_id = (await self._store.head(subject)).last_id
            if not 0 <= until_id <= last_id:
                raise never_assigned(subject, until_id, last_id)
            until_id = until_id or last_id
            try:
                await self._store.purge(subject, until_id)
            finally:
                self._dropped(subject, until_id)  # also when it is not known whether it was purged
            log.info("subject_purged", subject=subject, until_id=until_id, peer=asked_by)
            return await self._look_at(subject)

    async def delete(self, subject: str, expected_last_id: int | None = None, *, asked_by: str = "") -> SubjectInfo:
        """Drop all messages of a subject, and list it no longer until something is published to it; its ids go on.

        ``asked_by`` is logged.

        Raises:
            InvalidSubject; Conflict: its last id is not the expected one, or keeps growing.
        """
        self._check_changing(subject)
        with self._reading():
            last_id = await self._delete(subject, expected_last_id)
            log.info("subject_deleted", subject=subject, until_id=last_id, peer=asked_by)
            return await self._look_at(subject)

    async def _delete(self, subject: str, expected_last_id: int | None) -> int:
        last_id = (await self._store.head(subject)).last_id
        for _ in range(DELETE_ATTEMPTS):
            if expected_last_id not in (None, last_id):
                text = f"the last id of {subject!r} is {last_id}, not {expected_last_id}: nothing was deleted"
                raise errors.Conflict(text, last_id=last_id)
            conflict = None
            try:
                conflict = await self._store.delete_subject(subject, last_id)
            finally:
                if conflict is None:  # also when it is not known whether it was deleted
                    self._dropped(subject, last_id)
            if conflict is None:
                return last_id
            last_id = conflict.last_id
        text = f"{subject!r} is published to all the time: nothing was deleted; purge it, or stop its publishers"
        raise errors.Conflict(text, last_id=last_id)

    async def _look_at(self, subject: str) -> SubjectInfo:
        async with self._looks:
            first_id, last_id = await self._store.head(subject)
            found = await self._store.get([Key(subject, first_id), Key(subject, last_id)])
        first_at, last_at = [time_of(record.time_us) if isinstance(record, Record) else None for record in found]
        return SubjectInfo(subject, first_id, last_id, first_at, last_at, self._fanout.subscribers_of(subject))

    def _check_changing(self, subject: str) -> None:
        if (refusal := self._refusal()) is not None:
            raise refusal
        check_subject(subject)


def _just_below(prefix: str) -> str:
    """Return a text that comes before all that begin with ``prefix``, and after nearly all that come before those."""
    if not prefix:
        return ""
    before = ord(prefix[-1]) - 1
    if before in _SURROGATES:
        before = _SURROGATES.start - 1
    return prefix[:-1] + chr(before) + chr(sys.maxunicode)
