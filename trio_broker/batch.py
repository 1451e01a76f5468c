"""What travels from a commit to the subscribers of a subject.

Owns:      `Batch`, and `Backlog`, which counts them.
Not here:  who gets it (trio_broker/fanout.py); its encoding (trio_broker/service/).
Threads:   the trio thread only.
"""

from collections.abc import Sequence

from persistence.headers import headers_size_bytes
from trio_broker.message import Message

OVERHEAD_BYTES = 512
"""What a message that waits takes besides its body and headers, twice: as objects and encoded."""


class Backlog:
    """What all batches that wait for subscribers take together."""

    __slots__ = ("bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self.max_bytes = max_bytes


class Batch:
    """Consecutive messages of one subject. Its messages never change; all subscribers share it."""

    __slots__ = (
        "_backlog",
        "committed_s",
        "first_id",
        "last_id",
        "memory_bytes",
        "messages",
        "size_bytes",
        "subject",
        "takers",
        "wire",
    )

    def __init__(self, messages: Sequence[Message], committed_s: float = 0.0) -> None:
        """Take at least one message; all are of one subject, in id order. ``committed_s`` is by `time.perf_counter`."""
        self.messages = messages
        self.subject = messages[0].subject
        self.first_id = messages[0].id
        self.last_id = messages[-1].id
        self.size_bytes = sum(_size_bytes(message) for message in messages)
        """Bodies and headers."""
        self.committed_s = committed_s
        self.takers = 0
        """How many subscribers have taken it since `Deliveries.settle`."""
        self.wire: bytes | None = None
        """The service's encoding, which it makes for the first subscriber and shares with the others."""
        self.memory_bytes = 2 * self.size_bytes + OVERHEAD_BYTES * len(messages)
        """What it takes with its encoding."""
        self._backlog: Backlog | None = None

    def enter(self, backlog: Backlog) -> None:
        """Count what it takes in ``backlog``, until nobody holds it any more."""
        self._backlog = backlog
        backlog.bytes += self.memory_bytes

    def __del__(self) -> None:
        # All subscribers share it, and the last reference is what keeps its memory: Python counts them already.
        if self._backlog is not None:
            self._backlog.bytes -= self.memory_bytes

    def __repr__(self) -> str:
        return f"<Batch {self.subject!r} {self.first_id}..{self.last_id} of {self.size_bytes} bytes>"


def _size_bytes(message: Message) -> int:
    size = len(message.body)
    if message.headers:
        size += headers_size_bytes(message.headers)
    return size
