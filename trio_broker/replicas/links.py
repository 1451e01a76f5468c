"""What one other broker commits, as this one hears it.

Owns:      the connection to one other broker, and making it again; telling it what is of interest; its batches as ours.
Not here:  the other end (tails.py); the order of batches of several brokers (trio_broker/merge.py).
Threads:   the trio thread only.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import structlog
import trio
from google.protobuf.message import DecodeError

from trio_broker._proto import broker_pb2
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.batch import Batch
from trio_broker.client.channel import Call, Channel, open_channel
from trio_broker.client.wire import never_reached
from trio_broker.errors import BrokerError, ConnectionLost
from trio_broker.fanout import TAIL, Fanout
from trio_broker.message import Message
from trio_broker.rpc.call import framed

PATH = "/broker.Replicas/Tail"
AT_ONCE = 1_000
"""Subjects in one request."""
LINGER_S = 5.0
"""How long a subject stays of interest after its last subscriber has left: another one may come."""
CONNECT_S = 3.0
"""How long connecting and greeting may take."""
_PAUSE_MIN_S = 0.05
_PAUSE_MAX_S = 2.0

log = structlog.get_logger()


class Link:
    """The way from one other broker to this one."""

    def __init__(self, address: str, greeting: pb.Greeting, fanout: Fanout) -> None:
        self.connected = False
        """What it commits is heard of: it knows what is of interest here."""
        self.channel: Channel | None = None
        """While it is connected: for other calls to the same broker."""
        self.batches = 0
        """Heard."""
        self._address = address
        self._greeting = greeting
        self._fanout = fanout
        self._told: dict[str, None] = {}  # a dict for a set that keeps its order
        self._requests = 0
        self._interest_changed = trio.Event()
        self._fresh: dict[str, None] = {}

    def interest_changed(self, subject: str) -> None:
        """Somebody here begins to be interested in a subject, or nobody is any more."""
        if subject not in self._told:
            self._fresh[subject] = None
            self._interest_changed.set()

    async def ask(self, path: str, message: bytes, timeout_s: float) -> bytes:
        """Make a unary call to the other broker; return its answer. A checkpoint.

        Raises:
            BrokerError: how it failed; retryable if it has done nothing.
        """
        if self.channel is None:
            raise never_reached(f"no connection to {self._address}")
        with closing(await self.channel.start(path, message, timeout_s=timeout_s)) as call:
            return await call.receive_one()

    def lose(self, why: str) -> None:
        """Take the connection for lost, and make another one."""
        if self.channel is not None:
            self.channel.lose(why)

    async def run(self) -> None:
        """Hear what the other broker commits, over one connection after the other, until cancelled."""
        pause_s = _PAUSE_MIN_S
        while True:
            why = "the stream has ended"
            try:
                async with open_channel(self._address) as self.channel:
                    await self._follow(self.channel)
            except BrokerError as error:
                why = str(error)
            finally:
                was_connected, self.connected, self.channel = self.connected, False, None
            if was_connected:
                pause_s = _PAUSE_MIN_S
            log.log(30 if was_connected else 10, "replica_not_heard", address=self._address, why=why)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _follow(self, channel: Channel) -> None:
        with closing(await channel.open(PATH)) as call:
            self._told, self._requests, self._fresh = {}, 0, {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_interest, call)
                nursery.start_soon(self._lose_patience)
                try:
                    while responses := await call.receive_some():
                        for data in responses:
                            self._hear(data)
                except BrokerError as error:
                    nursery.cancel_scope.cancel()
                    ended: BrokerError | None = error
                else:
                    nursery.cancel_scope.cancel()
                    ended = None
        if ended is not None:
            raise ended

    async def _lose_patience(self) -> None:
        """A peer that takes the connection and says nothing is not heard of."""
        await trio.sleep(CONNECT_S)
        if not self.connected:
            self.lose("no answer to the greeting")

    async def _tell_interest(self, call: Call) -> None:
        """Say what is of interest: at once what is new, and every so often what is no longer."""
        await self._send(call, self._fanout.interesting(), greeting=self._greeting)
        while True:
            with trio.move_on_after(LINGER_S) as waiting:
                await self._interest_changed.wait()
            self._interest_changed = trio.Event()
            if waiting.cancelled_caught:
                await self._send(call, (), [each for each in self._told if not self._fanout.is_interesting(each)])
                continue
            fresh, self._fresh = self._fresh, {}
            await self._send(call, [each for each in fresh if each not in self._told])

    async def _send(
        self, call: Call, add: Iterable[str], remove: Sequence[str] = (), greeting: pb.Greeting | None = None
    ) -> None:
        requests = [pb.TailRequest(add=some) for some in _cut(add)] + [
            pb.TailRequest(remove=some) for some in _cut(remove)
        ]
        if greeting is not None:
            requests.insert(0, pb.TailRequest(greeting=greeting))
        for request in requests:
            self._told.update(dict.fromkeys(request.add))
            for subject in request.remove:
                self._told.pop(subject, None)
            self._requests += 1
            await call.send(request.SerializeToString())

    def _hear(self, data: bytes) -> None:
        try:
            response = pb.TailResponse.FromString(data)
            messages = list(_messages(response)) if response.messages else []
        except DecodeError as error:
            raise ConnectionLost(f"{self._address} does not stream as it should: {error}") from error
        if response.heard:
            if not self.connected:
                log.info("replica_heard", address=self._address)
            self.connected = True
        if not response.subject or not self._fanout.is_interesting(response.subject):
            return
        if not messages or messages[-1].id - messages[0].id != len(messages) - 1:
            self._fanout.hear(response.subject, response.last_id, TAIL)
            return
        self.batches += 1
        lifetimes = [None if lifetime == -1 else lifetime for lifetime in response.lifetimes]
        if len(lifetimes) == 1:
            lifetimes *= len(messages)
        batch = Batch(messages)
        batch.together_wire = framed(response.messages)
        batch.enter(self._fanout.backlog)
        self._fanout.arrive(batch, lifetimes, TAIL)


def _messages(response: pb.TailResponse) -> Iterator[Message]:
    subject = response.subject  # one string for all
    for message in broker_pb2.MessageBatch.FromString(response.messages).messages:
        yield Message(subject, message.id, message.body, dict(message.headers), message.published_at.ToMicroseconds())


def _cut(subjects: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(tuple(subjects))
    while some := list(islice(rest, AT_ONCE)):
        yield some
