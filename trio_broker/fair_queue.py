"""A queue that is fair between its sources, and whose entries can be withdrawn.

Owns:      the order in which waiting publishes go to the store; how much of what waits is of each source.
Not here:  how many may wait, and what becomes of them (trio_broker/commit.py).
Threads:   the trio thread only; plain data, no function here is a checkpoint.

Each source (a connection) has a line of its own. An entry is one message, or several that go together. A flush is
filled round robin, up to `QUANTUM` messages of one source at a time (a larger entry is a turn by itself), so that a
lone caller beside a flood waits for one flush and not for the flood. While several sources wait, a flush ends with the
first round that brings it to `ENOUGH` entries: a longer one would save little and keep everybody waiting. (Entries, not
messages: of streams a commit of a thousand costs little more than one of a few hundred.)
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, Self, TypeVar

QUANTUM = 64
ENOUGH = 256


class Entry(Protocol):
    """What can be queued. The queue sets ``queued``; it is False again once the entry is taken or withdrawn.

    ``line`` is the queue's own.
    """

    queued: bool
    line: "Line[Self] | None"

    @property
    def count(self) -> int: ...  # of its messages

    @property
    def size_bytes(self) -> int: ...


E = TypeVar("E", bound=Entry)


class Line(deque[E]):
    """The entries of one source, and how many messages and bytes they are without those that were withdrawn."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        super().__init__()
        self.messages = 0
        self.bytes = 0


class FairQueue(Generic[E]):
    """Entries by source, first in first out within each.

    A withdrawn entry stays in its line, not counted, until its turn comes or as many messages or bytes are
    withdrawn as the queue may hold: then all are dropped. So withdrawing costs O(1), and memory stays within twice
    the bounds, even while nothing is taken for long.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        """The bounds are the caller's to keep; here they only say when withdrawn entries are dropped."""
        self.messages = 0
        self.bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lines: OrderedDict[Hashable, Line[E]] = OrderedDict()  # whose turn is next comes first
        self._withdrawn_messages = 0
        self._withdrawn_bytes = 0

    def put(self, entry: E, source: Hashable) -> None:
        line = self._lines.get(source)
        if line is None:
            line = self._lines[source] = Line()
        line.append(entry)
        entry.line = line
        entry.queued = True
        count, size = entry.count, entry.size_bytes
        line.messages += count
        line.bytes += size
        self.messages += count
        self.bytes += size

    def __iter__(self) -> Iterator[E]:
        """Return what waits, of each source in order."""
        return (entry for line in self._lines.values() for entry in line if entry.queued)

    def held_by(self, source: Hashable) -> tuple[int, int]:
        """Return how many messages of a source wait, and their bytes."""
        line = self._lines.get(source)
        return (0, 0) if line is None else (line.messages, line.bytes)

    def withdraw(self, entry: E) -> None:
        """Take ``entry``, which is queued, out of the order."""
        self._leave(entry)
        self._withdrawn_messages += entry.count
        self._withdrawn_bytes += entry.size_bytes
        if self._withdrawn_messages > self._max_messages or self._withdrawn_bytes > self._max_bytes:
            self._drop_withdrawn()

    def take(self, max_messages: int, max_bytes: int) -> list[E]:
        """Take the next entries, of at most so many messages and so large together; the first may be larger alone."""
        taken: list[E] = []
        room, room_bytes = max_messages, max_bytes
        shared = len(self._lines) > 1
        turns = 0
        while self._lines and room > 0:
            if turns == 0:
                if shared and len(taken) >= ENOUGH:
                    break
                turns = len(self._lines)
            turns -= 1
            source, line = self._lines.popitem(last=False)
            quantum = min(QUANTUM, room)
            served = 0
            while line and served < quantum:
                entry = line[0]
                count = entry.count
                if entry.queued:
                    if taken and (entry.size_bytes > room_bytes or count > room):
                        self._put_back(source, line, had_a_turn=served > 0)
                        return taken
                    if served and served + count > quantum:
                        break
                    self._leave(entry)
                    taken.append(entry)
                    room -= count
                    room_bytes -= entry.size_bytes
                    served += count
                else:
                    self._withdrawn_messages -= count
                    self._withdrawn_bytes -= entry.size_bytes
                line.popleft()
            if line:
                self._put_back(source, line, had_a_turn=True)
        return taken

    def _leave(self, entry: E) -> None:
        line, entry.line = entry.line, None
        assert line is not None, "it is queued"
        entry.queued = False
        count, size = entry.count, entry.size_bytes
        line.messages -= count
        line.bytes -= size
        self.messages -= count
        self.bytes -= size

    def _put_back(self, source: Hashable, line: Line[E], *, had_a_turn: bool) -> None:
        self._lines[source] = line
        if not had_a_turn:  # its next entry did not fit: it comes first in the next flush, where any entry fits
            self._lines.move_to_end(source, last=False)

    def _drop_withdrawn(self) -> None:
        for source, line in tuple(self._lines.items()):
            waiting = [entry for entry in line if entry.queued]
            line.clear()
            line.extend(waiting)
            if not line:
                del self._lines[source]
        self._withdrawn_messages = self._withdrawn_bytes = 0
