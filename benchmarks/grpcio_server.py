"""The peer: the three calls on grpcio.aio, in memory, as one would plainly write them.

Owns:      a fair opponent: one event loop, a bounded queue per subscriber, a log per subject, no work that the
           broker does not do (it has no metrics, no validation beyond an empty subject, no limits on the log).
Not here:  tuning. What grpcio can be tuned to is another benchmark.
Threads:   asyncio's only; grpcio has its own beneath.

``python -m benchmarks.grpcio_server`` listens on a free port of 127.0.0.1, prints one JSON line with the
address, and serves until SIGTERM.
"""

import asyncio
import json
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import grpc

from trio_broker._proto import broker_pb2 as pb

SUBSCRIBER_MESSAGES = 1024  # as the broker's default

Publish = Callable[[pb.PublishRequest, grpc.aio.ServicerContext], Awaitable[pb.PublishResponse]]


class Kept(NamedTuple):
    """A message and when it stops being kept."""

    message: pb.MessageResponse
    expires_at: float


class Log:
    """One subject: what is kept, and who listens."""

    def __init__(self) -> None:
        self.last_id = 0
        self.kept: dict[int, Kept] = {}
        self.subscribers: set[asyncio.Queue[pb.MessageResponse | None]] = set()

    def offer(self, message: pb.MessageResponse) -> None:
        """Give a message to every subscriber; one that lets its queue fill is cut."""
        for queue in tuple(self.subscribers):
            if queue.qsize() < SUBSCRIBER_MESSAGES:
                queue.put_nowait(message)
            else:
                self.subscribers.discard(queue)
                queue.put_nowait(None)


class Broker:
    """The handlers."""

    def __init__(self) -> None:
        self._logs: defaultdict[str, Log] = defaultdict(Log)

    async def publish(self, request: pb.PublishRequest, context: grpc.aio.ServicerContext) -> pb.PublishResponse:
        """Append, deliver, answer."""
        if not request.subject:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no subject")
        log = self._logs[request.subject]
        log.last_id += 1
        message = pb.MessageResponse(
            body=request.body, id=log.last_id, subject=request.subject, headers=dict(request.headers)
        )
        now = time.time()
        message.published_at.FromNanoseconds(int(now * 1e9))
        if request.keep or request.expirationSeconds > 0:
            expires_at = float("inf") if request.keep else now + request.expirationSeconds
            log.kept[log.last_id] = Kept(message, expires_at)
        log.offer(message)
        return pb.PublishResponse(id=log.last_id, published_at=message.published_at)

    async def subscribe(
        self, request: pb.SubscribeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.MessageResponse]:
        """Yield what is published from now on."""
        queue = asyncio.Queue[pb.MessageResponse | None]()
        subscribers = self._logs[request.subject].subscribers
        subscribers.add(queue)
        try:
            await context.send_initial_metadata(())
            while (message := await queue.get()) is not None:
                yield message
        finally:
            subscribers.discard(queue)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow")

    async def fetch(self, request: pb.FetchRequest, context: grpc.aio.ServicerContext) -> pb.MessageResponse:
        """Look one message up."""
        log = self._logs[request.subject]
        if not 0 < request.id <= log.last_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such id")
        kept = log.kept.get(request.id)
        if kept is None or kept.expires_at <= time.time():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expired")
        return kept.message


def handlers(broker: Broker) -> grpc.GenericRpcHandler:
    """Tie the handlers to the method names; the generated messages live in a private pool, so there is no stub."""
    return grpc.method_handlers_generic_handler(
        "broker.Broker",
        {
            "Publish": _publish_handler(broker.publish),
            "Subscribe": grpc.unary_stream_rpc_method_handler(
                broker.subscribe, pb.SubscribeRequest.FromString, pb.MessageResponse.SerializeToString
            ),
            "Fetch": grpc.unary_unary_rpc_method_handler(
                broker.fetch, pb.FetchRequest.FromString, pb.MessageResponse.SerializeToString
            ),
        },
    )


def publish_only(publish: Publish) -> grpc.GenericRpcHandler:
    """Tie the handler of a peer that has nothing else to its name."""
    return grpc.method_handlers_generic_handler("broker.Broker", {"Publish": _publish_handler(publish)})


def _publish_handler(publish: Publish) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        publish, pb.PublishRequest.FromString, pb.PublishResponse.SerializeToString
    )


async def serve(handler: grpc.GenericRpcHandler) -> None:
    """Say where it listens, and serve until SIGTERM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(server.stop(0)))
    print(json.dumps({"event": "ready", "grpc": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(handlers(Broker())))
