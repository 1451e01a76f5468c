"""What travels from a commit to the subscribers of a subject.

Owns:      `Batch`.
Not here:  who gets it (trio_broker/fanout.py); its encoding (trio_broker/service/).
Threads:   the trio thread only.
"""

from collections.abc import Sequence

from persistence.headers import headers_size_bytes
from trio_broker.message import Message


class Batch:
    """Consecutive messages of one subject. Never changed once made; all subscribers share it."""

    __slots__ = ("first_id", "last_id", "messages", "size_bytes", "subject", "wire")

    def __init__(self, messages: Sequence[Message]) -> None:
        """Take at least one message; all are of one subject, in id order."""
        self.messages = messages
        self.subject = messages[0].subject
        self.first_id = messages[0].id
        self.last_id = messages[-1].id
        self.size_bytes = sum(_size_bytes(message) for message in messages)
        """Bodies and headers."""
        self.wire: bytes | None = None
        """The service's encoding, which it makes for the first subscriber and shares with the others."""

    def __repr__(self) -> str:
        return f"<Batch {self.subject!r} {self.first_id}..{self.last_id} of {self.size_bytes} bytes>"


def _size_bytes(message: Message) -> int:
    size = len(message.body)
    if message.headers:
        size += headers_size_bytes(message.headers)
    return size
