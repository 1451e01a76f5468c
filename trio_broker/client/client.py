"""The broker's calls, for Python programs on trio.

Owns:      `connect` and `Client`: protobuf on one side, `Message` and typed errors on the other.
Not here:  the connection (trio_broker/client/channel.py), statuses (trio_broker/client/statuses.py).
Threads:   the trio thread only.
"""

import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, Literal, Self, TypeVar, assert_never, cast, overload

import trio
from google.protobuf.message import Message as ProtobufMessage

from trio_broker._proto.broker_pb2 import (
    DeleteSubjectRequest,
    FetchRangeRequest,
    FetchRangeResponse,
    FetchRequest,
    GetSubjectRequest,
    ListSubjectsRequest,
    ListSubjectsResponse,
    MessageBatch,
    MessageResponse,
    PublishBatchRequest,
    PublishResponse,
    PurgeSubjectRequest,
    SubscribeRequest,
)
from trio_broker._proto.broker_pb2 import SubjectInfo as WireSubjectInfo
from trio_broker._proto.google.protobuf.timestamp_pb2 import Timestamp
from trio_broker.client.channel import Call, Channel, open_channel
from trio_broker.client.publishing import PublishStream, batch_results, publish_request
from trio_broker.errors import BrokerError, InvalidPosition
from trio_broker.message import (
    NO_HEADERS,
    Draft,
    Gap,
    Message,
    MessagePage,
    SubjectInfo,
    SubjectPage,
    microseconds_of,
    time_of,
)
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy, Start, Until


@asynccontextmanager
async def connect(
    server: str, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> AsyncGenerator["Client"]:
    """Connect to a broker at ``HOST:PORT`` or ``unix:/path`` for the length of the block. A checkpoint.

    One connection, for any number of calls at once. It is not made again when it is lost: every call then raises
    `ConnectionLost`. Bound the wait with ``trio.fail_after``.

    Args:
        server: where it is.
        tls: encrypt with this, see `trio_broker.client.client_context`; None: plaintext.
        server_name: what the broker's certificate has to be for; None: the host of ``server``.

    Raises:
        ValueError: ``server`` is not an address.
        ConnectionLost: no broker answers there, or it or this client is not trusted. Retryable.
    """
    async with open_channel(server, tls=tls, server_name=server_name) as channel:
        yield Client(channel)


class Client:
    """A connection to a broker. Every method raises the errors of `trio_broker.errors`.

    A deadline (``trio.fail_after``) around publish or fetch is told to the broker too. A cancelled call is left at
    once: what became of a publish is then not known.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def publish(
        self,
        subject: str,
        body: bytes,
        expiration: int | None = 0,
        *,
        headers: Mapping[str, bytes] | None = None,
        idempotency_key: str = "",
        expected_last_id: int | None = None,
    ) -> int:
        """Publish a message; return its id once it is durable. A checkpoint.

        Args:
            subject: tokens separated by dots.
            body: may be empty.
            expiration: seconds to keep the message; 0: only for those who are subscribed now; None: keep it.
            headers: delivered with the message.
            idempotency_key: if a message with this key was published to the subject before, nothing is appended, and
                the id is that one's. So a publish may be repeated whose outcome is not known.
            expected_last_id: append only if that is the subject's last id, 0 if it has none.

        Raises:
            Conflict: the subject's last id is not the expected one.
        """
        publishing = await self.start_publish(
            subject,
            body,
            expiration,
            headers=headers,
            idempotency_key=idempotency_key,
            expected_last_id=expected_last_id,
        )
        try:
            return await publishing.id()
        finally:
            publishing.leave()

    async def start_publish(
        self,
        subject: str,
        body: bytes,
        expiration: int | None = 0,
        *,
        headers: Mapping[str, bytes] | None = None,
        idempotency_key: str = "",
        expected_last_id: int | None = None,
    ) -> "Publishing":
        """Send a message without waiting for its id. A checkpoint.

        Publishes that are started one after the other on one client are committed in that order: so many can be in
        flight at once, in order. The caller bounds how many.
        """
        request = publish_request(
            Draft(subject, body, expiration, headers or NO_HEADERS, idempotency_key, expected_last_id)
        )
        return Publishing(await self._start_unary("Publish", request.SerializeToString()))

    async def publish_batch(self, drafts: Sequence[Draft], *, atomic: bool = False) -> list[int | BrokerError]:
        """Publish messages, of any subjects; return for each its durable id, or why it has none. A checkpoint.

        Args:
            drafts: at most 10,000, and together as large as one message may be. Those of one subject get ids in their
                order.
            atomic: the messages of each one subject succeed or fail together, at most 1,000 of one; of one that fails
                for the sake of another the error is `Aborted`.

        Raises:
            BrokerError: for all of them.
        """
        request = PublishBatchRequest(messages=[publish_request(draft) for draft in drafts], atomic=atomic)
        call = await self._start_unary("PublishBatch", request.SerializeToString())
        try:
            return batch_results(await call.receive_one())
        finally:
            call.close()

    @asynccontextmanager
    async def publish_stream(self) -> AsyncGenerator[PublishStream]:
        """Open a stream of publishes for the length of the block. A checkpoint on entry.

        Leaving the block leaves what has no result yet: it may be published or not. A deadline around the block is not
        told to the broker.

            async with client.publish_stream() as stream, trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, drafts)
                async for result in stream: ...  # one for each message; after `finish` it ends
        """
        call = await self._channel.open("/broker.Broker/PublishStream")
        try:
            await call.wait_started()
            yield PublishStream(call)
        finally:
            call.close()

    async def fetch(self, subject: str, id: int) -> Message:  # noqa: A002  the design's name
        """Return one message. A checkpoint.

        Raises:
            InvalidId: the id was never assigned.
            ExpiredId: its message is no longer kept, or never was.
        """
        call = await self._start_unary("Fetch", FetchRequest(subject=subject, id=id).SerializeToString())
        try:
            return _message(MessageResponse.FromString(await call.receive_one()))
        finally:
            call.close()

    async def fetch_range(
        self, subject: str, after_id: int = 0, until_id: int = 0, max_messages: int = 0
    ) -> MessagePage:
        """Return a page of what is kept of a part of a subject's log, in id order. A checkpoint.

        Args:
            subject: one subject.
            after_id: begin after this id; 0: at the first that is kept.
            until_id: end with this id; 0: with the last there is.
            max_messages: at most so many; 0: as many as a page holds. Fewer may come all the same: the next page
                begins after `MessagePage.scanned_to`.

        Raises:
            InvalidId: ``after_id`` was never assigned.
        """
        try:
            request = FetchRangeRequest(
                subject=subject, after_id=after_id, until_id=until_id, max_messages=max_messages
            )
        except ValueError as error:  # beyond what the wire can say
            raise InvalidPosition(f"not a part of a log: {error}") from error
        call = await self._start_unary("FetchRange", request.SerializeToString())
        try:
            response = FetchRangeResponse.FromString(await call.receive_one())
        finally:
            call.close()
        return MessagePage([_message(each) for each in response.messages], response.scanned_to, response.last_id)

    @overload
    def subscribe(
        self, subject: str, *, start: Start = ..., until: Until | None = ..., slow: SlowPolicy = ...
    ) -> AbstractAsyncContextManager["Subscription[Message]"]: ...

    @overload
    def subscribe(
        self,
        subject: str,
        *,
        start: Start = ...,
        until: Until | None = ...,
        slow: SlowPolicy = ...,
        report_gaps: Literal[True],
    ) -> AbstractAsyncContextManager["Subscription[Message | Gap]"]: ...

    @asynccontextmanager
    async def subscribe(
        self,
        subject: str,
        *,
        start: Start = New(),  # noqa: B008 - it is immutable
        until: Until | None = None,
        slow: SlowPolicy = SlowPolicy.CATCH_UP,
        report_gaps: bool = False,
    ) -> AsyncGenerator["Subscription[Any]"]:
        """Subscribe for the length of the block. A checkpoint on entry.

        Inside the block the subscription stands: every message of the subject acknowledged from now on is delivered.
        A deadline around the block is not told to the broker: leaving the block ends the call.

        Args:
            subject: one subject.
            start: begin there in the log: `Earliest`, `Last`, `After`, `At`. Without gap or duplicate where the log
                ends and what is published now begins.
            until: iterating ends after that id, or, with `AtEnd`, after what there is now.
            slow: what becomes of it when it reads more slowly than messages are published.
            report_gaps: iterate over each `Gap` too, in its place.
        """
        request = _subscribe_request(subject, start, until, slow, report_gaps=report_gaps)
        # who reads the log gets much at a time: so it takes two thirds of the time
        method, items = ("Subscribe", _one_item) if isinstance(start, New) else ("SubscribeBatch", _items)
        call = await self._channel.start(f"/broker.Broker/{method}", request.SerializeToString())
        try:
            await call.wait_started()
            yield Subscription(call, items)
        finally:
            call.close()

    async def list_subjects(self, prefix: str = "", *, page_size: int = 0, page_token: str = "") -> SubjectPage:
        """Return subjects whose names begin with ``prefix``, in the order of their UTF-8 bytes. A checkpoint.

        Args:
            prefix: of their names; empty: all.
            page_size: at most so many, 1,000 at most; 0: 100.
            page_token: `SubjectPage.next_token` of the page before.

        Raises:
            InvalidPage: the token is none.
        """
        request = ListSubjectsRequest(prefix=prefix, page_size=page_size, page_token=page_token)
        page = ListSubjectsResponse.FromString(await self._ask_admin("ListSubjects", request))
        return SubjectPage([_subject_info(info) for info in page.subjects], page.next_page_token)

    async def get_subject(self, subject: str) -> SubjectInfo:
        """Return what is known of a subject, also of one to which nothing was ever published. A checkpoint."""
        return _subject_info(
            WireSubjectInfo.FromString(await self._ask_admin("GetSubject", GetSubjectRequest(subject=subject)))
        )

    async def purge_subject(self, subject: str, until_id: int = 0) -> SubjectInfo:
        """Drop the messages of a subject up to an id, or all that are there (0). A checkpoint.

        Their ids are never given again, and fetching one raises `ExpiredId`.

        Raises:
            InvalidId: the id was never assigned.
        """
        request = PurgeSubjectRequest(subject=subject, until_id=until_id)
        return _subject_info(WireSubjectInfo.FromString(await self._ask_admin("PurgeSubject", request)))

    async def delete_subject(self, subject: str, expected_last_id: int | None = None) -> SubjectInfo:
        """Drop all messages of a subject, and list it no longer until something is published to it. A checkpoint.

        Its ids go on from its last one then.

        Raises:
            Conflict: its last id is not the expected one.
        """
        request = DeleteSubjectRequest(subject=subject, expected_last_id=expected_last_id)
        return _subject_info(WireSubjectInfo.FromString(await self._ask_admin("DeleteSubject", request)))

    async def _ask_admin(self, method: str, request: ProtobufMessage) -> bytes:
        call = await self._start_unary(method, request.SerializeToString(), service="broker.Admin")
        try:
            return await call.receive_one()
        finally:
            call.close()

    async def _start_unary(self, method: str, request: bytes, service: str = "broker.Broker") -> Call:
        left_s = trio.current_effective_deadline() - trio.current_time()
        timeout_s = None if left_s == float("inf") else max(left_s, 0.0)
        return await self._channel.start(f"/{service}/{method}", request, timeout_s=timeout_s)


class Publishing:
    """A message on its way to the broker."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def done(self) -> bool:
        """The broker has answered, or cannot any more: `id` will not wait."""
        return self._call.exchange.end is not None

    async def id(self) -> int:
        """Wait until the message is durable; return its id. A checkpoint.

        To be cancelled here leaves the publish as it is; it may be waited for again.
        """
        return PublishResponse.FromString(await self._call.receive_one()).id

    def leave(self) -> None:
        """Stop waiting for the id: the broker may withdraw the message if it has not begun to store it."""
        self._call.close()


Item = TypeVar("Item", bound=Message | Gap)
"""What iterating over a subscription gives."""


class Subscription(Generic[Item]):
    """An open subscription: an async iterator of `Message`, in id order, for one task.

    It ends with the error that ended it, such as `SlowConsumer`, `Draining` or `ConnectionLost`.
    """

    def __init__(self, call: Call, items: Callable[[bytes], Iterable[Message | Gap]]) -> None:
        """``items`` reads a response."""
        self._call = call
        self._items = items
        self._received: deque[Item] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if not self._received:
            self._received.extend(await self.receive_some())
        else:
            await trio.lowlevel.checkpoint()
        if not self._received:
            raise StopAsyncIteration
        return self._received.popleft()

    async def receive_some(self) -> list[Item]:
        """Wait for messages and return all that are there; none: the broker has ended the stream. A checkpoint."""
        if self._received:
            await trio.lowlevel.checkpoint()
            received = list(self._received)
            self._received.clear()
            return received
        return [cast("Item", item) for data in await self._call.receive_some() for item in self._items(data)]


def _subscribe_request(
    subject: str, start: Start, until: Until | None, slow: SlowPolicy, *, report_gaps: bool
) -> SubscribeRequest:
    """Say it on the wire.

    Raises:
        InvalidPosition: it cannot be said there.
    """
    request = SubscribeRequest(subject=subject, report_gaps=report_gaps, slow=SubscribeRequest.SlowPolicy.Name(slow))
    try:
        match start:
            case New():
                pass
            case Earliest():
                request.earliest = True
            case Last(count):
                request.last = count
            case After(after_id):
                request.after_id = after_id
            case At(time):
                request.at.FromMicroseconds(microseconds_of(time))
            case _:
                assert_never(start)
        if isinstance(until, AtEnd):
            request.at_end = True
        elif until is not None:
            request.until_id = until
    except ValueError as error:  # beyond what an int64 holds
        raise InvalidPosition(f"not a place in a log: {error}") from error
    except TypeError as error:
        raise InvalidPosition(f"a time to start at has a time zone, and an id is an int: {error}") from error
    return request


def _one_item(data: bytes) -> tuple[Message | Gap]:
    return (_item(MessageResponse.FromString(data)),)


def _items(data: bytes) -> Iterator[Message | Gap]:
    return map(_item, MessageBatch.FromString(data).messages)


def _item(response: MessageResponse) -> Message | Gap:
    if response.HasField("gap"):
        gap = response.gap
        return Gap(response.subject, getattr(gap, "from"), gap.to, gap.reason)
    return _message(response)


def _subject_info(info: WireSubjectInfo) -> SubjectInfo:
    return SubjectInfo(
        info.subject,
        info.first_id,
        info.last_id,
        time_of(_microseconds(info.first_published_at)) if info.HasField("first_published_at") else None,
        time_of(_microseconds(info.last_published_at)) if info.HasField("last_published_at") else None,
        info.subscribers,
    )


def _message(response: MessageResponse) -> Message:
    published_us = _microseconds(response.published_at)
    return Message(response.subject, response.id, response.body, dict(response.headers), published_us)


def _microseconds(timestamp: Timestamp) -> int:
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000
