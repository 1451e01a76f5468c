"""What this broker commits, as streams to the others that have subscribers for it.

Owns:      `TailFeed`, one stream to one other broker: its interest, what waits to leave, and what had no room.
Not here:  committing and fan-out (trio_broker/fanout.py), the other end (links.py).
Threads:   the trio thread; no function here is a checkpoint.

A stream has no task: the connection asks it for what waits when it writes. What waits is bounded: beyond that the other
broker is told how far the subject goes, and reads the log.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from purerpc import Status

from trio_broker._proto import replicas_pb2 as pb
from trio_broker.errors import Draining, InvalidSubject, Malformed, MessageTooLarge, Overloaded
from trio_broker.merge import Lifetimes
from trio_broker.rpc.call import Call
from trio_broker.rpc.framing import PREFIX_BYTES, framed
from trio_broker.rpc.status import OK
from trio_broker.service.encoding import together_wire, varint
from trio_broker.service.statuses import status_of
from trio_broker.subject import check_subject

if TYPE_CHECKING:
    from trio_broker.batch import Batch
    from trio_broker.fanout import Fanout

WAITING_BYTES = 8 * 1024 * 1024
"""What may wait for one other broker,"""
WAITING_SHARE = 8
"""and the part of what may wait for all subscribers together that this may be."""
SUBJECTS_MAX = 100_000
"""Subjects that may be of interest to one other broker: the log is asked about more."""
REQUEST_MAX_BYTES = 1024 * 1024
"""A request has no more."""
STRANGERS_MAX = 64
"""Streams that have not greeted yet; for one more the oldest of them is ended."""

Admit = Callable[[pb.Greeting], Status | None]
"""Says why somebody who greets is not to be told anything; None: nothing is wrong."""


class Feeds:
    """The streams to others that are open."""

    def __init__(self) -> None:
        self.open: dict[TailFeed, None] = {}  # a dict for a set that keeps its order
        self.dropped = 0
        """Batches for which there was no room, also in those that are over."""

    @property
    def waiting_bytes(self) -> int:
        """Memory of what waits to leave; a batch that waits in several counts in each."""
        return sum(feed.waiting_bytes for feed in self.open)


class TailFeed:
    """The stream to one other broker."""

    def __init__(self, fanout: "Fanout", call: Call, admit: Admit, feeds: Feeds) -> None:
        """``feeds`` is where it is kept until it is over."""
        self.waiting_bytes = 0
        """Memory of what waits to leave."""
        self.admitted = False
        """The other broker has greeted."""
        self._feeds = feeds
        feeds.open[self] = None
        self._fanout = fanout
        self._most_bytes = min(WAITING_BYTES, fanout.backlog.max_bytes // WAITING_SHARE)
        self._call = call
        self._admit = admit
        self._subjects: dict[str, None] = {}  # a dict for a set that keeps its order
        self._waiting: deque[tuple[Batch, Lifetimes, int]] = deque()  # with what it counts for
        self._missed: dict[str, int] = {}  # how far subjects go of which something had no room
        self._heard = 0
        self._heard_told = 0
        self._end: Status | None = None
        self._stopping = False

    def offer(self, batch: "Batch", lifetimes: Lifetimes) -> None:
        """Pass on a batch, or note that there was no room for it."""
        if self._waiting and self.waiting_bytes + batch.memory_bytes > self._most_bytes:
            self._missed[batch.subject] = batch.last_id
            self._feeds.dropped += 1
        else:
            self._waiting.append((batch, lifetimes, batch.memory_bytes))  # that may grow
            self.waiting_bytes += batch.memory_bytes
        self._call.connection.mark(self._call)

    def feed(self) -> None:
        """Take what the other broker is interested in."""
        call = self._call
        while call.inbox and self._end is None:
            data = call.take_message()
            call.take(len(data) + PREFIX_BYTES)
            self._end = self._hear(data)
        call.connection.mark(call)

    def _hear(self, data: bytes) -> Status | None:
        """Take a request; say why the stream ends, if it does."""
        if len(data) > REQUEST_MAX_BYTES:
            return status_of(MessageTooLarge(f"a request has {len(data)} bytes; at most {REQUEST_MAX_BYTES} may be"))
        try:
            request = pb.TailRequest.FromString(data)
        except DecodeError:
            return status_of(Malformed("a request is not a broker.TailRequest"))
        if not self.admitted:
            if refusal := self._admit(request.greeting):
                return refusal
            self.admitted = True
        for subject in request.remove:
            if self._subjects.pop(subject, 0) is None:
                self._forget(subject)
        try:
            for subject in request.add:
                check_subject(subject)
                self._subjects[subject] = None
                self._fanout.tails.setdefault(subject, {})[self] = None
        except InvalidSubject as error:
            return status_of(error)
        if len(self._subjects) > SUBJECTS_MAX:
            return status_of(Overloaded(f"more than {SUBJECTS_MAX} subjects are of interest"))
        self._heard += 1
        return None

    def take(self, call: Call, credit: int) -> bytes:
        """Return what waits, up to the first batch that exceeds the credit."""
        if self._end is not None or call.request_ended:
            call.finish(self._end or OK)
            return b""
        if self._stopping and not self._waiting and not self._missed:
            call.finish(status_of(Draining("the broker is stopping")))
            return b""
        parts: list[bytes] = []
        size = 0
        if self._heard > self._heard_told:
            self._heard_told = self._heard
            parts.append(framed(pb.TailResponse(heard=self._heard).SerializeToString()))
        while self._waiting and size < credit:
            batch, lifetimes, size_bytes = self._waiting.popleft()
            self.waiting_bytes -= size_bytes
            part = tail_response(batch, lifetimes)
            parts.append(part)
            size += len(part)
        if not self._waiting and self._missed:
            parts += [
                framed(pb.TailResponse(subject=subject, last_id=last_id).SerializeToString())
                for subject, last_id in self._missed.items()
            ]
            self._missed.clear()
        return b"".join(parts)

    def close(self) -> None:
        """The other broker listens no more."""
        for subject in self._subjects:
            self._forget(subject)
        self._subjects.clear()
        self._waiting.clear()
        self._feeds.open.pop(self, None)

    def retire(self) -> None:
        """End the stream after what waits: this broker commits nothing any more."""
        self._stopping = True
        self._call.connection.mark(self._call)

    def send_away(self) -> None:
        """End the stream: nobody has greeted on it, and others want to."""
        self._end = status_of(Overloaded("too many streams have not greeted"))
        self._call.connection.mark(self._call)

    def _forget(self, subject: str) -> None:
        tails = self._fanout.tails.get(subject, {})
        tails.pop(self, None)
        if not tails:
            self._fanout.tails.pop(subject, None)


def tail_response(batch: "Batch", lifetimes: Lifetimes) -> bytes:
    """Return a batch as a framed TailResponse; as how far it goes only, if it is too large for one."""
    subject = batch.subject.encode()
    head = b"\x0a" + varint(len(subject)) + subject + b"\x10" + varint(batch.last_id)
    together = together_wire(batch)
    if int.from_bytes(together[1:PREFIX_BYTES]) + PREFIX_BYTES != len(together):
        return framed(head)
    size = varint(len(together) - PREFIX_BYTES)
    kept = pb.TailResponse(lifetimes=_wire_lifetimes(lifetimes)).SerializeToString()
    return framed(b"".join((head, b"\x1a", size, together[PREFIX_BYTES:], kept)))


def _wire_lifetimes(lifetimes: Lifetimes) -> list[int]:
    first = lifetimes[0]
    if all(lifetime == first for lifetime in lifetimes):
        return [-1 if first is None else first]
    return [-1 if lifetime is None else lifetime for lifetime in lifetimes]
