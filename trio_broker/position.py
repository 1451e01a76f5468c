"""Where one subscriber is in its subject's log, and what it gets next: of the live stream, or of the log.

Owns:      the states of a subscription and the rules between them; joining log and live stream without gap or
           duplicate; what is missing, and why.
Not here:  the buffer that is drained, and what becomes of a full one (trio_broker/subscription.py); reading the log
           (trio_broker/replay.py).
Threads:   none: plain data, no I/O, no clock.

Everything up to `Position.taken_id` was taken over for the subscriber, or is missing for good. A live batch is taken
if it continues that. Otherwise pages of the log come first, and live batches that arrive meanwhile are collected, as
far as they fit: a page is used only up to the first of those, and, beyond what was offered so far, only up to the
first id that it lacks. The stream is live again when all that was offered was taken.

    REPLAYING, LAGGING --a page is about to be read, and the end is near--> JOINING --all was taken--> LIVE
    LIVE --the buffer is full, or was dropped--> LAGGING        LIVE --a batch leaves a hole--> JOINING
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from persistence import Page
from persistence.rows import Row, rows_of
from trio_broker.batch import Batch, Replayed
from trio_broker.cache import Recent
from trio_broker.message import LIVE_BUFFER, UNAVAILABLE, Gap

ASIDE = -1
"""`Position.follows` while no live batch can be taken without a closer look."""


class State(Enum):
    """What a subscriber gets next."""

    REPLAYING = "replaying"
    """Pages of the log, from its start position."""
    JOINING = "joining"
    """A page of the log that may reach the live stream, of which the beginning is collected."""
    LIVE = "live"
    """Live batches."""
    LAGGING = "lagging"
    """Pages of the log, since it could not keep up."""


class Piece(NamedTuple):
    """What a page of the log has for the subscriber."""

    replayed: list[Batch]
    """Made of the page: one, or none."""
    joined: list[Batch]
    """What continues it of the live stream."""
    gaps: list[Gap]
    """To be counted."""


class Position:
    """The position of one subscriber."""

    __slots__ = (
        "_behind_as",
        "_collected",
        "_heard_from",
        "_max_bytes",
        "_max_messages",
        "_report_gaps",
        "_settled_id",
        "_taken_id",
        "_until_id",
        "collected_bytes",
        "collected_messages",
        "floor_id",
        "follows",
        "state",
        "subject",
    )

    def __init__(
        self,
        subject: str,
        *,
        after_id: int | None = None,
        until_id: int | None = None,
        end_id: int = 0,
        live: bool = False,
        report_gaps: bool = False,
        max_messages: int,
        max_bytes: int,
    ) -> None:
        """Begin after ``after_id``, or with the first live batch (None); end with ``until_id``.

        ``end_id``: the last id when it was registered, if that is known. ``live``: that is ``after_id``, so there is
        nothing to read. At most ``max_messages`` and ``max_bytes`` are collected of the live stream, or one batch.
        """
        self.subject = subject
        self.follows = ASIDE
        """The id that a live batch must continue to be taken as it is; whoever takes it sets this to its last."""
        self.floor_id = after_id or 0
        """Nothing up to here is ever wanted again."""
        self.collected_messages = 0
        self.collected_bytes = 0
        self._taken_id = after_id
        self._until_id = sys.maxsize if until_id is None else until_id
        self._report_gaps = report_gaps
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._collected: deque[Batch] = deque()  # consecutive, and of what was heard since they were begun the first
        self._settled_id = end_id  # up to here, what was not offered will not be: what the log lacks is missing
        self._behind_as = State.REPLAYING  # until it was live once
        self.state = State.LIVE if live or after_id is None else self._behind()
        self._heard_from = after_id if live else None  # everything above was offered live
        if live:
            self._behind_as = State.LAGGING
            self._step_in()

    @property
    def taken_id(self) -> int:
        """The last id that was taken over, or is missing; 0: none is known yet."""
        return self.follows if self.follows != ASIDE else self._taken_id or 0

    @property
    def settled_id(self) -> int:
        """An id that the subject has: the last that was offered, or was there when this began."""
        return self._settled_id

    @property
    def behind(self) -> bool:
        """A page of the log is needed before anything else can be taken."""
        return self.state is not State.LIVE

    @property
    def finished(self) -> bool:
        """All up to its end was taken."""
        return self.taken_id >= self._until_id

    def arrive(self, batch: Batch) -> Batch | None:
        """Hear of a live batch. Return what of it continues the position, to be told to `take` or `leave`; or None."""
        if self.state is State.LAGGING and self._heard_from is not None:  # who stalls costs the others little
            if batch.last_id > self._settled_id:
                self._settled_id = batch.last_id
            return None
        self._step_aside()
        if self._heard_from is None:
            self._heard_from = batch.after_id
        self._settled_id = max(self._settled_id, batch.last_id)
        if self.state is State.JOINING:
            self._collect(batch)
        if self.state is not State.LIVE:
            return None
        if self._taken_id is None:
            self._taken_id = self.floor_id = batch.after_id
            self._behind_as = State.LAGGING
        if batch.after_id > self._taken_id:
            self.state = State.JOINING
            self._collect(batch)
            return None
        piece = batch.part(self._taken_id, self._until_id)
        if piece is None:
            self._step_in()
        return piece

    def hear(self, last_id: int) -> None:
        """Learn that the log goes up to ``last_id``, whoever appended that: it was offered, or will not be."""
        self._step_aside()
        self._settled_id = max(self._settled_id, last_id)
        if self.state is State.LIVE and self._taken_id is not None and self._taken_id < last_id:
            self.state = State.JOINING
        self._step_in()

    def take(self, batch: Batch) -> None:
        """Note that what `arrive` returned was taken."""
        self._taken_id = batch.last_id
        self._step_in()

    def leave(self, batch: Batch) -> None:
        """Leave the live stream before ``batch``, which has no room: it is read from the log later."""
        self._step_aside()
        self._settled_id = max(self._settled_id, batch.last_id)
        self.state = State.LAGGING

    def rewind(self, delivered_id: int) -> None:
        """Drop what was taken after ``delivered_id``, and what is collected: it is read from the log later."""
        self._step_aside()
        self._drop_collected()
        if self._taken_id is None:
            return
        self._settled_id = max(self._settled_id, self._taken_id)
        self._taken_id = max(delivered_id, self.floor_id)
        self.state = self._behind_as
        self._step_in()

    def end(self) -> None:
        """Take nothing more."""
        self._step_aside()
        self._drop_collected()

    def begin_read(self) -> int:
        """Note that a page is going to be read from the log; return after which id."""
        assert self._taken_id is not None, "who reads the log knows where it is"
        if not self._collected:
            self.state = self._behind()
        return self._taken_id

    def read(self, page: Page) -> Piece:
        """Take what a page has, which was read since `begin_read`, and of what was collected what continues it."""
        after_id = self._taken_id
        assert after_id is not None
        upto_id = self._usable(page, after_id)
        rows = rows_of(page.records)
        if rows and rows[-1][0] > upto_id:
            rows = [row for row in rows if row[0] <= upto_id]
        gaps = list(self._missing(after_id, rows, upto_id))
        told = gaps if self._report_gaps else []
        replayed = []
        if rows or told:
            replayed.append(Batch.replayed(self.subject, after_id, Replayed(self.subject, rows), told, upto_id))
        else:
            self.floor_id = upto_id
        self._taken_id = upto_id
        joined = list(self._join())
        self._look_ahead(used_up=upto_id < page.scanned_to or page.scanned_to >= page.last_id)
        return Piece(replayed, joined, gaps)

    def recall(self, recent: Recent) -> Piece:
        """Take live batches from before, as they are, in place of a page; nothing has happened since `begin_read`."""
        assert self._taken_id is not None
        joined = []
        for batch in recent.batches:
            piece = batch.part(self._taken_id, self._until_id)
            if piece is not None:
                self._taken_id = piece.last_id
                joined.append(piece)
        joined += self._join()
        self._look_ahead(used_up=self._taken_id >= recent.last_id)
        return Piece([], joined, [])

    def _look_ahead(self, *, used_up: bool) -> None:
        """Decide what comes next, after a page of the log of which nothing is left, or something was not read yet."""
        if not self._collected:
            assert self._taken_id is not None
            if used_up and self._taken_id >= min(self._settled_id, self._until_id):
                self.state, self._behind_as = State.LIVE, State.LAGGING
                if self._heard_from is None:
                    self._heard_from = self._taken_id
            else:
                self.state = self._behind()
        self._step_in()

    def _behind(self) -> State:
        """Return what it is while it needs a page: near the end the live stream is collected."""
        assert self._taken_id is not None
        return State.JOINING if self._settled_id - self._taken_id <= self._max_messages else self._behind_as

    def _usable(self, page: Page, after_id: int) -> int:
        """Return up to which id a page counts.

        It may be ahead of the live stream: what it lacks there may be yet to be offered, and not in the log at all.
        """
        upto_id = min(page.scanned_to, self._until_id)
        if self._collected:
            upto_id = min(upto_id, self._collected[0].after_id)  # those have also what is not in the log
        usable_id = max(after_id, min(upto_id, self._settled_id))
        if usable_id == upto_id:
            return usable_id
        for id_, *_ in rows_of(page.records):
            if id_ == usable_id + 1 <= upto_id:
                usable_id = id_
        return usable_id

    def _join(self) -> Iterator[Batch]:
        """Take what was collected, as far as it continues the position."""
        assert self._taken_id is not None
        while self._collected and self._collected[0].after_id <= self._taken_id:
            batch = self._collected.popleft()
            self.collected_messages -= batch.count
            self.collected_bytes -= batch.size_bytes
            piece = batch.part(self._taken_id, self._until_id)
            if piece is not None:
                self._taken_id = piece.last_id
                yield piece

    def _missing(self, after_id: int, rows: Sequence[Row], upto_id: int) -> Iterator[Gap]:
        """Return the ids between the rows as gaps, in order."""
        if len(rows) == upto_id - after_id:
            return
        for id_, *_ in rows:
            if id_ > after_id + 1:
                yield from self._gap(after_id + 1, id_ - 1)
            after_id = id_
        if upto_id > after_id:
            yield from self._gap(after_id + 1, upto_id)

    def _gap(self, first_id: int, last_id: int) -> Iterator[Gap]:
        heard_from = last_id if self._heard_from is None else self._heard_from
        if first_id <= heard_from:
            yield Gap(self.subject, first_id, min(last_id, heard_from), UNAVAILABLE)
        if last_id > heard_from:
            yield Gap(self.subject, max(first_id, heard_from + 1), last_id, LIVE_BUFFER)

    def _collect(self, batch: Batch) -> None:
        """Keep a live batch if it continues those before it and fits; otherwise the log has it, or nobody."""
        if self._collected:
            messages, size_bytes = self.collected_messages + batch.count, self.collected_bytes + batch.size_bytes
            full = messages > self._max_messages or size_bytes > self._max_bytes
            if full or batch.after_id != self._collected[-1].last_id:
                return
        self._collected.append(batch)
        self.collected_messages += batch.count
        self.collected_bytes += batch.size_bytes

    def _drop_collected(self) -> None:
        self._collected.clear()
        self.collected_messages = self.collected_bytes = 0

    def _step_aside(self) -> None:
        if self.follows != ASIDE:
            self._taken_id, self.follows = self.follows, ASIDE

    def _step_in(self) -> None:
        """Let live batches be taken as they are, where nothing about them needs a closer look."""
        if self.state is State.LIVE and self._until_id == sys.maxsize and self._taken_id is not None:
            self.follows = self._taken_id
