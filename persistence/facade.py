"""The persistence facade: what the broker asks of a database, and nothing more.

Owns:      the `Store` interface, the values that cross it, and their meaning.
Not here:  how a store does it (persistence/memory.py, persistence/sqlite/), who calls it (trio_broker/).
Threads:   every method is called from the trio thread; a store with a blocking driver moves to a worker
           thread by persistence/threads.py.

A store keeps one ordered log per subject, and versioned registers. One contract suite (tests/contract) runs
on every store. Times are microseconds since 1970-01-01 UTC *by the store's clock*, never the caller's.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Self

import trio

from persistence.errors import StoreError

NO_HEADERS: Mapping[str, bytes] = {}

KEY_KEPT_MIN_S = 120
"""An idempotency key is remembered for as long as its message is kept, and at least for so long."""


class NewMessage(NamedTuple):
    """A message to append. Its subject and headers were validated by the broker."""

    subject: str
    body: bytes
    expiration_s: int | None
    """0: gets an id and is not kept. n > 0: kept for n seconds. None: kept until deleted."""
    headers: Mapping[str, bytes] = NO_HEADERS
    idempotency_key: str = ""
    """If it is not empty, and the subject remembers it, the message is a `Duplicate`. See `KEY_KEPT_MIN_S`."""
    expected_last_id: int | None = None
    """If the subject's last id is another one, the message is a `Conflict`. None: any will do."""
    group: int = 0
    """Those of one subject in a batch with one number, which is not 0, are appended together, or none of them is.

    They follow one another, as far as their subject is concerned. If one of them is a `Conflict` or `Rejected`, so are
    the others, but for those that are duplicates of what was appended before.
    """


class Appended(NamedTuple):
    """The message is durable (or, with expiration 0, its id is)."""

    id: int
    time_us: int


class Duplicate(NamedTuple):
    """Nothing was appended: a message with this idempotency key was before. These are its id and time."""

    id: int
    time_us: int


class Conflict(NamedTuple):
    """Nothing was appended: this is the subject's last id, and not the expected one."""

    last_id: int
    of_neighbour: bool = False
    """It is another message of the same group that does not fit, and not this one."""


class Rejected(NamedTuple):
    """The store will not take this message, whatever it is appended with. Nothing of it was kept."""

    why: str


class Failed(NamedTuple):
    """The message was not appended, or it is unknown whether it was, while others of its batch did better."""

    error: StoreError
    """What `Store.append` would have raised for a batch of this subject alone."""


Outcome = Appended | Duplicate | Conflict | Rejected | Failed
"""The result of one message of a batch."""


class Record(NamedTuple):
    """A kept message as it was appended."""

    id: int
    body: bytes
    headers: Mapping[str, bytes]
    time_us: int
    """When it was appended; never decreases within a subject."""
    expires_us: int | None
    """When it stops being kept; None: never."""


class InvalidId(NamedTuple):
    """The id was never assigned in this subject."""

    last_id: int


class ExpiredId(NamedTuple):
    """The id was assigned, and its message is no longer kept (or never was: expiration 0)."""

    last_id: int


class Key(NamedTuple):
    """Which message."""

    subject: str
    id: int


class Head(NamedTuple):
    """The ends of a subject's log."""

    first_id: int
    """The lowest id still kept; ``last_id + 1`` when none is."""
    last_id: int
    """The highest id ever assigned; 0 when none was. Never goes back."""


class Page(NamedTuple):
    """Consecutive kept messages of one subject, from one snapshot."""

    records: Sequence[Record]
    scanned_to: int
    """Every kept message up to this id is in this page or before it: the next page starts after it."""
    last_id: int
    """The subject's last id in the same snapshot: ``scanned_to >= last_id`` means that the end was reached."""


class Register(NamedTuple):
    """A small named value with a version. Versions grow and are never used again, also after a delete."""

    value: bytes
    version: int


class Swept(NamedTuple):
    """What one step of sweeping did."""

    removed: int
    """Messages dropped by this step that had expired, or were purged."""
    more: bool
    """There is more to do now."""


class Limits(NamedTuple):
    """What the store can take."""

    lanes: int
    """How many appends may usefully run at once."""
    flush_messages_max: int
    flush_bytes_max: int
    expiration_max_s: int
    shared: bool = False
    """Several brokers may use it at once."""
    leaves_subjects: bool = False
    """They had better leave each subject to one of them: two that append to it at once hinder each other."""
    body_max_bytes: int = 512 * 1024 * 1024
    """The largest body that it keeps."""


class Durability(NamedTuple):
    """What an acknowledgement means, for the banner and /readyz."""

    kind: str
    """The store and the version of its server or library, such as ``SQLite 3.45.1``."""
    setting: str
    """The setting that decides it, such as ``journal_mode=wal synchronous=full``."""
    durable: bool
    """An acknowledged message outlives the process and a crash of its machine."""
    meaning: str = "durable"
    """The same in words, for people: what else may be lost, and when."""


class PoolUse(NamedTuple):
    """How busy the threads are that work for a store, each with its connection."""

    name: str
    """``write`` appends, ``read`` reads, ``change`` does the rest where appending has a thread of its own."""
    size: int
    in_use: int
    waiting: int
    """Operations that wait for their turn."""
    turns: int
    """Operations that got it so far."""
    waited_s: float
    """How long those waited for it, together."""


class Wakeups:
    """Hints of what any process appended, for one task at a time that iterates over it; never needed to be right.

    This one is of a store that hears of nothing: no hint ever comes.
    """

    @property
    def connected(self) -> bool | None:
        """False: what is appended is not heard of now, and "anything" is hinted every so often instead.

        None: there is nothing to be heard of.
        """
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Mapping[str, int]:
        """Wait for the next hint: subjects that may have changed; empty when any may have. A checkpoint.

        Each with its last id, as far as the hint tells: there may be more by now. 0: it does not tell.
        """
        await trio.sleep_forever()


class Store(ABC):
    """An ordered log per subject and versioned registers. Every ``async`` method is a checkpoint.

    Any method raises `StoreUnavailable` when the database cannot be reached: nothing was changed then.
    """

    @abstractmethod
    async def append(self, batch: Sequence[NewMessage]) -> list[Outcome]:
        """Append a batch of messages of any subjects; return one outcome per message, in order.

        Atomic per subject; the ids of one subject are contiguous, in batch order, and in commit order across
        all processes that share the database. Idempotency keys and expected last ids are judged in batch order, and as
        if nobody else appended meanwhile: of two equal keys in a batch the second is a duplicate of the first.
        Durable on return. Runs to its end once begun, also when the caller is cancelled: it never commits with nobody
        told. A store that appends each subject by itself returns `Failed` for those that fail while others do not;
        what all have in common it raises.

        Raises:
            StoreUnavailable: nothing was appended; trying again is safe.
            StoreFull: nothing was appended, for want of space.
            BadContent: nothing was appended, because of what some message holds: the caller splits the batch.
            OutcomeUnknown: the database could not be asked whether it was appended.
        """

    @abstractmethod
    async def read(self, subject: str, after_id: int, *, max_messages: int, max_bytes: int) -> Page:
        """Return the kept messages with ids above ``after_id``, in order, from one snapshot.

        Bounded by both limits (bodies and headers count as bytes), but at least one message where there is
        one. A page of expired messages is empty and still advances ``scanned_to``.
        """

    @abstractmethod
    async def get(self, keys: Sequence[Key]) -> list[Record | InvalidId | ExpiredId]:
        """Look messages up by id, all in one trip; return one result per key, in order.

        Exact by the store's clock at the time of the read, whether or not a sweep has been there.
        """

    @abstractmethod
    async def head(self, subject: str) -> Head:
        """Return the ends of a subject's log; ``Head(1, 0)`` for one that never had a message."""

    @abstractmethod
    async def heads(self, subjects: Collection[str]) -> dict[str, int]:
        """Return the last ids of subjects, without those that never had a message: few trips for any number of them.

        Each is what it was at some time since the call. Those of one call are not a snapshot.
        """

    async def id_before(self, subject: str, time_us: int) -> int:
        """Return the id before the first kept message that was appended at ``time_us`` or later.

        The last id when there is none, 0 when nothing was ever appended. Times never decrease within a subject: it
        takes a read of one message for each halving of the log.
        """
        first_id, last_id = await self.head(subject)
        low, high = first_id - 1, last_id  # the one that is looked for is above low; what is above high is known
        before = last_id
        while low < high:
            middle = (low + high) // 2
            record = await self._first_after(subject, middle, high)
            if record is not None and record.time_us < time_us:
                low = record.id
                continue
            if record is not None:
                before = record.id - 1
            high = middle
        return before

    async def _first_after(self, subject: str, after_id: int, until_id: int) -> Record | None:
        """Return the first kept message with an id above ``after_id`` and up to ``until_id``."""
        while after_id < until_id:
            page = await self.read(subject, after_id, max_messages=1, max_bytes=1)
            if page.records:
                return page.records[0] if page.records[0].id <= until_id else None
            after_id = page.scanned_to
        return None

    @abstractmethod
    async def subjects(self, after: str = "", *, limit: int = 1000) -> list[str]:
        """Return up to ``limit`` names of subjects above ``after``, ordered by their UTF-8 bytes."""

    @abstractmethod
    async def purge(self, subject: str, until_id: int) -> int:
        """Keep no message of a subject up to ``until_id`` any more; return its last id.

        From then on, at once and for all that are up to the last id: fetching one is `ExpiredId`, pages are without
        them. Their space is given back by `sweep`. Appends go on meanwhile. What is above the last id is left alone.
        Idempotency keys of what was purged are forgotten 120 s after they were used, or later.
        """

    @abstractmethod
    async def delete_subject(self, subject: str, last_id: int) -> Conflict | None:
        """Purge a subject, and list it no longer, if ``last_id`` is its last id; say which it is otherwise.

        The last id outlives that: when something is appended again, ids go on from it, and the subject is listed.
        """

    @abstractmethod
    async def restore(self, subject: str, records: Sequence[Record], last_id: int) -> int:
        """Append records as they are, with their ids, times and ends; return how many. For moving a log here.

        They are in the order of their ids. Those not above the subject's last id are left out, so that doing this
        again does nothing. The last id is ``last_id`` then, or what it was if that is above. All or nothing, durable on
        return; raises as `append` does. Small enough for one flush (`Limits`), and not beside other appends to
        the same subject: whoever moves a log is alone with it.
        """

    @abstractmethod
    async def load(self, name: str) -> Register | None:
        """Return a register, or None."""

    @abstractmethod
    async def list(self, prefix: str) -> list[tuple[str, Register]]:
        """Return the registers whose names begin with ``prefix``, ordered by name."""

    @abstractmethod
    async def compare_and_set(self, name: str, value: bytes, *, version: int) -> int | None:
        """Set a register if its version is ``version`` (0: if there is none); return the new version, or None."""

    @abstractmethod
    async def delete(self, name: str, *, version: int) -> bool:
        """Delete a register if its version is ``version``; say whether it was."""

    @abstractmethod
    async def sweep(self) -> Swept:
        """Drop some of what has expired and give its space back: a step of a few ms at most."""

    @abstractmethod
    async def now(self) -> int:
        """Ask the store for its time, in microseconds. Also how readiness asks whether it is there."""

    @asynccontextmanager
    async def wakeups(self, interest: Callable[[], Collection[str]]) -> AsyncGenerator[Wakeups]:  # noqa: ARG002
        """Listen for the length of the block to what any process appends, this one's among it. A checkpoint.

        ``interest`` says which subjects somebody here wants to hear of now: a store that has to ask for each asks for
        no other. One that is told hints at others as well.
        """
        await trio.lowlevel.checkpoint()
        yield Wakeups()

    def give_up(self) -> None:  # noqa: B027 - not every store can
        """Wait for the database no longer: what is under way ends soon, as if it could not be reached.

        For the end of a grace period; nothing but closing follows. A store that cannot do so does nothing.
        """

    @abstractmethod
    def limits(self) -> Limits:
        """What the store can take. Constant while the store is open."""

    def pools(self) -> Sequence[PoolUse]:
        """How busy its threads are; a store without any has no pools."""
        return ()

    @abstractmethod
    def durability(self) -> Durability:
        """What an acknowledgement means here, as far as it is known: a server may change its settings."""
