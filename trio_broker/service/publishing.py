"""Batches and streams of publishes on gRPC.

Owns:      what a request is to the broker, message by message; `PublishFeed`, the acknowledgements of a stream, in
           order, and when its credit goes back.
Not here:  which call is which (servicer.py), bytes (encoding.py), runs and their results (trio_broker/publishing.py).
Threads:   the trio thread; no function here is a checkpoint.

A stream has no task. What a read brought is handed over together, cut into runs; the connection asks for the
acknowledgements when it writes, so all that one flush settled is one response. The credit of a request goes back when
its acknowledgement leaves: what a stream has on its way, in the queue or unacknowledged, is bounded by its window.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter

from google.protobuf.message import DecodeError
from purerpc import Status

from persistence import NO_HEADERS, Appended, Duplicate, NewMessage
from trio_broker._proto import broker_pb2 as pb
from trio_broker.broker import Broker
from trio_broker.errors import (
    BrokerError,
    InvalidBatch,
    InvalidExpiration,
    InvalidSubject,
    Malformed,
    NotApplied,
    OutcomeUnknown,
)
from trio_broker.publishing import Publishing, abort_others, check_count
from trio_broker.rpc.call import Call
from trio_broker.rpc.framing import PREFIX_BYTES, framed
from trio_broker.rpc.status import OK
from trio_broker.runs import OVERHEAD_BYTES, Pending, Result
from trio_broker.service.encoding import ack, failed_ack, failed_result, publish_result
from trio_broker.service.requests import stream_request
from trio_broker.service.statuses import connection_aged, failure_of, status_of, with_metadata
from trio_broker.subject import check_subject

FLYING_MAX = 4096
"""Runs, and messages that failed their check, of one stream that wait for their acknowledgements, about."""

_PROMISING = frozenset({"CLOSED", "DRAINING", "OVERLOADED", "STORAGE_UNAVAILABLE"})
"""Reasons that say that nothing was appended."""

_SUBJECT = itemgetter(0)
_plain = partial(tuple.__new__, NewMessage)  # without the function that takes its fields one by one


def expiration_of(message: pb.PublishRequest) -> int | None:
    """Return the expiration in seconds; None: keep.

    Raises:
        InvalidExpiration: both were given.
    """
    if not message.keep:
        return message.expirationSeconds
    if message.expirationSeconds:
        raise InvalidExpiration("keep goes with expirationSeconds 0: a message is kept for a time, or for good")
    return None


def checked(broker: Broker, message: pb.PublishRequest, group: int = 0) -> NewMessage:
    """Return a message as it is handed over. Raises as `Broker.check`."""
    return broker.check(
        message.subject,
        message.body,
        expiration_of(message),
        message.headers,
        message.idempotency_key,
        message.expected_last_id if message.HasField("expected_last_id") else None,
        group,
    )


def check_all(
    broker: Broker, messages: Iterable[pb.PublishRequest], group: int = 0
) -> Iterator[NewMessage | BrokerError]:
    """Yield for each message what `checked` returns, or raises.

    Most have nothing special about them: those are let pass here, at two thirds of the cost.
    """
    body_max_bytes, expiration_max_s = broker.body_max_bytes, broker.expiration_max_s
    passed = None
    for message in messages:
        subject, body, seconds = message.subject, message.body, message.expirationSeconds
        if (
            0 <= seconds <= expiration_max_s
            and len(body) <= body_max_bytes
            and not message.keep
            and not message.idempotency_key
            and not message.headers
            and not message.HasField("expected_last_id")
            and (subject == passed or _is_subject(subject))
        ):
            passed = subject
            yield _plain((subject, body, seconds, NO_HEADERS, "", None, group))
            continue
        try:
            yield checked(broker, message, group)
        except BrokerError as error:
            yield error


def _is_subject(subject: str) -> bool:
    try:
        check_subject(subject)
    except InvalidSubject:
        return False
    return True


def begin_batch(broker: Broker, call: Call) -> None:
    """Hand a PublishBatch over; it is answered when all of it is settled, or at once if it cannot be."""
    request: pb.PublishBatchRequest = call.message
    call.message = None  # it would be in memory twice while it waits for the store
    group = broker.committer.next_group() if request.atomic else 0
    try:
        check_count(len(request.messages))
    except InvalidBatch as error:
        call.finish(status_of(error))
        return
    messages = list(check_all(broker, request.messages, group))
    if request.atomic:
        abort_others(messages, [message.subject for message in request.messages])
    batch = _Batch(call)
    batch.publishing = Publishing(
        broker.committer, messages, call.connection, atomic=request.atomic, done=batch.done, caller=call
    )
    if batch.is_done:
        batch.answer()
    else:
        call.work = batch


class _Batch:
    """A PublishBatch that is under way."""

    publishing: Publishing

    def __init__(self, call: Call) -> None:
        self._call = call
        self.is_done = False

    def done(self) -> None:
        """All is settled."""
        self.is_done = True
        if self._call.work is self:
            self.answer()

    def answer(self) -> None:
        """Answer the call; as a whole with an error that all messages have, if that asks for trying again."""
        call = self._call
        call.work = None
        results = self.publishing.results()
        if error := _common(results):
            call.finish(status_of(error))
        else:
            call.reply(b"".join(map(_result, results)))


def batch_abandoned(call: Call) -> Status | None:
    """Take a batch back as far as the store has not got it. The status is for one whose deadline has passed."""
    batch: _Batch | None = call.work
    call.work = None
    if batch is None or batch.publishing.withdraw():
        return status_of(NotApplied("out of time before the batch was handed to the store: not appended"))
    return status_of(OutcomeUnknown("out of time while the store was committing: some of it may have been appended"))


def _common(results: Sequence[Result]) -> BrokerError | None:
    """Return the error that all messages have in common, if each may be tried again."""
    first = results[0] if results else None
    if not isinstance(first, BrokerError) or not first.retryable:
        return None
    return first if {type(result) for result in results} == {type(first)} else None


def _result(result: Result) -> bytes:
    if isinstance(result, BrokerError):
        return failed_result(failure_of(result).SerializeToString())
    return publish_result(result.id, result.time_us, duplicate=isinstance(result, Duplicate))


class _Flying:
    """A run of a stream, or a message that failed its check, and the credit that goes back with it."""

    __slots__ = ("_error", "_pending", "credit")

    def __init__(self, pending: Pending | None, error: BrokerError | None, credit: int) -> None:
        self._pending = pending
        self._error = error
        self.credit = credit

    @property
    def outcomes(self) -> Sequence[Result] | None:
        """What became of its messages; None: that is open."""
        if self._pending is None:
            assert self._error is not None
            return (self._error,)
        return self._pending.outcomes

    @property
    def is_of_one_subject(self) -> bool:
        return self._pending is not None and len(set(map(_SUBJECT, self._pending.messages))) == 1

    def withdraw(self) -> bool:
        """Take it back. True: nothing of it was or will be appended."""
        return self._pending is None or self._pending.withdraw()


class PublishFeed:
    """A PublishStream: messages in, acknowledgements in the same order out."""

    def __init__(
        self,
        broker: Broker,
        call: Call,
        over: Callable[["PublishFeed"], None],
        *,
        held: bool,
    ) -> None:
        """``over`` is called when the call is over. ``held``: see `hold`."""
        self._broker = broker
        self._call = call
        self._over = over
        self._flying: deque[_Flying] = deque()
        self._gathered: list[NewMessage] = []
        self._ends: list[tuple[int, int]] = []  # how many are gathered when a request ends, and its bytes
        self._gathered_bytes = 0
        self._kept: tuple[pb.PublishStreamRequest, int] | None = None  # parsed; there was no room for it
        self._acknowledged = 0
        self._end: Status | None = None
        self._held = held
        call.last_word = self._last_word
        broker.on_stopping[self._stop] = None

    def hold(self, held: bool) -> None:  # noqa: FBT001 - what it is set to
        """While ``held``, take in nothing: memory is short."""
        self._held = held
        if not held:
            self.feed()

    def feed(self) -> None:
        """Hand over what has arrived, as far as there is room for it."""
        call = self._call
        if call.local_closed or self._end is not None:
            return
        while not self._held and len(self._flying) + len(self._ends) < FLYING_MAX and self._end is None:
            if self._kept is None and not self._parse_next():
                break
            if not self._gather_kept():
                break
        self._hand_over()
        if not self._flying:
            call.connection.mark(call)  # the end may be due

    def take(self, call: Call, credit: int) -> bytes:  # noqa: ARG002
        """Return the acknowledgements that are due; end the call after the last one."""
        wire = self._acks()
        if len(self._flying) < FLYING_MAX // 2 and (self._kept or call.inbox) and not self._held:
            self.feed()
            wire += self._acks()  # of what was refused at once
        if not self._flying and (end := self._end_now()) is not None:
            if wire:
                call.send(wire)
            call.finish(end)
            return b""
        return wire

    def retire(self) -> None:
        """Take no more; end when all that was handed over is acknowledged."""
        self._stop(connection_aged())

    def close(self) -> None:
        """The call is over: take back what the store has not been given."""
        self._give_up()
        self._broker.on_stopping.pop(self._stop, None)
        self._over(self)

    def abandoned(self) -> Status:
        """Return the status for a stream whose deadline has passed; what the store has not been given is taken back."""
        if wire := self._acks():
            self._call.send(wire)
        if self._give_up():
            return status_of(
                OutcomeUnknown("out of time while the store was committing: some messages may have been appended")
            )
        return status_of(NotApplied("out of time; what was not acknowledged was not appended"))

    def _parse_next(self) -> bool:
        """Parse the next request of the inbox; False: there is none, or it cannot be taken."""
        call = self._call
        if not call.inbox:
            return False
        data = call.take_message()
        try:
            request = stream_request(data)
            check_count(len(request.messages))
        except DecodeError:
            self._end = status_of(Malformed(f"a request is not a {call.method.request_type}"))
            return False
        except InvalidBatch as error:
            self._end = status_of(error)
            return False
        self._kept = request, len(data) + PREFIX_BYTES
        return True

    def _gather_kept(self) -> bool:
        """Check the messages of the request that is next; False: there is no room for them now."""
        assert self._kept is not None
        request, size = self._kept
        messages = request.messages
        most = self._gathered_bytes + size + OVERHEAD_BYTES * len(messages)
        committer = self._broker.committer
        source = None if self._gathered else self._call.connection
        if not committer.has_room(len(self._gathered) + len(messages), most, source):
            committer.when_room(self.feed)
            return False
        self._kept = None
        self._gathered_bytes = most
        gathered = self._gathered
        for message in check_all(self._broker, messages):
            if isinstance(message, BrokerError):
                self._hand_over()
                gathered = self._gathered
                self._flying.append(_Flying(None, message, 0))
            else:
                gathered.append(message)
        self._ends.append((len(gathered), size))
        return True

    def _hand_over(self) -> None:
        """Hand over what is gathered. The credit of each request goes with its last run."""
        messages, ends = self._gathered, self._ends
        if not messages:
            if ends and self._flying:
                self._flying[-1].credit += sum(size for _, size in ends)
            elif ends:
                self._call.take(sum(size for _, size in ends))  # of requests without a message
            self._ends = []
            return
        self._gathered, self._ends, self._gathered_bytes = [], [], 0
        call, committer = self._call, self._broker.committer
        runs = committer.cut(messages)
        group = committer.hand_over_runs(runs, call.connection, [call] * len(runs), self._settled, had_room=True)
        stop = at = 0
        for pending in group.pendings:
            stop += pending.count
            credit = 0
            while at < len(ends) and ends[at][0] <= stop:
                credit += ends[at][1]
                at += 1
            self._flying.append(_Flying(pending, None, credit))
        if group.pendings[0].outcomes is not None:
            call.connection.mark(call)

    def _settled(self, _pending: Pending) -> None:
        call = self._call
        if not call.closed:
            call.connection.mark(call)

    def _stop(self, error: BrokerError) -> None:
        """Take no more; end with ``error`` when all that was handed over is acknowledged."""
        if self._end is None:
            self._end = status_of(error)
            self._call.connection.mark(self._call)

    def _end_now(self) -> Status | None:
        """Return the status to end with, if nothing is on its way any more; None: it goes on."""
        if self._end is not None:
            return self._end
        call = self._call
        return OK if call.request_ended and not call.inbox and self._kept is None else None

    def _last_word(self, status: Status) -> Status:
        """Acknowledge what is settled; then say how much that was."""
        if wire := self._acks():
            self._call.send(wire)
        if self._give_up() and getattr(status, "reason", "") in _PROMISING:
            status = status_of(OutcomeUnknown(f"{status.status_message}; some messages were with the store"))
        return status if status is OK else with_metadata(status, acknowledged=self._acknowledged)

    def _give_up(self) -> bool:
        """Take back what can be. True: the store has been given something of which nobody will hear any more."""
        taken_back = [each.withdraw() or each.outcomes is not None for each in self._flying]
        self._flying.clear()
        self._gathered, self._ends, self._kept = [], [], None
        self._end = self._end or OK
        return not all(taken_back)

    def _acks(self) -> bytes:
        """Return a response with the acknowledgements of what is settled, up to the first that is not; or nothing."""
        flying = self._flying
        acks = _Acks()
        credit = 0
        while flying and (outcomes := flying[0].outcomes) is not None:
            each = flying.popleft()
            credit += each.credit
            if len(outcomes) > 1 and each.is_of_one_subject:
                acks.add_alike(outcomes)
            else:
                acks.add(outcomes)
        if not acks.messages:
            return b""
        self._acknowledged += acks.messages
        self._call.take(credit)
        return framed(acks.encoded())


class _Acks:
    """Acknowledgements of consecutive messages, those that are alike as one."""

    __slots__ = ("_count", "_encoded", "_error", "_first", "_next_id", "messages")

    def __init__(self) -> None:
        self.messages = 0
        """How many are acknowledged."""
        self._encoded: list[bytes] = []
        self._count = 0  # of those that are alike and not encoded yet
        self._first: Appended | Duplicate | None = None
        self._next_id = 0
        self._error: BrokerError | None = None

    def add_alike(self, outcomes: Sequence[Result]) -> None:
        """Add what became of messages of one subject: as one, if all of them were appended at once."""
        first, last = outcomes[0], outcomes[-1]
        count = len(outcomes)
        if (
            isinstance(first, Appended)
            and isinstance(last, Appended)
            and last.id - first.id == count - 1
            and last.time_us == first.time_us
            and set(map(type, outcomes)) == {Appended}
        ):
            self._add_appended(first, count)
        else:
            self.add(outcomes)

    def add(self, outcomes: Iterable[Result]) -> None:
        """Add what became of messages."""
        for outcome in outcomes:
            if isinstance(outcome, BrokerError):
                self._add_failed(outcome)
            else:
                self._add_appended(outcome, 1)

    def encoded(self) -> bytes:
        """Return all of them as a PublishStreamResponse."""
        self._close()
        return b"".join(self._encoded)

    def _add_appended(self, first: Appended | Duplicate, count: int) -> None:
        before = self._first
        if (
            before is None
            or first.id != self._next_id
            or first.time_us != before.time_us
            or type(first) is not type(before)
        ):
            self._close()
            self._first = first
        self._next_id = first.id + count
        self._count += count
        self.messages += count

    def _add_failed(self, error: BrokerError) -> None:
        if error is not self._error and not (self._error is not None and _is_same(error, self._error)):
            self._close()
            self._error = error
        self._count += 1
        self.messages += 1

    def _close(self) -> None:
        if self._first is not None:
            is_duplicate = isinstance(self._first, Duplicate)
            self._encoded.append(ack(self._count, self._first.id, self._first.time_us, duplicate=is_duplicate))
        elif self._error is not None:
            self._encoded.append(failed_ack(self._count, failure_of(self._error).SerializeToString()))
        self._count = 0
        self._first = self._error = None


def _is_same(one: BrokerError, other: BrokerError) -> bool:
    return type(one) is type(other) and str(one) == str(other) and one.metadata == other.metadata


def stream_abandoned(call: Call) -> Status | None:
    """Say what became of a stream whose deadline has passed."""
    feed: PublishFeed | None = call.work
    return None if feed is None else feed.abandoned()
