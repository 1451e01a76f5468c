"""The calls of protos/broker.proto.

Owns:      what a request is to the broker, and what its answer is on the wire.
Not here:  the rules (trio_broker/broker.py), statuses (statuses.py), bytes (encoding.py).
Threads:   the trio thread.

Publish and Fetch are grouped: all calls of one read of a socket go to the broker at once. Subscribe is drained:
the connection asks the subscription's channel for batches as far as the client's windows go. PublishBatch is grouped,
PublishStream is fed (trio_broker/service/publishing.py).
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import trio
from purerpc import RpcFailedError, Status

from persistence import Appended, Duplicate, Key
from trio_broker import errors
from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.broker_grpc import BrokerServicer
from trio_broker.broker import Broker
from trio_broker.errors import BrokerError
from trio_broker.memory import Pressure
from trio_broker.message import EPOCH
from trio_broker.position import ASIDE
from trio_broker.rpc.call import Call, Feed, Source
from trio_broker.rpc.handlers import Context, drained, fed, grouped
from trio_broker.rpc.status import OK
from trio_broker.runs import Pending
from trio_broker.service.encoding import batch_wire, duplicate_response, message_response, publish_response
from trio_broker.service.publishing import PublishFeed, batch_abandoned, begin_batch, check_all, stream_abandoned
from trio_broker.service.statuses import status_of
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy, Start, Until
from trio_broker.subscription import Subscription

if TYPE_CHECKING:
    from trio_broker.batch import Batch
    from trio_broker.tracing import Tracing

NAME = "broker.Broker"
LAST_WORDS_S = 10.0
"""How long a client may take to read what a subscription still has after it was cut."""
FETCHED_AT_ONCE = 32
"""Messages in one trip to the store: at 4 MiB each, they are in memory together."""


def _publish_abandoned(call: Call) -> Status | None:
    """Take a publish back if the store has not got it yet. The status is for one whose deadline has passed."""
    pending: Pending | None = call.work
    call.work = None
    if pending is None or pending.withdraw():
        return status_of(errors.NotApplied("out of time before the message was handed to the store: not appended"))
    if pending.outcome is not None:
        _settle(pending)
        return None
    return status_of(
        errors.OutcomeUnknown("out of time while the store was committing: the message may have been appended")
    )


def _subscribe_abandoned(call: Call) -> Status | None:
    """Say why a subscription ended, to a client that does not read what it still has: that is dropped."""
    subscription: Subscription | None = call.work
    if subscription is None or subscription.error is None:
        return None
    if not isinstance(subscription.error, errors.SlowConsumer):
        return status_of(subscription.error)
    last_id = subscription.last_delivered_id
    text = f"the subscriber of {subscription.subject!r} does not read; the last one delivered is {last_id}"
    return status_of(errors.SlowConsumer(text, last_delivered_id=last_id))


def refuse(pressure: Pressure, call: Call) -> Status | None:
    """Say how a call is refused by its headers while memory is short; None: it is served."""
    if call.method is None:
        return None
    if call.method.service != NAME:  # health checks go on above all; what streams would stay
        return _MEMORY_SHORT if call.method.response_streams else None
    refused_from = Pressure.FULL if call.method.name == "Fetch" else Pressure.HIGH
    return _MEMORY_SHORT if pressure >= refused_from else None


def _drop(call: Call) -> None:
    """Drop what is being sent for a subscription that was cut."""
    subscription: Subscription = call.work
    assert subscription.error is not None
    call.shed(status_of(subscription.error))


def _settle(pending: Pending) -> None:
    """Answer a publish by its outcome."""
    call = pending.caller
    assert isinstance(call, Call)
    call.work = None  # it and the call know each other no longer: no cycle is left for the garbage collector
    assert pending.outcomes is not None
    outcome = pending.outcomes[0]
    if isinstance(outcome, Appended):
        call.reply(publish_response(outcome.id, outcome.time_us))
    elif isinstance(outcome, Duplicate):
        call.reply(duplicate_response(outcome.id, outcome.time_us))
    else:
        assert isinstance(outcome, BrokerError)
        call.finish(status_of(outcome))


_short = errors.Overloaded("memory is short; nothing was done")
_short.retry_after_s = 1.0
_MEMORY_SHORT = status_of(_short)


class BrokerService(BrokerServicer):
    """A `Broker` behind gRPC."""

    def __init__(self, broker: Broker, fetches_at_once: int = sys.maxsize, tracing: "Tracing | None" = None) -> None:
        """``fetches_at_once``: how many messages may be on their way from the store, over all calls."""
        self._broker = broker
        self._tracing = tracing
        self._fetches = Fetches(fetches_at_once)
        self._feeds: dict[PublishFeed, None] = {}  # a dict for a set that keeps its order
        self._pressed = False

    @grouped(abandoned=_publish_abandoned)
    def Publish(  # type: ignore[override] # purerpc's generated signature takes one request
        self,
        calls: list[Call],
        request: None = None,  # noqa: ARG002
    ) -> None:
        """Hand the publishes of one read over together; the committer answers each when its flush is done."""
        calls = [call for call in calls if not call.local_closed]
        if self._tracing is not None:
            for call in calls:
                self._tracing.publish(call)
        messages = []
        accepted = []
        for call, message in zip(calls, check_all(self._broker, [call.message for call in calls]), strict=True):
            call.message = None  # it would be in memory twice while it waits for the store
            if isinstance(message, BrokerError):
                call.finish(status_of(message))
            else:
                messages.append(message)
                accepted.append(call)
        if not accepted:
            return
        group = self._broker.hand_over(messages, calls[0].connection, accepted, _settle)
        for call, pending in zip(accepted, group.pendings, strict=True):
            if pending.outcome is None:
                call.work = pending

    @grouped(abandoned=batch_abandoned)
    def PublishBatch(  # type: ignore[override] # as above
        self,
        calls: list[Call],
        request: None = None,  # noqa: ARG002
    ) -> None:
        """Hand each batch over; it is answered when all of it is settled."""
        for call in calls:
            if not call.local_closed:
                if self._tracing is not None:
                    self._tracing.begin(call)
                begin_batch(self._broker, call)

    @fed(stream_abandoned)
    def PublishStream(  # type: ignore[override] # as above
        self,
        call: Call,
        request: None = None,  # noqa: ARG002
    ) -> Feed:
        """Take messages from the call until it ends."""
        if self._tracing is not None:
            self._tracing.begin(call)
        if (refusal := self._broker.refusal()) is not None:
            raise RpcFailedError(status_of(refusal))
        feed = PublishFeed(self._broker, call, self._feed_over, held=self._pressed)
        call.work = feed
        self._feeds[feed] = None
        return feed

    def hold(self, pressure: Pressure) -> None:
        """While memory is short, let streams of publishes wait: nothing is taken from them."""
        self._pressed = pressure >= Pressure.HIGH
        for feed in tuple(self._feeds):
            feed.hold(self._pressed)

    def _feed_over(self, feed: PublishFeed) -> None:
        del self._feeds[feed]

    @grouped()
    async def Fetch(self, calls: list[Call], request: None = None) -> None:  # noqa: ARG002
        """Look the fetches of one read up in as few trips to the store as memory allows."""
        if self._tracing is not None:
            for call in calls:
                if not call.closed:  # one that ended before this task began has been told of
                    self._tracing.begin(call)
        start = 0
        while start < len(calls):
            while not (count := self._fetches.begin(min(len(calls) - start, FETCHED_AT_ONCE))):
                await self._fetches.some_ended()
            try:
                await self._fetch(calls[start : start + count])
            finally:
                self._fetches.end(count)
            start += count

    async def _fetch(self, calls: list[Call]) -> None:
        try:
            with nullcontext() if self._tracing is None else self._tracing.fetch(calls):
                found = await self._broker.fetch_many([Key(call.message.subject, call.message.id) for call in calls])
        except BrokerError as error:
            status = status_of(error)
            for call in calls:
                call.finish(status)
            return
        found.reverse()
        for call in calls:
            result = found.pop()  # each is let go as soon as it is encoded
            if isinstance(result, BrokerError):
                call.finish(status_of(result))
            else:
                call.reply(message_response(result))

    @drained(_subscribe_abandoned)
    async def Subscribe(  # type: ignore[override] # purerpc's generated signature lacks the context
        self, message: pb.SubscribeRequest, request: Context
    ) -> Source:
        """Register the subscription; its headers say that it stands."""
        call = request.call
        if self._tracing is not None:
            self._tracing.begin(call)
        await trio.lowlevel.checkpoint()
        try:
            span = await self._broker.locate(message.subject, _start(message), _until(message))
            subscription = self._broker.open_subscription(
                message.subject, span, _slow_policy(message), report_gaps=message.report_gaps
            )
        except BrokerError as error:
            raise RpcFailedError(status_of(error)) from None
        call.work = subscription
        subscription.wake = partial(call.connection.mark, call)
        subscription.dropped = partial(_drop, call)
        subscription.ended = partial(call.hurry, LAST_WORDS_S)
        wire = batch_wire if self._tracing is None else partial(_traced_wire, self._tracing, call)
        return SubscriptionSource(subscription, wire)


def _traced_wire(tracing: "Tracing", call: Call, batch: "Batch") -> bytes:
    tracing.delivered(call, batch)
    return batch_wire(batch)


class Fetches:
    """How many messages may be on their way from the store at once: each may be of the largest size."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting = trio.lowlevel.ParkingLot()

    def begin(self, wanted: int) -> int:
        """Return how many may begin, ``wanted`` at most; 0: try again after `some_ended`."""
        count = min(wanted, self._free)
        self._free -= count
        return count

    def end(self, count: int) -> None:
        """So many are done."""
        self._free += count
        self._waiting.unpark_all()

    async def some_ended(self) -> None:
        """Wait until others have ended. A checkpoint."""
        await self._waiting.park()


class SubscriptionSource:
    """Feeds a call from a subscription's channel."""

    __slots__ = ("_subscription", "_wire")

    def __init__(self, subscription: Subscription, wire: "Callable[[Batch], bytes]") -> None:
        """Take from ``subscription``; ``wire`` makes bytes of each batch that is taken."""
        self._subscription = subscription
        self._wire = wire

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
            if subscription.sending is None and len(wire) < credit:  # otherwise this is asked again once it has left
                subscription.pull()
            return wire
        if wire:
            call.send(wire)
        call.finish(OK if subscription.error is None else status_of(subscription.error))
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
                call.send(b"".join(wires))
                call.send(wire)
                return b""
            wires.append(wire)
        return b"".join(wires)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.close()


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
