"""What other brokers call.

Owns:      the calls of broker.Replicas; results of appends on the wire.
Not here:  what is streamed (tails.py), the callers' side (links.py, forwarding.py).
Threads:   the trio thread.
"""

from collections.abc import Sequence

import trio

from persistence import Appended, Duplicate, NewMessage
from trio_broker._proto import replicas_pb2 as pb
from trio_broker._proto.replicas_grpc import ReplicasServicer
from trio_broker.broker import Broker
from trio_broker.errors import BrokerError, Conflict, InvalidArgument, OutcomeUnknown, StorageFull
from trio_broker.publishing import Publishing
from trio_broker.replicas.tails import STRANGERS_MAX, Admit, Feeds, TailFeed
from trio_broker.rpc.application import Feed
from trio_broker.rpc.call import Call
from trio_broker.rpc.handlers import fed, grouped
from trio_broker.runs import Result
from trio_broker.settling import SETTLE_MAX_S


class ReplicasService(ReplicasServicer):
    """A broker, for others on the same log."""

    def __init__(self, broker: Broker, admit: Admit, feeds: Feeds) -> None:
        """``feeds`` gets the streams that are opened."""
        self._broker = broker
        self._admit = admit
        self._feeds = feeds

    @fed()
    def Tail(  # type: ignore[override] # purerpc's generated signature takes one request
        self,
        call: Call,
        request: None = None,  # noqa: ARG002
    ) -> Feed:
        """Stream what is committed here, until the other broker ends the call."""
        strangers = [each for each in self._feeds.open if not each.admitted]
        if len(strangers) >= STRANGERS_MAX:
            strangers[0].send_away()
        return TailFeed(self._broker.fanout, call, self._admit, self._feeds)

    @grouped()
    def Append(  # type: ignore[override] # as above
        self,
        calls: list[Call],
        request: None = None,  # noqa: ARG002
    ) -> None:
        """Hand messages to this broker's committer, as if they had been published here."""
        for call in calls:
            asked: pb.AppendRequest = call.message
            if refusal := self._admit(asked.greeting):
                call.finish(refusal)
            else:
                next_group = self._broker.committer.next_group
                _Appending(self._broker, call, [_new_message(each, next_group()) for each in asked.messages])

    @grouped()
    async def Settle(self, calls: list[Call], request: None = None) -> None:  # noqa: ARG002
        """Answer when all is acknowledged that this broker has under way now, or nobody waits for that any more."""
        admitted = []
        for call in calls:
            if refusal := self._admit(call.message.greeting):
                call.finish(refusal)
            else:
                admitted.append(call)
        if admitted:
            with trio.move_on_after(SETTLE_MAX_S):
                await self._broker.committer.settle()
        for call in admitted:
            call.reply(pb.SettleResponse().SerializeToString())


class _Appending:
    """A request that is under way."""

    def __init__(self, broker: Broker, call: Call, messages: Sequence[NewMessage]) -> None:
        self._call = call
        self._is_done = False
        self._publishing: Publishing | None = None
        self._publishing = Publishing(
            broker.committer, messages, call.connection, atomic=False, done=self._done, caller=call
        )
        if self._is_done:
            self._answer()

    def _done(self) -> None:
        self._is_done = True
        self._answer()

    def _answer(self) -> None:
        if self._publishing is not None:
            results = [_result(each) for each in self._publishing.results()]
            self._call.reply(pb.AppendResponse(results=results).SerializeToString())


def _new_message(asked: pb.Appending, group: int) -> NewMessage:
    """Return a message to append. In a group, though alone: what is in one is not left to yet another broker."""
    return NewMessage(
        asked.subject,
        asked.body,
        None if asked.lifetime < 0 else asked.lifetime,
        dict(asked.headers),
        asked.idempotency_key,
        asked.expected_last_id if asked.HasField("expected_last_id") else None,
        group,
    )


def _result(result: Result) -> pb.AppendResult:
    match result:
        case Appended(id_, time_us):
            return pb.AppendResult(appended=pb.AppendedAt(id=id_, time_us=time_us))
        case Duplicate(id_, time_us):
            return pb.AppendResult(duplicate=pb.AppendedAt(id=id_, time_us=time_us))
        case Conflict():
            return pb.AppendResult(conflict=int(result.metadata["last_id"]))
        case OutcomeUnknown():
            return pb.AppendResult(unknown=str(result))
        case StorageFull():
            return pb.AppendResult(full=str(result))
        case InvalidArgument():
            return pb.AppendResult(rejected=str(result))
        case BrokerError():
            return pb.AppendResult(unavailable=str(result))
