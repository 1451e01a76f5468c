"""A flush falls into shares, one for each subject; a share's messages go into chunks.

Owns:      what is refused without asking; which messages go together.
Not here:  appending a share (writing.py), how a chunk is encoded (chunks.py).
Threads:   worker threads; nothing here waits.
"""

from collections.abc import Sequence
from typing import NamedTuple

from persistence.cassandra.buckets import FOR_EVER_US, TTL_MAX_S
from persistence.cassandra.chunks import encode_message
from persistence.facade import NewMessage

EXPIRATION_MAX_S = TTL_MAX_S

CHUNK_MESSAGES_MAX = 64
CHUNK_BYTES_MAX = 64 * 1024
"""Who wants one message is sent its chunk."""


class Chunk(NamedTuple):
    """Messages of a share that are kept in one row."""

    last: int
    """The place of its last one in the share, from 0."""
    seconds: int | None
    """For how long it is kept: as long as any message in it."""
    messages: bytes

    def expires_us(self, time_us: int) -> int:
        """Return when all of it has expired, if it is appended at that time."""
        return FOR_EVER_US if self.seconds is None else time_us + self.seconds * 1_000_000


class Share:
    """The messages of one subject, to be appended together."""

    def __init__(self, subject: str, messages: Sequence[NewMessage]) -> None:
        self.subject = subject
        self.messages = messages
        self.chunks = [_encode(messages, places) for places in _group(messages)]
        self.size = sum(len(chunk.messages) for chunk in self.chunks)

    @property
    def is_guarded(self) -> bool:
        """Some of it may not be appended: it has a key, or expects a last id."""
        return self.is_conditional or any(message.idempotency_key for message in self.messages)

    @property
    def is_conditional(self) -> bool:
        """Some of it expects a last id."""
        return any(message.expected_last_id is not None for message in self.messages)

    def halves(self) -> "tuple[Share, Share] | None":
        """Return two shares, cut as near to the middle as no group is torn; None: it is one piece."""
        messages = self.messages
        count = len(messages)
        cuts = [
            place
            for place in range(1, count)
            if not messages[place].group or messages[place].group != messages[place - 1].group
        ]
        if not cuts:
            return None
        middle = min(cuts, key=lambda place: (abs(place - count // 2), place))
        return Share(self.subject, messages[:middle]), Share(self.subject, messages[middle:])


def refusal(message: NewMessage) -> str | None:
    """Say why a message cannot be kept for as long as it asks, if so."""
    seconds = message.expiration_s
    if seconds is None or 0 <= seconds <= EXPIRATION_MAX_S:
        return None
    return f"expiration {seconds} s is not within 0..{EXPIRATION_MAX_S} s"


def _group(messages: Sequence[NewMessage]) -> list[list[int]]:
    """Return the places of the messages that are kept, by chunk."""
    groups: list[list[int]] = []
    size = 0
    for place, (_, body, seconds, *_) in enumerate(messages):
        if seconds == 0:
            continue
        size += len(body)
        if not groups or size > CHUNK_BYTES_MAX or len(groups[-1]) == CHUNK_MESSAGES_MAX:
            groups.append([])
            size = len(body)
        groups[-1].append(place)
    return groups


def _encode(messages: Sequence[NewMessage], places: Sequence[int]) -> Chunk:
    last = places[-1]
    encoded = [
        encode_message(last - place, messages[place].expiration_s, messages[place].headers, messages[place].body)
        for place in places
    ]
    seconds = [messages[place].expiration_s for place in places]
    longest = None if None in seconds else max(each for each in seconds if each is not None)
    return Chunk(last, longest, b"".join(encoded))
