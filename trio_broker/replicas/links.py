"""What one other broker commits, as this one hears it.

Owns:      the connection to one other broker, and making it again; telling it what is of interest; its batches as ours.
Not here:  the other end (tails.py); the order of batches of several brokers (trio_broker/merge.py).
Threads:   the trio thread only.

What the other one says is checked before it is believed: a batch has to be consistent, and how far a subject goes is
asked of the store.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice, pairwise

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
from trio_broker.replicas.tails import SUBJECTS_MAX
from trio_broker.rpc.framing import framed
from trio_broker.settling import SETTLE_MAX_S

PATH = "/broker.Replicas/Tail"
SETTLE_PATH = "/broker.Replicas/Settle"
AT_ONCE = 1_000
"""Subjects in one request."""
LINGER_S = 5.0
"""How long a subject stays of interest after its last subscriber has left: another one may come."""
CONNECT_S = 3.0
"""How long connecting and greeting may take."""
SILENCE_S = 5.0
"""The other broker says that it has heard each request, of which one is sent every `LINGER_S`; else it is gone."""
UNHEARD_S = 10.0
"""Who was never heard is warned of after so long, once: until then it may start, or have died and be forgotten."""
FAR_IDS = 1_000_000
"""A batch that begins so far beyond what is known is not believed before the store says the same."""
ONESELF = "ALREADY_EXISTS"
"""The reason of the error of a broker that has called itself."""
_PAUSE_MIN_S = 0.05
_PAUSE_MAX_S = 2.0

log = structlog.get_logger()


class Link:
    """The way from one other broker to this one."""

    def __init__(
        self, address: str, greeting: pb.Greeting, fanout: Fanout, hint: Callable[[Mapping[str, int]], object]
    ) -> None:
        """``hint`` is told how far subjects go, or so the other broker says."""
        self.connected = False
        """What it commits is heard of: it knows what is of interest here."""
        self.channel: Channel | None = None
        """While there is a connection: for other calls to the same broker."""
        self.batches = 0
        """Heard."""
        self._address = address
        self._greeting = greeting
        self._fanout = fanout
        self._hint = hint
        self._told: dict[str, None] = {}  # a dict for a set that keeps its order
        self._first_requests = 0  # that tell what is of interest when the stream begins
        self._requests = 0
        self._heard = 0  # of those
        self._patience = trio.CancelScope()  # its deadline is when the other one has to have said something
        self._interest_changed = trio.Event()
        self._fresh: dict[str, None] = {}
        self._asking = 0
        self._answered = trio.lowlevel.ParkingLot()
        self._settle_asked = trio.Event()
        self._settled = trio.Event()  # of the next question

    def interest_changed(self, subject: str) -> None:
        """Somebody here begins to be interested in a subject, or nobody is any more."""
        if subject not in self._told and self._fanout.is_interesting(subject):
            self._fresh[subject] = None
            self._interest_changed.set()

    async def ask(self, path: str, message: bytes, timeout_s: float) -> bytes:
        """Make a unary call to the other broker; return its answer. A checkpoint.

        Raises:
            BrokerError: how it failed; retryable if it has done nothing.
        """
        if self.channel is None or not self.connected:
            raise never_reached(f"no connection to {self._address}")
        self._asking += 1
        try:
            with closing(await self.channel.start(path, message, timeout_s=timeout_s)) as call:
                return await call.receive_one()
        finally:
            self._asking -= 1
            self._answered.unpark_all()

    def ask_settled(self) -> trio.Event:
        """Ask the other broker to acknowledge what it has under way; return what is set when it has, or is gone."""
        self._settle_asked.set()
        return self._settled

    async def _ask_settled(self) -> None:
        """Ask one question at a time: it is that of all who wait when it leaves."""
        request = pb.SettleRequest(greeting=self._greeting).SerializeToString()
        while True:
            await self._settle_asked.wait()
            self._settle_asked = trio.Event()
            settled, self._settled = self._settled, trio.Event()
            try:
                with trio.move_on_after(SETTLE_MAX_S):
                    await self.ask(SETTLE_PATH, request, SETTLE_MAX_S)
            except BrokerError as error:  # as of one that does not know the call
                log.debug("replica_not_settled", address=self._address, why=str(error))
            finally:
                settled.set()

    def lose(self, why: str) -> None:
        """End the connection: the other broker does not answer as it should. Not a checkpoint."""
        self.connected = False
        self._settled.set()
        if self.channel is not None:
            self.channel.lose(why)

    async def run(self) -> None:
        """Hear what the other broker commits, over one connection after the other, until cancelled.

        Returns if the other broker is this one.
        """
        pause_s = _PAUSE_MIN_S
        warn_at = trio.current_time() + UNHEARD_S
        while True:
            began = trio.current_time()
            was_connected, why, reason = await self._run_once()
            if reason == ONESELF:
                return
            if was_connected and trio.current_time() - began > _PAUSE_MAX_S:
                pause_s = _PAUSE_MIN_S
            warns = was_connected or trio.current_time() >= warn_at
            if warns:
                warn_at = math.inf
            log.log(logging.WARNING if warns else logging.DEBUG, "replica_not_heard", address=self._address, why=why)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _run_once(self) -> tuple[bool, str, str]:
        """Connect, and follow the stream to its end; return whether it began, why it ended, and the error's reason."""
        why, reason = "no answer in time", ""
        self._told, self._fresh = {}, {}
        self._first_requests, self._requests, self._heard = 0, 0, 0
        self._settle_asked, self._settled = trio.Event(), trio.Event()
        try:
            with trio.move_on_after(CONNECT_S) as self._patience:
                async with open_channel(self._address) as self.channel:
                    await self._follow(self.channel)
                    why = "the stream has ended"
        except BrokerError as error:
            why, reason = str(error), error.reason
        finally:
            self.lose(why)
            self.channel = None
        return self._heard > 0, why, reason

    async def _follow(self, channel: Channel) -> None:
        with closing(await channel.open(PATH)) as call:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_interest, call)
                nursery.start_soon(self._ask_settled)
                ended: BrokerError | None = None
                try:
                    while responses := await call.receive_some():
                        for data in responses:
                            self._hear(data)
                except BrokerError as error:
                    ended = error
                nursery.cancel_scope.cancel()
        self.connected = False  # nothing more is asked of it
        with trio.move_on_after(SILENCE_S):
            while self._asking:
                await self._answered.park()
        if ended is not None:
            raise ended

    async def _tell_interest(self, call: Call) -> None:
        """Say what is of interest: at once what is new, and every so often what is no longer."""
        await self._send(call, self._fanout.interesting(), greeting=self._greeting)
        look_at = trio.current_time() + LINGER_S
        while True:
            with trio.move_on_at(look_at):
                await self._interest_changed.wait()
            self._interest_changed = trio.Event()
            fresh, self._fresh = self._fresh, {}
            if trio.current_time() < look_at:
                await self._send(call, fresh)
                continue
            remove = [each for each in self._told if not self._fanout.is_interesting(each)]
            await self._send(call, self._fanout.interesting(), remove, always=True)
            look_at = trio.current_time() + LINGER_S

    async def _send(
        self,
        call: Call,
        add: Iterable[str],
        remove: Sequence[str] = (),
        greeting: pb.Greeting | None = None,
        *,
        always: bool = False,
    ) -> None:
        """Send what changes, or nothing if that is nothing; with ``always`` an empty request then."""
        for subject in remove:
            self._told.pop(subject, None)
        fresh = [subject for subject in add if subject not in self._told][: SUBJECTS_MAX - len(self._told)]
        self._told.update(dict.fromkeys(fresh))  # before anything waits: a change meanwhile is told after this
        requests = [pb.TailRequest(remove=some) for some in _cut(remove)]
        requests += [pb.TailRequest(add=some) for some in _cut(fresh)]
        if greeting is not None:
            requests.insert(0, pb.TailRequest(greeting=greeting))
            self._first_requests = len(requests)
        elif always and not requests:
            requests.append(pb.TailRequest())
        for request in requests:
            self._requests += 1
            self._patience.deadline = min(self._patience.deadline, trio.current_time() + SILENCE_S)
            await call.send(request.SerializeToString())

    def _hear(self, data: bytes) -> None:
        try:
            response = pb.TailResponse.FromString(data)
            messages = _messages(response) if response.messages else []
            lifetimes = _lifetimes(response, len(messages))
        except (DecodeError, ValueError) as error:
            raise ConnectionLost(f"{self._address} does not stream as it should: {error}") from error
        if response.heard:
            self._hear_of_requests(response.heard)
        subject = response.subject
        if not subject or not self._fanout.is_interesting(subject):
            return
        offered_id = self._fanout.offered_id(subject)
        consecutive = bool(messages) and messages[-1].id - messages[0].id == len(messages) - 1
        if not consecutive or 0 < offered_id < messages[0].id - FAR_IDS:
            self._hint({subject: response.last_id})
            return
        self.batches += 1
        batch = Batch(messages)
        batch.together_wire = framed(response.messages)
        batch.enter(self._fanout.backlog)
        self._fanout.arrive(batch, lifetimes, TAIL)

    def _hear_of_requests(self, heard: int) -> None:
        self._heard = heard
        answered = heard >= self._requests
        self._patience.deadline = math.inf if answered else trio.current_time() + SILENCE_S
        if not self.connected and heard >= self._first_requests:
            self.connected = True
            log.info("replica_heard", address=self._address)


def _messages(response: pb.TailResponse) -> list[Message]:
    """Return the messages of a response.

    Raises:
        DecodeError, ValueError: they are not what one commit appends to a subject.
    """
    subject = response.subject  # one string for all
    messages = [
        Message(subject, message.id, message.body, dict(message.headers), message.published_at.ToMicroseconds())
        for message in broker_pb2.MessageBatch.FromString(response.messages).messages
    ]
    ids = [0, *(message.id for message in messages)]
    if ids[-1] != response.last_id or any(after >= id_ for after, id_ in pairwise(ids)):
        raise ValueError(f"messages of {subject!r} up to {response.last_id} are not in order")
    return messages


def _lifetimes(response: pb.TailResponse, count: int) -> list[int | None]:
    lifetimes = [None if lifetime == -1 else lifetime for lifetime in response.lifetimes]
    if len(lifetimes) == 1:
        lifetimes *= count
    if len(lifetimes) != count or any(lifetime is not None and lifetime < 0 for lifetime in lifetimes):
        raise ValueError(f"{count} messages of {response.subject!r} with {len(lifetimes)} lifetimes")
    return lifetimes


def _cut(subjects: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(tuple(subjects))
    while some := list(islice(rest, AT_ONCE)):
        yield some
