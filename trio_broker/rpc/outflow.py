"""A unary reply that is large and to be compressed.

Owns:      `DeflatedReply`.
Not here:  the encoding (compression.py), replies that are compressed at once (call.py), threads (aside.py).
Threads:   the trio thread; a thread deflates (`Application.aside`). Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from trio_broker.rpc.compression import deflated
from trio_broker.rpc.status import OK

if TYPE_CHECKING:
    from trio_broker.rpc.call import Call


class DeflatedReply:
    """Answers a call when its reply is compressed. `Call.deflating_bytes` are counted until then."""

    __slots__ = ("_call", "_message")

    def __init__(self, call: Call, message: bytes) -> None:
        self._call = call
        self._message = message

    def begin(self) -> Callable[[], bytes] | None:
        """Its turn has come."""
        return None if self._call.local_closed else partial(deflated, self._message)

    def done(self, result: bytes) -> None:
        """Send it."""
        call = self._call
        if not call.local_closed:
            call.account.held_bytes -= call.deflating_bytes
            call.deflating_bytes = 0
            call.send(result)
            call.finish(OK)
