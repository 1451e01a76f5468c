"""The messages of a request of which one is compressed: inflated one after the other, and handed on in order.

Owns:      what of such a request waits to be inflated; its share of the memory's budget, its credit.
Not here:  the encodings (compression.py), requests without compression (call.py), threads (aside.py).
Threads:   the trio thread; what is large is inflated in another one (`Application.aside`). Nothing here waits.

A small message is inflated at once. Otherwise the request stops there: what arrives behind it is kept, without credit
for more, until its turn has come. So it does while the inbox of a stream holds as much as a window: the window bounds
compressed bytes alone, which may become a thousand times as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from purerpc import Status, StatusCode

from trio_broker.rpc.compression import INFLATER_BYTES, Corrupt, InflatesTooLarge, Inflation
from trio_broker.rpc.framing import PREFIX, PREFIX_BYTES

if TYPE_CHECKING:
    from trio_broker.rpc.call import Call

Result = bytes | Corrupt | InflatesTooLarge

AT_ONCE_BYTES = 64 * 1024
"""What is inflated, or deflated, of one message without leaving the trio thread: below 0.3 ms, or 1.5 ms."""
AT_ONCE_PACKED_BYTES = AT_ONCE_BYTES // 4
"""The same for what has arrived of it: what is made to cost takes 0.2 us a byte, even if nothing comes out."""
PER_READ_BYTES = 256 * 1024
"""What is inflated without leaving the trio thread for one read of a socket."""


class Inflow:
    """The rest of a request, from its first compressed message on: a `Job`. `Call.part` are the bytes that wait."""

    __slots__ = (
        "_announced",
        "_away",
        "_call",
        "_encoding",
        "_ended",
        "_inflating",
        "_inflation",
        "_packed",
        "_queued",
    )

    def __init__(self, call: Call, encoding: str) -> None:
        self._call = call
        self._encoding = encoding
        self._announced = 0
        """What the message at the beginning of ``part`` will have there, if more than there is."""
        self._inflation: Inflation | None = None
        self._packed = 0
        """What the message that was taken last had in ``part``."""
        self._away = False
        """It waits for its turn, or for a thread, or for room in the inbox."""
        self._inflating = False
        """A thread inflates."""
        self._queued = False
        """It has a turn, since there is room in the inbox again."""
        self._ended = False

    def go_on(self) -> None:
        """Hand on the messages that are there, up to one that takes longer. Called when ``part`` has grown."""
        call = self._call
        while not self._away and not call.local_closed and self._next():
            pass
        if call.local_closed:
            return
        if not self._count():
            call.finish_overloaded()
        elif self._ended and not self._away:
            call.on_end()

    def end(self) -> bool:
        """Say whether all of the request is handed on; if not, `Call.on_end` is called again when it is."""
        self._ended = True
        return not self._away

    def room_again(self) -> None:
        """A message was taken from the inbox."""
        if self._away and self._inflation is None and not self._queued and self._has_room():
            self._queued = True
            self._call.app.aside(self)  # not here: who took it is not done with it

    def begin(self) -> Callable[[], Result] | None:
        """Its turn has come."""
        if self._call.local_closed:
            return None
        if self._queued:
            self._queued = self._away = False
            self.go_on()
            return None
        assert self._inflation is not None
        self._inflating = True
        if not self._count():
            self._call.finish_overloaded()
            return None
        return self._inflation.run_all

    def done(self, result: Result) -> None:
        """Take what a thread has inflated."""
        self._away = self._inflating = False
        self._inflation = None
        if not self._call.local_closed:
            self._settle(result)
            self.go_on()

    def _next(self) -> bool:
        """Take the next message out of ``part``, and hand it on or begin to inflate it; False: there is none."""
        call = self._call
        part = call.part
        assert part is not None
        limit = call.connection.limits.message_max_bytes
        compressed, size = PREFIX.unpack_from(part) if len(part) >= PREFIX_BYTES else (0, 0)
        if size > limit:
            call.finish(call.app.refusals.message_too_large(size, limit))
            return False
        packed = PREFIX_BYTES + size
        if len(part) < packed:
            self._announced = packed if part else 0
            call.take(len(part) - call.credited)  # its size bounds it, not the window: see call.py
            call.credited = len(part)
            return False
        if call.inbox is None and call.message is not None:
            call.finish_cardinality("more than one message")
            return False
        if not self._has_room():
            self._away = True
            return False
        with memoryview(part) as view:
            data = bytes(view[PREFIX_BYTES:packed])
        del part[:packed]
        self._announced = 0
        self._packed = packed
        if compressed:
            self._inflate(data)
        else:
            self._hand_on(data)
        return True

    def _has_room(self) -> bool:
        call = self._call
        return not call.inbox or call.held - call.reserved < call.connection.limits.stream_window_bytes

    def _inflate(self, data: bytes) -> None:
        """Inflate a message at once, or leave it to a thread."""
        app = self._call.app
        inflation = Inflation(self._encoding, data, self._call.connection.limits.message_max_bytes)
        room = min(AT_ONCE_BYTES, app.at_once_bytes)
        result: Result | None = None
        if room > 0 and len(data) <= AT_ONCE_PACKED_BYTES:
            try:
                result = inflation.run(room)
            except (Corrupt, InflatesTooLarge) as error:
                result = error.with_traceback(None)
            app.at_once_bytes -= inflation.size
        if result is not None:
            self._settle(result)
        else:
            self._inflation = inflation
            self._away = True
            app.aside(self)

    def _settle(self, result: Result) -> None:
        call = self._call
        if isinstance(result, bytes):
            self._hand_on(result)
        elif isinstance(result, InflatesTooLarge):
            call.finish(call.app.refusals.inflates_too_large(call.connection.limits.message_max_bytes))
        else:
            call.finish(Status(StatusCode.INTERNAL, f"a message is not {self._encoding}: {result}"))

    def _hand_on(self, message: bytes) -> None:
        """Give the call a message. It gives credit for its size: here goes what differs from that on the wire."""
        call = self._call
        owed = self._packed - call.credited
        call.credited = 0
        call.unreturned += owed - PREFIX_BYTES - len(message)
        call.on_message(message)

    def _count(self) -> bool:
        """Hold what waits, and what it becomes; say whether there is room for it."""
        call = self._call
        assert call.part is not None
        held = max(len(call.part), self._announced)
        if self._inflation is not None:
            held += self._packed + INFLATER_BYTES + self._inflation.size
        if self._inflating:
            held += call.connection.limits.message_max_bytes
        if call.inbox is None and call.message is not None:
            held += len(call.message)
        more = held - call.reserved
        call.reserved = held
        return call.hold(more)
