"""Handler kinds: how the code of a service is run for its calls.

Owns:      the four kinds, the tasks that run them, what becomes of a handler's exception.
Not here:  when a task is started and for which calls (transport.py), bytes (call.py).
Threads:   the trio thread. The ``run_`` functions are tasks in the connection's nursery.

*Task*: any purerpc handler, unchanged. One task per call, under a cancel scope with the call's deadline.

*Grouped* (`grouped`): a unary handler that gets all calls of its method that came in one read of a socket, as a
list, and answers each with `Call.reply` or `Call.finish` when it can. It is called when the read is done. What it
returns is awaited in a task, which is cancelled once all of the calls are over: one task per read instead of one per
call. If it returns nothing, somebody else answers: the work itself when it is done.

*Drained* (`drained`): a server-streaming handler that returns a `Source`; the connection asks it for messages when
the peer's windows and the socket have room. No task at all while the stream lives.

*Fed* (`fed`): a handler of streams in both directions that returns a `Feed`: a source that is also told when a read has
brought more of the request. No task either.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import trio
from google.protobuf.message import DecodeError
from purerpc import Cardinality, RpcFailedError, RPCSignature, Status
from purerpc.grpclib.events import RequestReceived

from trio_broker.rpc.call import Call
from trio_broker.rpc.compression import deflated
from trio_broker.rpc.identity import Identity
from trio_broker.rpc.inflow import AT_ONCE_BYTES
from trio_broker.rpc.request import Request
from trio_broker.rpc.status import OK, Refusals

log = logging.getLogger(__name__)

CLEANUP_S = 5.0
"""How long a handler's clean-up may take after its call is over."""

Abandoned = Callable[[Call], Status | None]
"""Told that a call ended before it was answered: its deadline passed, the peer cancelled it, or is gone. It takes
back what it can, and may return a status, which the peer gets if it is still there."""

F = TypeVar("F", bound=Callable[..., Any])


def grouped(abandoned: Abandoned | None = None) -> Callable[[F], F]:
    """Mark ``handler(self, calls: list[Call], request: None = None) -> Awaitable[None] | None`` as grouped.

    An ordinary ``async def`` does. Each call's `Call.message` is the parsed request. A call may end meanwhile
    (`Call.local_closed`): answering it then does nothing.
    """
    return _marked("grouped", abandoned)


def drained(abandoned: Abandoned | None = None) -> Callable[[F], F]:
    """Mark ``async def handler(self, message, request: Context) -> Source`` as drained.

    The response's headers leave when it returns.
    """
    return _marked("drained", abandoned)


def fed(abandoned: Abandoned | None = None) -> Callable[[F], F]:
    """Mark ``def handler(self, call: Call, request: None = None) -> Feed`` as fed.

    It is called when the request's headers are there; the response's headers leave when it returns.
    """
    return _marked("fed", abandoned)


def compressed(handler: F) -> F:
    """Mark a handler of any kind: its replies are compressed where the client accepts that.

    It takes a ``request``, and may set `Call.compresses` before each reply. Without this mark the server's setting
    decides.
    """
    handler.rpc_compressed = True  # type: ignore[attr-defined]
    return handler


def parsed_by(parse: Callable[[bytes], Any]) -> Callable[[F], F]:
    """Mark a handler of any kind: ``parse`` makes its request of bytes. It raises as protobuf's ``FromString`` does."""

    def mark(handler: F) -> F:
        handler.rpc_parse = parse  # type: ignore[attr-defined]
        return handler

    return mark


def _marked(kind: str, abandoned: Abandoned | None) -> Callable[[F], F]:
    def mark(handler: F) -> F:
        handler.rpc_kind = kind  # type: ignore[attr-defined]
        handler.rpc_abandoned = abandoned  # type: ignore[attr-defined]
        return handler

    return mark


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Method:
    """A method of a service, ready to be called. Equal only to itself: it is a key once per call."""

    service: str
    name: str
    kind: str
    handler: Callable[..., Any]
    parse: Callable[[bytes], Any]
    request_type: str
    request_streams: bool
    response_streams: bool
    task_streams: bool
    """A response stays, with a task of its own, for as long as the client likes."""
    abandoned: Abandoned | None
    compressed: bool
    """Its replies are, whatever the server's setting."""

    @property
    def path(self) -> str:
        """What a client asks for."""
        return f"/{self.service}/{self.name}"


def bind(service: str, name: str, handler: Callable[..., Any], signature: RPCSignature) -> Method:
    """Make a `Method` of what purerpc's Service knows of it.

    Raises:
        TypeError: a kind that does not go with the method's cardinality.
    """
    cardinality = signature.cardinality
    kind = getattr(handler, "rpc_kind", "task")
    response_streams = cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)
    if kind == "grouped" and cardinality is not Cardinality.UNARY_UNARY:
        raise TypeError(f"{service}/{name}: only a unary method can be grouped")
    if kind == "drained" and cardinality is not Cardinality.UNARY_STREAM:
        raise TypeError(f"{service}/{name}: only a server-streaming method can be drained")
    if kind == "fed" and cardinality is not Cardinality.STREAM_STREAM:
        raise TypeError(f"{service}/{name}: only a method that streams both ways can be fed")
    return Method(
        service=service,
        name=name,
        kind=kind,
        handler=handler,
        parse=getattr(handler, "rpc_parse", signature.request_type.FromString),
        request_type=signature.request_type.DESCRIPTOR.full_name,
        request_streams=cardinality in (Cardinality.STREAM_UNARY, Cardinality.STREAM_STREAM),
        response_streams=response_streams,
        task_streams=response_streams and kind == "task",
        abandoned=getattr(handler, "rpc_abandoned", None),
        compressed=getattr(handler, "rpc_compressed", False),
    )


class Context(RequestReceived):  # type: ignore[misc] # purerpc is untyped
    """What a handler gets as ``request``: purerpc's event, and the call itself for what purerpc lacks."""

    def __init__(self, call: Call) -> None:
        request = call.request
        assert isinstance(request, Request)
        method = call.method
        super().__init__(call.id, request.scheme, method.service, method.name, request.content_type)
        self.call = call
        self.identity: Identity | None = call.identity
        """Who calls, by a certificate; `Call.identity` for handlers that get calls."""
        self.authority = request.authority
        self.timeout = None if call.timeout_s is None else timedelta(seconds=call.timeout_s)
        self.message_type = method.request_type
        self.message_encoding = request.encoding
        self.message_accept_encoding = request.accept_encoding.split(",") if request.accept_encoding else None
        self.user_agent = request.user_agent
        self.custom_metadata = request.metadata


class Message(Protocol):
    """A protobuf message, as far as sending it goes."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        """Return the wire format."""


def parse(call: Call, refusals: Refusals) -> bool:
    """Parse the call's message in its place; or end the call, and return False."""
    try:
        call.message = call.method.parse(call.message)
    except DecodeError:
        call.finish(refusals.malformed(call.method.request_type))
        return False
    return True


def begin_group(calls: list[Call], refusals: Refusals) -> tuple[list[Call], Awaitable[None]] | None:
    """Call a grouped handler for the calls of one read; return what `finish_group` is to be called with, if any."""
    calls = [call for call in calls if not call.closed and parse(call, refusals)]
    if not calls:
        return None
    try:
        work: Awaitable[None] | None = calls[0].method.handler(calls, request=None)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises must end its calls
        _fail_group(calls, error, refusals)
        return None
    return None if work is None else (calls, work)


async def finish_group(calls: list[Call], work: Awaitable[None], refusals: Refusals) -> None:
    """Await what a grouped handler returned, for as long as one of its calls goes on. A checkpoint."""
    try:
        with GroupScope(calls).scope as scope:
            await work
    except Exception as error:  # noqa: BLE001 - whatever a handler raises must end its calls
        _fail_group(calls, error, refusals)
    for call in calls:
        if call.local_closed or call.status is not None:
            continue
        if scope.cancelled_caught:  # the last of their deadlines has passed, and the sweep has not been here yet
            call.app.expire(call)
        else:
            log.error("rpc_unanswered method=%s request_id=%s", call.method.path, call.request_id())
            call.finish(refusals.internal())


class GroupScope:
    """What a grouped handler's work runs under: cancelled once all of its calls are over.

    Its deadline is the last of theirs, if all have one: the work may pass it on, such as to a database.
    """

    __slots__ = ("_open", "scope")

    def __init__(self, calls: list[Call]) -> None:
        last = max(math.inf if call.deadline is None else call.deadline for call in calls)
        self.scope = trio.CancelScope(deadline=last)
        self._open = 0
        for call in calls:
            if not call.closed:
                self._open += 1
                call.scope = self
        if not self._open:
            self.scope.cancel()

    def cancel(self) -> None:
        """One of the calls is over."""
        self._open -= 1
        if not self._open:
            self.scope.cancel()


def _fail_group(calls: list[Call], error: Exception, refusals: Refusals) -> None:
    status = status_of(error, calls[0], refusals)
    for call in calls:
        call.finish(status)


async def run_drained(call: Call, refusals: Refusals) -> None:
    """Run a drained handler until it has its source. A checkpoint."""
    if parse(call, refusals):
        await _scoped(call, refusals, _attach)


async def _attach(call: Call) -> None:
    call.attach(await call.method.handler(call.message, request=Context(call)))


def begin_fed(call: Call, refusals: Refusals) -> None:
    """Call a fed handler, whose feed answers from now on."""
    try:
        feed = call.method.handler(call, request=None)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises must end its call
        call.finish(status_of(error, call, refusals))
        return
    call.feed = feed
    call.attach(feed)


def feed(calls: Iterable[Call], refusals: Refusals) -> None:
    """Tell the feeds of calls that a read brought something for them."""
    for call in calls:
        if call.feed is not None and not call.local_closed:
            try:
                call.feed.feed()
            except Exception as error:  # noqa: BLE001 - whatever a handler raises must end its call
                call.finish(status_of(error, call, refusals))


async def run_task(call: Call, refusals: Refusals) -> None:
    """Run a purerpc handler. A checkpoint."""
    if call.inbox is not None or parse(call, refusals):
        await _scoped(call, refusals, _answer)


async def _scoped(call: Call, refusals: Refusals, run: Callable[[Call], Awaitable[None]]) -> None:
    """Run a handler's part of a call under the call's own scope; end the call by what it raises."""
    try:
        with trio.CancelScope() as call.scope:
            if not call.closed:
                await run(call)
    # Outside the scope: it takes a Cancelled out of a group, and leaves the errors beside it.
    except* Exception as error:  # noqa: BLE001 - whatever a handler raises must end its call
        call.finish(status_of(error, call, refusals))
    call.scope = None


async def _answer(call: Call) -> None:
    method = call.method
    request = Context(call)
    argument = call.message if call.inbox is None else Incoming(call, call.inbox)
    if not method.response_streams:
        call.reply((await method.handler(argument, request=request)).SerializeToString())
        return
    # An async generator runs later; a function that returns one may give the call initial metadata before.
    responses: AsyncGenerator[Message] = method.handler(argument, request=request)
    call.send_head()
    async with _closing(responses):
        async for response in responses:
            message = response.SerializeToString()
            if call.compresses and len(message) > AT_ONCE_BYTES:
                call.send(await trio.to_thread.run_sync(deflated, message, limiter=call.app.threads.limiter))
            else:
                call.send_message(message)
            if call.first_message_s is None:
                call.app.began(call)
            if _is_full(call):
                await _room(call)
    call.finish(OK)


class _closing(aclosing[AsyncGenerator[Message]]):  # noqa: N801
    """Close a generator although its call was cancelled: its clean-up may wait, for so long."""

    async def __aexit__(self, *exc_info: object) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLEANUP_S, shield=True):
            await super().__aexit__(*exc_info)


class Incoming:
    """The messages of a request that streams, parsed, for ``async for``."""

    def __init__(self, call: Call, inbox: deque[bytes]) -> None:
        self._call = call
        self._inbox = inbox

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - a protobuf message of the method's type
        """Wait for the next message. A checkpoint."""
        call = self._call
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if call.request_ended:
                raise StopAsyncIteration
            arrived = trio.Event()
            call.wake = arrived.set
            await arrived.wait()
            call.wake = None
        message = self._inbox.popleft()
        call.taken(message)
        return call.method.parse(message)


def _is_full(call: Call) -> bool:
    """Say whether its handler is to wait: early, when little more can be kept for all calls together."""
    connection = call.connection
    return call.queued_bytes > (0 if connection.budgets.outbound.tight else connection.limits.send_high_bytes)


async def _room(call: Call) -> None:
    """Wait until what was sent has left for the peer, or the call is over."""
    while _is_full(call) and not call.closed:
        left = trio.Event()
        call.room = left.set
        await left.wait()
        call.room = None
    await trio.lowlevel.checkpoint_if_cancelled()  # a handler without checkpoints of its own ends here


def status_of(error: Exception, call: Call, refusals: Refusals) -> Status:
    """Return the status for what a handler raised. All but purerpc's RpcFailedError is a bug, and logged."""
    failure = error
    while isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]  # strict groups: even one error of a child task is a group
    if isinstance(failure, RpcFailedError):
        return failure.status
    if isinstance(failure, DecodeError):
        return refusals.malformed(call.method.request_type)
    log.error(
        "rpc_failed method=%s request_id=%s error=%s",
        *(call.method.path, call.request_id(), type(failure).__name__),
        exc_info=failure,
    )
    return refusals.internal()
