"""The three calls of protos/broker.proto.

Owns:      what a request is to the broker, and what its answer is on the wire.
Not here:  the rules (trio_broker/broker.py), statuses (statuses.py), bytes (encoding.py).
Threads:   the trio thread.

Publish and Fetch are grouped: all calls of one read of a socket go to the broker at once. Subscribe is drained:
the connection asks the subscription's channel for batches as far as the client's windows go.
"""

from functools import partial

import trio
from purerpc import RpcFailedError, Status

from persistence import Appended, Key
from trio_broker import errors
from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.broker_grpc import BrokerServicer
from trio_broker.broker import Broker
from trio_broker.commit import Pending
from trio_broker.errors import BrokerError
from trio_broker.fanout import Subscription
from trio_broker.rpc.call import Call, Source
from trio_broker.rpc.handlers import Context, drained, grouped
from trio_broker.service.encoding import batch_wire, message_response, publish_response
from trio_broker.service.statuses import status_of

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


def _settle(pending: Pending) -> None:
    """Answer a publish by its outcome."""
    call = pending.caller
    assert isinstance(call, Call)
    call.work = None  # it and the call know each other no longer: no cycle is left for the garbage collector
    outcome = pending.outcome
    if isinstance(outcome, Appended):
        call.reply(publish_response(outcome.id, outcome.time_us))
    else:
        assert isinstance(outcome, BrokerError)
        call.finish(status_of(outcome))


class BrokerService(BrokerServicer):
    """A `Broker` behind gRPC."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @grouped(abandoned=_publish_abandoned)
    def Publish(  # type: ignore[override] # purerpc's generated signature takes one request
        self,
        calls: list[Call],
        request: None = None,  # noqa: ARG002
    ) -> None:
        """Hand the publishes of one read over together; the committer answers each when its flush is done."""
        messages = []
        accepted = []
        for call in calls:
            if call.local_closed:
                continue
            message: pb.PublishRequest = call.message
            try:
                messages.append(
                    self._broker.check(message.subject, message.body, _expiration(message), message.headers)
                )
            except BrokerError as error:
                call.finish(status_of(error))
            else:
                accepted.append(call)
        group = self._broker.hand_over(messages, calls[0].connection, accepted, _settle)
        for call, pending in zip(accepted, group.pendings, strict=True):
            if pending.outcome is None:
                call.work = pending

    @grouped()
    async def Fetch(self, calls: list[Call], request: None = None) -> None:  # noqa: ARG002
        """Look the fetches of one read up in as few trips to the store as memory allows."""
        for start in range(0, len(calls), FETCHED_AT_ONCE):
            await self._fetch(calls[start : start + FETCHED_AT_ONCE])

    async def _fetch(self, calls: list[Call]) -> None:
        try:
            found = await self._broker.fetch_many([Key(call.message.subject, call.message.id) for call in calls])
        except BrokerError as error:
            status = status_of(error)
            for call in calls:
                call.finish(status)
            return
        for call, result in zip(calls, found, strict=True):
            if isinstance(result, BrokerError):
                call.finish(status_of(result))
            else:
                call.reply(message_response(result))

    @drained(_subscribe_abandoned)
    async def Subscribe(  # type: ignore[override] # purerpc's generated signature lacks the context
        self, message: pb.SubscribeRequest, request: Context
    ) -> Source:
        """Register the subscription; its headers say that it stands."""
        await trio.lowlevel.checkpoint()
        try:
            subscription = self._broker.open_subscription(message.subject)
        except BrokerError as error:
            raise RpcFailedError(status_of(error)) from None
        call = request.call
        call.work = subscription
        subscription.wake = partial(call.connection.mark, call)
        subscription.ended = partial(call.hurry, LAST_WORDS_S)
        return SubscriptionSource(subscription)


class SubscriptionSource:
    """Feeds a call from a subscription's channel."""

    __slots__ = ("_subscription",)

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def take(self, call: Call, credit: int) -> bytes:
        """Return the batches that wait, up to the first that exceeds the credit; end the call after the last one."""
        subscription = self._subscription
        if not subscription.buffered_messages:  # asked, not tried: an exception costs more than a delivery
            if subscription.error is not None:
                call.finish(status_of(subscription.error))
            return b""
        wire = batch_wire(subscription.receive_nowait())
        if subscription.buffered_messages and len(wire) < credit:
            wire = self._more(wire, credit)
        if subscription.error is None or subscription.buffered_messages:
            return wire
        call.send(wire)
        call.finish(status_of(subscription.error))
        return b""

    def _more(self, wire: bytes, credit: int) -> bytes:
        wires, size = [wire], len(wire)
        while self._subscription.buffered_messages and size < credit:
            wires.append(batch_wire(self._subscription.receive_nowait()))
            size += len(wires[-1])
        return b"".join(wires)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.close()


def _expiration(message: pb.PublishRequest) -> int | None:
    """Return the expiration in seconds; None: keep.

    Raises:
        InvalidExpiration: both were given.
    """
    if not message.keep:
        return message.expirationSeconds
    if message.expirationSeconds:
        raise errors.InvalidExpiration("keep goes with expirationSeconds 0: a message is kept for a time, or for good")
    return None
