"""Subscriptions whose pages leave compressed: SubscribeBatch, where client and operator want it.

Owns:      `DeflatedSource`.
Not here:  the same without compression (subscribing.py), the encoding (trio_broker/rpc/compression.py).
Threads:   the trio thread; a thread deflates what is large (`Application.aside`).

A batch is compressed once, for all subscribers, and kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from trio_broker.position import ASIDE
from trio_broker.rpc.compression import DEFLATE_MIN_BYTES
from trio_broker.rpc.inflow import AT_ONCE_BYTES
from trio_broker.service.encoding import deflated_wire, join_together
from trio_broker.service.subscribing import SubscriptionSource

if TYPE_CHECKING:
    from trio_broker.batch import Batch
    from trio_broker.rpc.call import Call
    from trio_broker.service.subscribing import Encoding
    from trio_broker.subscription import Subscription


class DeflatedSource(SubscriptionSource):
    """Feeds a call from a subscription's channel, with compressed responses. It is its own `Job`."""

    __slots__ = ("_call", "_deflates", "_next")

    def __init__(
        self, call: Call, subscription: Subscription, encoding: Encoding, left: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(subscription, encoding, left)
        self._call = call
        self._next: tuple[Batch, bytes] | None = None
        """A batch that is to be compressed, with its wire bytes."""
        self._deflates = False

    def take(self, call: Call, credit: int) -> bytes:
        """Return the batches that wait, up to the first that exceeds the credit or has to be compressed in a thread."""
        subscription = self._subscription
        if self._deflates:
            return b""
        subscription.sending = None  # all that was returned before has left, or does now
        wires: list[bytes] = []
        size = 0
        while size < credit and (self._next is not None or subscription.buffered_messages):
            batch, plain = self._next or self._receive()
            self._next = None
            wire = _deflated_now(batch, plain)
            if wire is None:
                self._next = batch, plain
                self._deflates = True
                subscription.sending = batch
                call.app.aside(self)
                return _joined(wires)
            size += len(wire)
            if size > credit:
                subscription.sending = batch
                if wires:
                    call.send(_joined(wires))
                    call.send(wire)  # never copied: all subscribers share it
                    wires = []
                    break
            wires.append(wire)
        joined = _joined(wires)
        if wires and (subscription.position.follows != ASIDE or subscription.buffered_messages):
            return joined
        return self._aside(call, joined, credit)

    def begin(self) -> Callable[[], bytes] | None:
        """Its turn has come."""
        if self._call.local_closed or self._next is None:
            return None
        batch, plain = self._next
        if batch.deflated_wire is None:
            return partial(deflated_wire, plain)
        self._go_on()  # another subscriber's call was first
        return None

    def done(self, result: bytes) -> None:
        """Send what a thread has compressed."""
        if self._next is not None:
            _keep(self._next[0], result)
        self._go_on()

    def close(self) -> None:
        """Listen no more."""
        self._next = None
        super().close()

    def _receive(self) -> tuple[Batch, bytes]:
        batch = self._subscription.receive_nowait()
        return batch, self._wire(batch)

    def _go_on(self) -> None:
        self._deflates = False
        if not self._call.local_closed:
            self._call.connection.mark(self._call)


def _deflated_now(batch: Batch, plain: bytes) -> bytes | None:
    """Return what leaves for a batch; None: it is too large to compress it in the trio thread."""
    if batch.deflated_wire is not None:
        return batch.deflated_wire
    if len(plain) < DEFLATE_MIN_BYTES:
        return plain
    if len(plain) > AT_ONCE_BYTES:
        return None
    return _keep(batch, deflated_wire(plain))


def _keep(batch: Batch, wire: bytes) -> bytes:
    if batch.deflated_wire is None:
        batch.deflated_wire = wire
        batch.grow(len(wire))
    return batch.deflated_wire


def _joined(wires: list[bytes]) -> bytes:
    """Make one piece of several: one response of those that are all small."""
    if not wires:
        return b""
    if all(len(wire) < DEFLATE_MIN_BYTES and not wire[0] for wire in wires):
        return join_together(wires)
    return b"".join(wires) if len(wires) > 1 else wires[0]
