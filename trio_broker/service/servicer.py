"""The calls of protos/broker.proto.

Owns:      what a request is to the broker, and what its answer is on the wire.
Not here:  the rules (trio_broker/broker.py), statuses (statuses.py), bytes (encoding.py).
Threads:   the trio thread.

Publish and Fetch are grouped: all calls of one read of a socket go to the broker at once; so are PublishBatch and
FetchRange. PublishStream is fed (trio_broker/service/publishing.py), Subscribe and SubscribeBatch are drained
(trio_broker/service/subscribing.py).
"""

import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import trio
from purerpc import RpcFailedError, Status

from persistence import Appended, Duplicate, Key
from trio_broker import errors
from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.broker_grpc import BrokerServicer
from trio_broker.broker import Broker
from trio_broker.config import MESSAGE_OVERHEAD_BYTES
from trio_broker.errors import BrokerError
from trio_broker.memory import Pressure
from trio_broker.paging import PAGE_MAX_BYTES
from trio_broker.rpc.application import Feed, Source
from trio_broker.rpc.call import Call
from trio_broker.rpc.handlers import Context, drained, fed, grouped, parsed_by
from trio_broker.runs import Pending
from trio_broker.service import admin
from trio_broker.service.deflating import DeflatedSource
from trio_broker.service.encoding import (
    duplicate_response,
    message_response,
    page_response,
    publish_response,
)
from trio_broker.service.places import Places
from trio_broker.service.publishing import PublishFeed, batch_abandoned, begin_batch, check_all, stream_abandoned
from trio_broker.service.requests import batch_request
from trio_broker.service.statuses import status_of
from trio_broker.service.subscribing import SINGLY, TOGETHER, subscribe, subscribe_abandoned

if TYPE_CHECKING:
    from trio_broker.tracing import Tracing

NAME = "broker.Broker"
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


def refuse(pressure: Pressure, call: Call) -> Status | None:
    """Say how a call is refused by its headers while memory is short; None: it is served."""
    if call.method is None:
        return None
    if call.method.service == admin.NAME:
        return _MEMORY_SHORT if pressure is Pressure.FULL and call.method.name not in admin.DROPPING else None
    if call.method.service != NAME:  # health checks go on above all; what streams would stay
        return _MEMORY_SHORT if call.method.response_streams else None
    refused_from = Pressure.FULL if call.method.name in {"Fetch", "FetchRange"} else Pressure.HIGH
    return _MEMORY_SHORT if pressure >= refused_from else None


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

    def __init__(
        self,
        broker: Broker,
        fetches_at_once: int = sys.maxsize,
        tracing: "Tracing | None" = None,
        places: Places | None = None,
    ) -> None:
        """Serve ``broker``.

        ``fetches_at_once``: how many messages may be on their way from the store, over all calls. ``places``: for
        subscriptions; None: any number.
        """
        self._broker = broker
        self._places = places or Places(sys.maxsize)
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

    @parsed_by(batch_request)
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

    @grouped()
    async def FetchRange(self, calls: list[Call], request: None = None) -> None:  # noqa: ARG002
        """Read one page after the other: each may take as much memory as the largest message."""
        for call in calls:
            if call.closed:  # before this task began, or while it did another page
                continue
            if self._tracing is not None:
                self._tracing.begin(call)
            largest = self._broker.body_max_bytes + MESSAGE_OVERHEAD_BYTES  # as those who count what may be fetched do
            while not (count := self._fetches.begin(-(-PAGE_MAX_BYTES // largest))):
                await self._fetches.some_ended()
            try:
                await self._fetch_range(call, min(PAGE_MAX_BYTES, count * largest))
            finally:
                self._fetches.end(count)

    async def _fetch_range(self, call: Call, max_bytes: int) -> None:
        asked: pb.FetchRangeRequest = call.message
        try:
            with nullcontext() if self._tracing is None else self._tracing.fetch([call]):
                page = await self._broker.fetch_range(
                    asked.subject, asked.after_id, asked.until_id, asked.max_messages, max_bytes=max_bytes
                )
        except BrokerError as error:
            call.finish(status_of(error))
        else:
            call.reply(page_response(asked.subject, page))

    @drained(subscribe_abandoned)
    async def Subscribe(  # type: ignore[override] # purerpc's generated signature lacks the context
        self, message: pb.SubscribeRequest, request: Context
    ) -> Source:
        """Register the subscription; its headers say that it stands."""
        call = request.call
        call.compresses = False  # one by one messages hardly shrink
        return await subscribe(self._broker, self._places, message, call, SINGLY, self._tracing)

    @drained(subscribe_abandoned)
    async def SubscribeBatch(  # type: ignore[override] # as above
        self, message: pb.SubscribeRequest, request: Context
    ) -> Source:
        """Do as Subscribe, with many messages to a response."""
        call = request.call
        source = partial(DeflatedSource, call) if call.compresses else None
        return await subscribe(self._broker, self._places, message, call, TOGETHER, self._tracing, source)


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
