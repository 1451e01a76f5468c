"""Publishers that retry as ordinary clients do, and subscribers that resume: what they were told.

Owns:      `Publisher`, `Subscriber`, and what each of them notes; finding a broker that runs.
Not here:  the brokers (cluster.py); whether what was noted is true (oracle.py).
Threads:   the trio thread only.
"""

import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import trio

from trio_broker import After, Gap, Message, connect
from trio_broker.client import Client
from trio_broker.errors import BrokerError, ConnectionLost, Draining, OutcomeUnknown

from .cluster import Cluster

ATTEMPTS = 5
CALL_S = 5
"""The deadline of one attempt to publish, and of connecting."""
PAUSE_S = 0.1
"""Before the second attempt, where the broker does not say how long; twice as long before each that follows."""
KEPT_S = 3600
UNKEPT_EVERY = 10
"""One publish of so many is not to be kept."""


@dataclass
class Told:
    """What the publishers of one subject were told."""

    kept: dict[int, bytes] = field(default_factory=dict)
    """Acknowledged, and to be kept."""
    unkept: dict[int, bytes] = field(default_factory=dict)
    sent: set[bytes] = field(default_factory=set)
    twice: set[bytes] = field(default_factory=set)
    """Sent again without a key although they may have been appended: they may be there more than once."""
    failed: set[bytes] = field(default_factory=set)
    """Given up after `ATTEMPTS`: they may be there or not."""


@asynccontextmanager
async def connected(cluster: Cluster, number: int) -> AsyncGenerator[Client]:
    """Connect to broker ``number``, or to the next that runs.

    Raises:
        ConnectionLost: none does, or none answers in `CALL_S`.
    """
    address = cluster.address(number)
    if address is None:
        raise ConnectionLost("no broker runs")
    with trio.move_on_after(CALL_S) as patience:
        async with connect(address) as client:
            patience.deadline = math.inf
            yield client
    if patience.cancelled_caught:
        raise ConnectionLost(f"nobody answers at {address}")


class Publisher:
    """Publishes one message after the other, each until it is acknowledged; after an error at the next broker.

    Args:
        cluster: whom it publishes to.
        number: its own, and that of its broker at first.
        told: its subjects, in turn from the one of its number on, and where it notes what it is told of each.
        keyed: with idempotency keys.
        pause_s: between publishes.
        on_acknowledged: called after each one that is.
    """

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        told: Mapping[str, Told],
        on_acknowledged: Callable[[], None],
        *,
        keyed: bool,
        pause_s: float,
    ) -> None:
        self.errors: Counter[str] = Counter()
        """Why attempts failed."""
        self._cluster = cluster
        self._number = self._home = number
        self._told = told
        self._on_acknowledged = on_acknowledged
        self._keyed = keyed
        self._pause_s = pause_s
        self._numbers = count()
        self._in_hand: _InHand | None = None
        self._ending = False

    def end(self) -> None:
        """Let it end once the message that it has in hand is settled."""
        self._ending = True

    async def run(self) -> None:
        while self._in_hand or not self._ending:
            try:
                async with connected(self._cluster, self._home) as client:
                    await self._publish_over(client)
            except BrokerError as error:
                await self._recover(error)

    async def _publish_over(self, client: Client) -> None:
        while self._in_hand or not self._ending:
            if self._in_hand is None:
                number = next(self._numbers)
                subjects = [*self._told]
                subject = subjects[(self._number + number) % len(subjects)]
                self._in_hand = _InHand(number, subject, f"{self._number}.{number}".encode())
                self._told[subject].sent.add(self._in_hand.body)
            await self._publish(client, self._in_hand)
            self._in_hand = None
            await trio.sleep(self._pause_s)

    async def _publish(self, client: Client, message: "_InHand") -> None:
        key = message.body.decode() if self._keyed else ""
        message.may_be_there = True
        with trio.move_on_after(CALL_S) as patience:
            id_ = await client.publish(message.subject, message.body, message.expiration, idempotency_key=key)
        if patience.cancelled_caught:
            raise OutcomeUnknown("out of time")
        told = self._told[message.subject]
        assert id_ not in told.kept, f"id {id_} of {message.subject} was given twice"
        assert id_ not in told.unkept, f"id {id_} of {message.subject} was given twice"
        (told.unkept if message.expiration == 0 else told.kept)[id_] = message.body
        self._on_acknowledged()

    async def _recover(self, error: BrokerError) -> None:
        """Wait as long as the broker said; the next attempt is at the next broker."""
        self.errors[error.reason] += 1
        self._home += not isinstance(error, Draining)
        pause_s = PAUSE_S
        if message := self._in_hand:
            message.attempts += 1
            pause_s *= 2**message.attempts
            if message.may_be_there and not error.retryable and not self._keyed:
                self._told[message.subject].twice.add(message.body)
            message.may_be_there = False
            if message.attempts == ATTEMPTS:
                self._told[message.subject].failed.add(message.body)
                self._in_hand = None
        await trio.sleep(error.retry_after_s or pause_s)


@dataclass
class _InHand:
    """The message that a publisher is publishing."""

    number: int
    subject: str
    body: bytes
    attempts: int = 0
    """That failed."""
    may_be_there: bool = False
    """The attempt that just failed has reached a broker, as far as is known."""

    @property
    def expiration(self) -> int | None:
        if self.number % UNKEPT_EVERY == 0:
            return 0
        return KEPT_S if self.number % 2 else None


class Subscriber:
    """Reads a subject from its first message on; after an error it resumes after what it has.

    At the next broker, or, if its own says that it stops, at whoever has taken its place.
    """

    def __init__(self, cluster: Cluster, number: int, subject: str) -> None:
        self.received: dict[int, bytes] = {}
        self.gaps: list[Gap] = []
        self.last_id = 0
        """It has everything up to this id, or was told that it is missing."""
        self.ends: list[str] = []
        """Why its streams ended."""
        self.subject = subject
        self._cluster = cluster
        self._home = number
        self._advanced = trio.Event()

    async def run(self) -> None:
        """Subscribe until it is cancelled."""
        while True:
            try:
                async with (
                    connected(self._cluster, self._home) as client,
                    client.subscribe(self.subject, start=After(self.last_id), report_gaps=True) as items,
                ):
                    async for item in items:
                        self.take(item)
                raise AssertionError("the stream ended well, and nobody asked for its end")
            except BrokerError as error:
                self.ends.append(error.reason)
                self._home += not isinstance(error, Draining)
                await trio.sleep(error.retry_after_s or PAUSE_S)

    async def reach(self, id_: int) -> None:
        """Wait until it has everything up to an id."""
        while self.last_id < id_:
            await self._advanced.wait()

    def take(self, item: Message | Gap) -> None:
        """Note what the stream gave; it has to go on where the one before ended."""
        first = item.id if isinstance(item, Message) else item.first_id
        assert first == self.last_id + 1, f"{self.subject}: {item} follows {self.last_id}"
        if isinstance(item, Message):
            self.received[item.id] = item.body
            self.last_id = item.id
        else:
            self.gaps.append(item)
            self.last_id = item.last_id
        self._advanced.set()
        self._advanced = trio.Event()
