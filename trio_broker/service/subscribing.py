"""Subscriptions on gRPC.

Owns:      what a SubscribeRequest is to the broker; how batches leave: `SubscriptionSource`, in one of two encodings.
Not here:  which call is which (servicer.py), bytes (encoding.py), what waits for whom (trio_broker/subscription.py).
Threads:   the trio thread.

Subscribe and SubscribeBatch are drained: the connection asks the subscription's channel for batches as far as the
client's windows go. They differ in the encoding alone.
"""

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio
from purerpc import RpcFailedError, Status

from trio_broker import errors
from trio_broker._proto import broker_pb2 as pb
from trio_broker.broker import Broker
from trio_broker.errors import BrokerError
from trio_broker.message import EPOCH
from trio_broker.position import ASIDE
from trio_broker.rpc.application import Source
from trio_broker.rpc.call import Call
from trio_broker.rpc.status import OK
from trio_broker.service.encoding import batch_wire, join_together, together_wire
from trio_broker.service.places import Places
from trio_broker.service.statuses import connection_aged, status_of
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy, Start, Until
from trio_broker.subscription import Subscription

if TYPE_CHECKING:
    from trio_broker.batch import Batch
    from trio_broker.tracing import Tracing

LAST_WORDS_S = 10.0
"""How long a client may take to read what a subscription still has after it was cut."""


class Encoding(NamedTuple):
    """How batches become responses."""

    wire: "Callable[[Batch], bytes]"
    """Returns a batch as framed responses. They belong to the batch: all subscribers share them."""
    join: Callable[[Sequence[bytes]], bytes]
    """Makes one piece of those of several small batches."""


SINGLY = Encoding(batch_wire, b"".join)
TOGETHER = Encoding(together_wire, join_together)


async def subscribe(
    broker: Broker,
    places: Places,
    message: pb.SubscribeRequest,
    call: Call,
    encoding: Encoding,
    tracing: "Tracing | None",
    source: "Callable[[Subscription, Encoding, Callable[[], None]], Source] | None" = None,
) -> Source:
    """Register a subscription, and return where its responses come from. A checkpoint.

    It has its place until the source is closed. ``source`` makes that; None: a `SubscriptionSource`.

    Raises:
        RpcFailedError: it cannot be.
    """
    if tracing is not None:
        tracing.begin(call)
        encoding = encoding._replace(wire=partial(_traced_wire, tracing, call, encoding.wire))
    await trio.lowlevel.checkpoint()
    try:
        with _placed(places, call.connection):
            start = _start(message)
            span = await broker.locate(message.subject, start, _until(message))
            subscription = broker.open_subscription(
                message.subject, span, _slow_policy(message), report_gaps=message.report_gaps
            )
            call.work = subscription
            subscription.dropped = partial(_drop, call)
            subscription.ended = partial(call.hurry, LAST_WORDS_S)
            with _closed_if_failed(subscription):
                await broker.settling.wait(start, span)
    except BrokerError as error:
        raise RpcFailedError(status_of(error)) from None
    subscription.wake = partial(call.connection.mark, call)
    return (source or SubscriptionSource)(subscription, encoding, partial(places.leave, call.connection))


@contextmanager
def _placed(places: Places, connection: Hashable) -> Generator[None]:
    """Take a place; give it back if the block fails."""
    places.enter(connection)
    try:
        yield
    except BaseException:
        places.leave(connection)
        raise


@contextmanager
def _closed_if_failed(subscription: Subscription) -> Generator[None]:
    """Close it if the block fails: nobody gets it then."""
    try:
        yield
    except BaseException:
        subscription.close()
        raise


def subscribe_abandoned(call: Call) -> Status | None:
    """Say why a subscription ended, to a client that does not read what it still has: that is dropped."""
    subscription: Subscription | None = call.work
    if subscription is None or subscription.error is None:
        return None
    if not isinstance(subscription.error, errors.SlowConsumer):
        return _end_of(subscription, subscription.error)
    last_id = subscription.last_delivered_id
    text = f"the subscriber of {subscription.subject!r} does not read; the last one delivered is {last_id}"
    return status_of(errors.SlowConsumer(text, last_delivered_id=last_id))


def _end_of(subscription: Subscription, error: BrokerError) -> Status:
    """Return how a subscription ends, with the id after which it can go on elsewhere, if it has got so far."""
    last_id = subscription.last_delivered_id
    if last_id and "last_delivered_id" not in error.metadata:
        error.metadata = {**error.metadata, "last_delivered_id": str(last_id)}
    return status_of(error)


def _drop(call: Call) -> None:
    """Drop what is being sent for a subscription that was cut."""
    subscription: Subscription = call.work
    assert subscription.error is not None
    call.shed(status_of(subscription.error))


def _traced_wire(tracing: "Tracing", call: Call, wire: "Callable[[Batch], bytes]", batch: "Batch") -> bytes:
    tracing.delivered(call, batch)
    return wire(batch)


class SubscriptionSource:
    """Feeds a call from a subscription's channel."""

    __slots__ = ("_join", "_left", "_subscription", "_wire")

    def __init__(self, subscription: Subscription, encoding: Encoding, left: Callable[[], None] = lambda: None) -> None:
        """Take from ``subscription``, and send what is taken by ``encoding``. ``left`` is called at the end."""
        self._left = left
        self._subscription = subscription
        self._wire, self._join = encoding

    def take(self, call: Call, credit: int) -> bytes:
        """Return the batches that wait, up to the first that exceeds the credit; end the call after the last one."""
        subscription = self._subscription
        subscription.sending = None  # all that was returned before has left, or does now
        if not subscription.buffered_messages:  # asked, not tried: an exception costs more than a delivery
            return self._aside(call, b"", credit)
        batch = subscription.receive_nowait()
        wire = self._wire(batch)
        if len(wire) > credit:
            subscription.sending = batch
        elif subscription.buffered_messages and len(wire) < credit:
            wire = self._more(call, wire, credit)
        if subscription.position.follows != ASIDE or subscription.buffered_messages:
            return wire
        return self._aside(call, wire, credit)

    def _aside(self, call: Call, wire: bytes, credit: int) -> bytes:
        """Return what was taken; nothing is left: the log has more, or this is the end."""
        subscription = self._subscription
        if subscription.live:
            sent_now = subscription.sending is None and len(wire) < credit
            if sent_now or len(wire) <= min(call.send_window, call.connection.send_window):  # it leaves meanwhile
                subscription.pull()
            return wire  # otherwise this is asked again once it has left
        if wire:
            call.send(wire)
        call.finish(OK if subscription.error is None else _end_of(subscription, subscription.error))
        return b""

    def _more(self, call: Call, wire: bytes, credit: int) -> bytes:
        """Return small batches joined. One that exceeds the credit is queued as it is: all subscribers share it."""
        wires, size = [wire], len(wire)
        while self._subscription.buffered_messages and size < credit:
            batch = self._subscription.receive_nowait()
            wire = self._wire(batch)
            size += len(wire)
            if size > credit:
                self._subscription.sending = batch
                call.send(self._join(wires))
                call.send(wire)
                return b""
            wires.append(wire)
        return self._join(wires)

    def retire(self) -> None:
        """End it, after what is buffered."""
        self._subscription.end(connection_aged())

    def close(self) -> None:
        """Listen no more."""
        self._subscription.close()
        self._left()


def _start(message: pb.SubscribeRequest) -> Start:
    """Return where a subscription begins.

    Raises:
        InvalidPosition: a time that is none.
    """
    match message.WhichOneof("start"):
        case "earliest" if message.earliest:
            return Earliest()
        case "after_id":
            return After(message.after_id)
        case "last":
            return Last(message.last)
        case "at":
            try:
                return At(EPOCH + timedelta(seconds=message.at.seconds, microseconds=message.at.nanos // 1000))
            except OverflowError as error:
                raise errors.InvalidPosition(f"{message.at.seconds} s after 1970 is no time") from error
    return New()


def _until(message: pb.SubscribeRequest) -> Until | None:
    if message.WhichOneof("stop") == "until_id":
        return message.until_id
    return AtEnd() if message.at_end else None


def _slow_policy(message: pb.SubscribeRequest) -> SlowPolicy:
    try:
        return SlowPolicy(message.slow)
    except ValueError as error:
        raise errors.InvalidPosition(f"{message.slow} is no policy for slow subscribers") from error
