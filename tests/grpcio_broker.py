"""A broker by grpcio, from the same protocol: another implementation for our client to talk to.

Owns:      publish, subscribe and fetch in memory, and the faults that a test asks for by subject.
Threads:   grpcio's own; a test waits for what they saw by `seen`.
"""

import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import grpc
import trio

from trio_broker._proto.broker_pb2 import (
    Ack,
    Failure,
    FetchRequest,
    MessageBatch,
    MessageResponse,
    PublishRequest,
    PublishResponse,
    PublishStreamRequest,
    PublishStreamResponse,
    SubscribeRequest,
)
from trio_broker._proto.google.protobuf.any_pb2 import Any
from trio_broker._proto.google.protobuf.timestamp_pb2 import Timestamp
from trio_broker._proto.google.rpc.error_details_pb2 import ErrorInfo
from trio_broker._proto.google.rpc.status_pb2 import Status

SAFETY_S = 20  # a broken test fails instead of hanging


class GrpcioBroker:
    """Subjects that begin ``fail.`` fail with the rest for reason; ``hang`` never answers."""

    def __init__(self) -> None:
        self.port = 0
        self._lock = threading.Lock()
        self._logs: dict[str, list[MessageResponse]] = defaultdict(list)
        self._kept: dict[str, set[int]] = defaultdict(set)
        self._subscribers: dict[str, list[SimpleQueue[MessageResponse | None]]] = defaultdict(list)
        self._seen: dict[str, threading.Event] = defaultdict(threading.Event)
        self.deadlines_s: list[float | None] = []
        self.subscribed: list[SubscribeRequest] = []
        """The requests that were served."""

    async def seen(self, what: str) -> None:
        """Wait until the server's threads have said ``what``."""
        await trio.to_thread.run_sync(self.wait_seen, what, abandon_on_cancel=True)

    def wait_seen(self, what: str) -> None:
        """Wait so in a thread. What was seen once is waited for anew."""
        assert self._seen[what].wait(SAFETY_S), what
        self._seen[what].clear()

    def publish(self, request: PublishRequest, context: grpc.ServicerContext) -> PublishResponse:
        self.deadlines_s.append(context.time_remaining())
        self._misbehave(request.subject, context)
        kept = request.keep or request.expirationSeconds > 0
        return PublishResponse(id=self.append(request.subject, request.body, request.headers, kept=kept))

    def publish_stream(
        self, requests: Iterator[PublishStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[PublishStreamResponse]:
        context.send_initial_metadata(())
        for request in requests:
            for message in request.messages:
                yield PublishStreamResponse(acks=[self._acknowledge(message, context)])

    def _acknowledge(self, message: PublishRequest, context: grpc.ServicerContext) -> Ack:
        if message.subject.startswith("fail."):
            reason = message.subject.removeprefix("fail.")
            failed = Failure(
                code=grpc.StatusCode.UNAVAILABLE.value[0], message=f"as asked: {reason} ü 100%", reason=reason
            )
            failed.retry_delay.FromSeconds(1)
            return Ack(count=1, failed=failed)
        self._misbehave(message.subject, context)
        kept = message.keep or message.expirationSeconds > 0
        return Ack(count=1, first_id=self.append(message.subject, message.body, message.headers, kept=kept))

    def append(
        self, subject: str, body: bytes, headers: Mapping[str, bytes] | None = None, *, kept: bool = False
    ) -> int:
        """Publish from any thread."""
        with self._lock:
            log = self._logs[subject]
            published_at = Timestamp(seconds=1_700_000_000, nanos=len(log) * 1000)
            response = MessageResponse(
                subject=subject, id=len(log) + 1, body=body, headers=headers, published_at=published_at
            )
            log.append(response)
            if kept:
                self._kept[subject].add(response.id)
            for queue in self._subscribers[subject]:
                queue.put(response)
        return response.id

    def fetch(self, request: FetchRequest, context: grpc.ServicerContext) -> MessageResponse:
        self._misbehave(request.subject, context)
        last_id = len(self._logs[request.subject])
        if not 0 < request.id <= last_id:
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ID", f"no id {request.id}", last_id=str(last_id))
        if request.id not in self._kept[request.subject]:
            fail(context, grpc.StatusCode.INVALID_ARGUMENT, "EXPIRED_ID", f"id {request.id} is no longer kept")
        return self._logs[request.subject][request.id - 1]

    def subscribe(self, request: SubscribeRequest, context: grpc.ServicerContext) -> Iterator[MessageResponse]:
        self.deadlines_s.append(context.time_remaining())
        self._misbehave(request.subject, context)
        queue: SimpleQueue[MessageResponse | None] = SimpleQueue()
        self._subscribers[request.subject].append(queue)

        def gone() -> None:
            self._subscribers[request.subject].remove(queue)
            self._seen["unsubscribed"].set()
            queue.put(None)

        context.add_callback(gone)
        self.subscribed.append(request)
        context.send_initial_metadata(())
        self._seen["subscribed"].set()
        while (response := queue.get()) is not None:
            if response.body == b"be slow":
                fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER", "too slow", last_delivered_id="1")
            yield response

    def subscribe_batch(self, request: SubscribeRequest, context: grpc.ServicerContext) -> Iterator[MessageBatch]:
        return (MessageBatch(messages=[response]) for response in self.subscribe(request, context))

    def _misbehave(self, subject: str, context: grpc.ServicerContext) -> None:
        if subject == "hang":
            cancelled = threading.Event()
            context.add_callback(cancelled.set)
            self._seen["hanging"].set()
            cancelled.wait(SAFETY_S)
            self._seen["cancelled"].set()
            context.abort(grpc.StatusCode.CANCELLED, "cancelled")
        elif subject.startswith("fail."):
            reason = subject.removeprefix("fail.")
            fail(context, grpc.StatusCode.UNAVAILABLE, reason, f"as asked: {reason} ü 100%")
        elif subject == "bare":
            context.abort(grpc.StatusCode.UNAVAILABLE, "a proxy says no")


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, text: str, **metadata: str) -> None:
    """End the call with google.rpc.Status in its trailers."""
    info = ErrorInfo(reason=reason, domain="trio-broker", metadata=metadata)
    detail = Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString())
    status = Status(code=code.value[0], message=text, details=[detail])
    context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
    context.abort(code, text)


@contextmanager
def serving(broker: GrpcioBroker | None = None, **options: int) -> Generator[GrpcioBroker]:
    """Serve on a free port of loopback for the length of the block."""
    broker = broker or GrpcioBroker()
    methods = {
        "Publish": grpc.unary_unary_rpc_method_handler(
            broker.publish, PublishRequest.FromString, PublishResponse.SerializeToString
        ),
        "PublishStream": grpc.stream_stream_rpc_method_handler(
            broker.publish_stream, PublishStreamRequest.FromString, PublishStreamResponse.SerializeToString
        ),
        "Fetch": grpc.unary_unary_rpc_method_handler(
            broker.fetch, FetchRequest.FromString, MessageResponse.SerializeToString
        ),
        "SubscribeBatch": grpc.unary_stream_rpc_method_handler(
            broker.subscribe_batch, SubscribeRequest.FromString, MessageBatch.SerializeToString
        ),
        "Subscribe": grpc.unary_stream_rpc_method_handler(
            broker.subscribe, SubscribeRequest.FromString, MessageResponse.SerializeToString
        ),
    }
    with ThreadPoolExecutor(max_workers=options.pop("threads", 16)) as pool:
        server = grpc.server(pool, options=[(f"grpc.{name}", value) for name, value in options.items()])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("broker.Broker", methods)])
        broker.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield broker
        finally:
            server.stop(None).wait(SAFETY_S)
