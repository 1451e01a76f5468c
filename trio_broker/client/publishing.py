"""Many messages at a time, for Python programs on trio.

Owns:      `PublishStream`; drafts as requests, results and acknowledgements as ids and typed errors.
Not here:  the connection (trio_broker/client/channel.py), statuses (trio_broker/client/statuses.py).
Threads:   the trio thread only.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Self

import trio

from trio_broker._proto.broker_pb2 import (
    PublishBatchResponse,
    PublishRequest,
    PublishStreamRequest,
    PublishStreamResponse,
)
from trio_broker.client.channel import Call
from trio_broker.client.statuses import error_of_failure
from trio_broker.errors import BrokerError, InvalidExpiration
from trio_broker.message import Draft

EXPIRATION_MAX_S: Final = 2**31 - 1  # int32 on the wire
_REQUEST_MESSAGES: Final = 1_000
_REQUEST_BYTES: Final = 256 * 1024
"""What one request of a stream holds at most, unless one message is larger."""

Result = int | BrokerError
"""The id of a message that is durable, or why it has none."""


class PublishStream:
    """An open stream of publishes; made by `Client.publish_stream`.

    Send in one task and iterate in another: iterating gives one `Result` for each message, in the order in which they
    were sent. An error among them does not end the stream. What ends it is raised by iterating, after all results
    that came before: `Draining`, `ConnectionLost` and so on; its ``metadata["acknowledged"]``, if it is there, counts
    the messages that have a result. What was sent beyond is not known to be published: send it again, with its keys.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sending = trio.Lock()
        self._results: deque[Result] = deque()

    async def send(self, drafts: Sequence[Draft]) -> None:
        """Send messages; wait while the broker has as many as it takes. A checkpoint.

        If it is cancelled the stream ends: it is not known then which of them were published.

        Raises:
            InvalidExpiration: one that the wire cannot say; nothing was sent.
        """
        requests = list(_requests([publish_request(draft) for draft in drafts]))
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._sending:
            try:
                for request in requests:
                    await self._call.send(request)
            except BaseException:
                self._call.close()
                raise

    async def finish(self) -> None:
        """Send no more: iterating ends after the last result. A checkpoint."""
        async with self._sending:
            self._call.end_sending()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if self._results:
            await trio.lowlevel.checkpoint()
        else:
            self._results.extend(await self.receive_some())
        if not self._results:
            raise StopAsyncIteration
        return self._results.popleft()

    async def receive_some(self) -> list[Result]:
        """Wait for results and return all that are there; none: the stream has ended after `finish`. A checkpoint."""
        if self._results:
            await trio.lowlevel.checkpoint()
            results = list(self._results)
            self._results.clear()
            return results
        while True:
            responses = await self._call.receive_some()
            results = [result for data in responses for result in _acknowledged(data)]
            if results or not responses:
                return results


def publish_request(draft: Draft) -> PublishRequest:
    """Say a message on the wire.

    Raises:
        InvalidExpiration: it cannot be said there.
    """
    expiration = draft.expiration
    if expiration is not None and not 0 <= expiration <= EXPIRATION_MAX_S:
        raise InvalidExpiration(f"expiration must be from 0 to {EXPIRATION_MAX_S} seconds, not {expiration}")
    return PublishRequest(
        subject=draft.subject,
        body=draft.body,
        expirationSeconds=expiration or 0,
        headers=draft.headers,
        keep=expiration is None,
        idempotency_key=draft.idempotency_key,
        expected_last_id=draft.expected_last_id,
    )


def batch_results(data: bytes) -> list[Result]:
    """Read a PublishBatchResponse."""
    return [
        error_of_failure(each.failed) if each.HasField("failed") else each.published.id
        for each in PublishBatchResponse.FromString(data).results
    ]


def _requests(messages: Iterable[PublishRequest]) -> Iterator[bytes]:
    """Yield encoded requests, none of them too large."""
    together: list[PublishRequest] = []
    size = 0
    for message in messages:
        more = message.ByteSize()
        if together and (len(together) == _REQUEST_MESSAGES or size + more > _REQUEST_BYTES):
            yield PublishStreamRequest(messages=together).SerializeToString()
            together, size = [], 0
        together.append(message)
        size += more
    if together:
        yield PublishStreamRequest(messages=together).SerializeToString()


def _acknowledged(data: bytes) -> Iterator[Result]:
    for ack in PublishStreamResponse.FromString(data).acks:
        if ack.HasField("failed"):
            yield from (error_of_failure(ack.failed) for _ in range(ack.count))
        else:
            yield from range(ack.first_id, ack.first_id + ack.count)
