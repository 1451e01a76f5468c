"""What travels from a commit to the subscribers of a subject.

Owns:      `Batch`, and `Backlog`, which counts them.
Not here:  who gets it (trio_broker/fanout.py); its encoding (trio_broker/service/).
Threads:   the trio thread only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from operator import itemgetter
from typing import Self, overload

from persistence.headers import headers_size_bytes
from persistence.rows import Row
from trio_broker.message import NO_HEADERS, Gap, Message

OVERHEAD_BYTES = 512
"""What a message that waits takes besides its body and headers, twice: as objects and encoded."""


Fields = tuple[int, bytes, Mapping[str, bytes] | None, int, object]
"""The id, the body, the headers and the time of a message, and something that does not matter."""

_BODY = itemgetter(1)
_HEADERS = itemgetter(2)
_FIELDS_OF_MESSAGE = itemgetter(1, 2, 3, 4, 0)


class Replayed(Sequence[Message]):
    """Messages of one subject that were read from the log. Each is made when it is asked for: few ever are."""

    __slots__ = ("_subject", "rows")

    def __init__(self, subject: str, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._subject = subject

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Message]:
        return map(self._message, self.rows)

    @overload
    def __getitem__(self, place: int) -> Message: ...

    @overload
    def __getitem__(self, place: slice) -> "Replayed": ...

    def __getitem__(self, place: int | slice) -> "Message | Replayed":
        if isinstance(place, slice):
            return Replayed(self._subject, self.rows[place])
        return self._message(self.rows[place])

    def size_bytes(self) -> int:
        """Return what their bodies and headers have."""
        size = sum(map(len, map(_BODY, self.rows)))
        if any(map(_HEADERS, self.rows)):
            size += sum(headers_size_bytes(headers) for _, _, headers, *_ in self.rows if headers)
        return size

    def _message(self, row: Row) -> Message:
        id_, body, headers, time_us, _ = row
        return Message(self._subject, id_, body, headers or NO_HEADERS, time_us)


def fields_of(messages: Sequence[Message]) -> Iterable[Fields]:
    """Return what is in messages of one subject, besides that, without making those that were read from the log."""
    return messages.rows if isinstance(messages, Replayed) else map(_FIELDS_OF_MESSAGE, messages)


class Backlog:
    """What all batches that wait for subscribers take together."""

    __slots__ = ("bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.max_bytes = max_bytes


class Batch:
    """Consecutive messages of one subject. Its messages never change; all subscribers share it.

    One that was read from the log for one subscriber may have `gaps` between its messages.
    """

    __slots__ = (
        "_account",
        "_backlog",
        "after_id",
        "committed_s",
        "count",
        "deflated_wire",
        "first_id",
        "gaps",
        "last_id",
        "memory_bytes",
        "messages",
        "size_bytes",
        "subject",
        "takers",
        "together_wire",
        "wire",
    )

    def __init__(self, messages: Sequence[Message], committed_s: float | None = None) -> None:
        """Take at least one message; all are of one subject, in id order.

        ``committed_s`` is by `time.perf_counter`; None: long ago.
        """
        self._fill(messages[0].subject, messages, ())
        self.committed_s = committed_s
        self.first_id = messages[0].id
        self.last_id = messages[-1].id
        self.after_id = self.first_id - 1

    @classmethod
    def replayed(
        cls, subject: str, after_id: int, messages: Sequence[Message], gaps: Sequence[Gap], last_id: int
    ) -> Self:
        """Make one of what the log has in ``(after_id, last_id]``; ``gaps`` are to be told in band."""
        batch = cls.__new__(cls)
        batch._fill(subject, messages, gaps)
        batch.committed_s = None
        batch.after_id = after_id
        batch.first_id = after_id + 1
        batch.last_id = last_id
        return batch

    def _fill(self, subject: str, messages: Sequence[Message], gaps: Sequence[Gap]) -> None:
        self.subject = subject
        self.messages = messages
        self.gaps = gaps
        self.count = len(messages) + len(gaps)
        """What it counts as where messages wait."""
        self.size_bytes = messages.size_bytes() if isinstance(messages, Replayed) else _size_bytes(messages)
        """Bodies and headers."""
        self.takers = 0
        """How many subscribers have taken it since `Deliveries.settle`."""
        self.wire: bytes | None = None
        """The service's encoding, which it makes for the first subscriber and shares with the others."""
        self.together_wire: bytes | None = None
        """The same for those who get many messages in a response."""
        self.deflated_wire: bytes | None = None
        """That compressed."""
        self.memory_bytes = 2 * self.size_bytes + OVERHEAD_BYTES * self.count
        """What it takes with its encoding, or with both."""
        self._backlog: Backlog | None = None
        self._account: Backlog | None = None  # where it counts now

    def items(self) -> Iterable[Message | Gap]:
        """Return messages and gaps in the order of their ids."""
        if not self.gaps:
            return self.messages
        return merge(self.messages, self.gaps, key=_first_id)

    def part(self, after_id: int, until_id: int) -> "Batch | None":
        """Return what of it has ids above ``after_id`` and up to ``until_id``: itself where that is all of it."""
        if self.after_id >= after_id and self.last_id <= until_id:
            return self
        messages = [message for message in self.messages if after_id < message.id <= until_id]
        if not messages:
            return None
        part = Batch(messages, self.committed_s)
        if self._backlog is not None:
            part.enter(self._backlog)
        return part

    def enter(self, backlog: Backlog) -> None:
        """Count what it takes in ``backlog``, until nobody holds it any more."""
        self._backlog = self._account = backlog
        backlog.bytes += self.memory_bytes

    def count_in(self, account: Backlog | None) -> None:
        """Count what it takes elsewhere from now on; None: among what waits again, if it was counted there."""
        if self._account is not None:
            self._account.bytes -= self.memory_bytes
        self._account = account or self._backlog
        if self._account is not None:
            self._account.bytes += self.memory_bytes

    def grow(self, more_bytes: int) -> None:
        """Count so much more for it: a second encoding."""
        self.memory_bytes += more_bytes
        if self._account is not None:
            self._account.bytes += more_bytes

    def __del__(self) -> None:
        # All subscribers share it, and the last reference is what keeps its memory: Python counts them already.
        if self._account is not None:
            self._account.bytes -= self.memory_bytes

    def __repr__(self) -> str:
        return f"<Batch {self.subject!r} {self.first_id}..{self.last_id} of {self.size_bytes} bytes>"


def _first_id(item: Message | Gap) -> int:
    return item.first_id if isinstance(item, Gap) else item.id


def _size_bytes(messages: Sequence[Message]) -> int:
    size = 0
    for message in messages:
        size += len(message.body)
        if message.headers:
            size += headers_size_bytes(message.headers)
    return size
