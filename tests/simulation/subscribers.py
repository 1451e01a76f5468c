"""Those who listen and fetch: from everywhere in the log, slowly, cut off, and back again where they were."""

from collections.abc import Iterable
from datetime import timedelta

import trio

from persistence import Key
from trio_broker.broker import Broker
from trio_broker.errors import BrokerClosed, BrokerError, Draining, SlowConsumer, StorageUnavailable
from trio_broker.message import EPOCH, Gap, Message
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy, Start, Until

from .checked_streams import CheckedStreams, Session
from .store import SimulatedStore
from .world import World, cancel_perhaps, pause

RETRY_S = 0.3


class Subscriber:
    """One that comes back, each time where it was, until it has all that it wants or the broker stops."""

    def __init__(
        self, world: World, store: SimulatedStore, checked: CheckedStreams, broker: Broker, who: str, subject: str
    ) -> None:
        self.who = who
        self.subject = subject
        self.session: Session | None = None
        """Its last one."""
        self.hurries = False
        """It does nothing but listen."""
        self.is_over = False
        self._store = store
        self._checked = checked
        self._broker = broker
        self._random = random = world.random(who)
        self._slow = random.choice(list(SlowPolicy))
        self._report_gaps = random.random() < 0.6
        self._cuts = random.choice([0, 0, 1, 3])
        self._stalls = random.choice([0.0, 0.1, 0.3, 0.6])
        self._stall_s = random.choice([0.05, 0.5, 3.0])
        self._on_wire = random.random() < 0.5
        self._until = self._some_end()
        self._start: Start = New()

    def has_reached(self, id_: int) -> bool:
        """Say whether it has been told of all up to an id, or wants no more."""
        return self.is_over or (self.session is not None and (self.session.seen_id or 0) >= id_)

    async def run(self) -> None:
        await pause(self._random, 1.0)
        self._start = self._some_start()
        while not self.is_over:
            if self._cuts and not self.hurries:
                self._cuts -= 1
                await cancel_perhaps(self._random, self._listen)
            else:
                await self._listen()
            if self.session is not None and not self.session.ended:
                self._checked.end(self.session, "cut")
            if self.session is not None and self.session.seen_id is not None:
                self._start = After(self.session.seen_id)

    def _some_end(self) -> Until | None:
        return self._random.choice([None, None, None, AtEnd(), self._random.randint(1, 40)])

    def _some_start(self) -> Start:
        random = self._random
        time_us = self._store.latest_us + random.choice([-2_000_000, 0, 1_000_000])
        starts: list[Start] = [Earliest(), Last(random.randint(1, 9)), At(EPOCH + timedelta(microseconds=time_us))]
        return random.choice([New(), New(), New(), After(0), *starts])

    async def _listen(self) -> None:
        """Listen once, to the end of that."""
        self.session = None
        self._store.asked.pop(self.who, None)
        try:
            await (self._listen_on_wire() if self._on_wire else self._listen_in_python())
        except SlowConsumer as error:
            self._ended("SlowConsumer")
            assert self.session is not None
            self._checked.check_last_delivered(self.session, int(error.metadata["last_delivered_id"]))
            await trio.sleep(RETRY_S)  # nobody is back in no time: it might be cut again and again meanwhile
        except (Draining, BrokerClosed) as error:
            self._ended(type(error).__name__)
            await self._broker_stopped()
        except StorageUnavailable:
            await trio.sleep(RETRY_S)
        except BrokerError:  # the end is before the start
            self.is_over = True
        else:
            self._ended("finished")
            self.is_over = True

    async def _broker_stopped(self) -> None:
        self.is_over = True

    def _ended(self, how: str) -> None:
        if self.session is not None:
            self._checked.end(self.session, how)

    def _begin(self) -> None:
        start, until = self._start, self._until
        self.session = self._checked.begin(
            self.who,
            self.subject,
            start,
            until,
            self._slow,
            report_gaps=self._report_gaps,
        )
        if isinstance(until, AtEnd):
            self._until = self.session.until_id  # that is what it still wants when it comes back

    async def _listen_in_python(self) -> None:
        async with self._broker.subscribe(
            self.subject, start=self._start, until=self._until, slow=self._slow, report_gaps=self._report_gaps
        ) as messages:
            self._begin()
            async for item in messages:
                self._got(item)
                await self._stall()

    async def _listen_on_wire(self) -> None:
        """Listen as a call on gRPC: woken, not waiting; what is being sent stays counted."""
        await trio.lowlevel.checkpoint()
        span = await self._broker.locate(self.subject, self._start, self._until)
        with self._broker.open_subscription(
            self.subject, span, self._slow, report_gaps=self._report_gaps
        ) as subscription:
            await self._broker.settling.wait(self._start, span)
            self._begin()
            woken = trio.Event()
            subscription.wake = lambda: woken.set()
            subscription.dropped = subscription.close
            while True:
                subscription.sending = None
                try:
                    batch = subscription.receive_nowait()
                except trio.WouldBlock:
                    subscription.pull()
                    await woken.wait()
                    woken = trio.Event()
                    continue
                except trio.EndOfChannel:
                    break
                except trio.ClosedResourceError:
                    break  # what was being sent was dropped
                subscription.sending = batch
                self._got_all(batch.items())
                del batch
                self._broker.fanout.deliveries.settle()
                await self._stall()
        if subscription.error is not None:
            raise subscription.error

    def _got_all(self, items: Iterable[Message | Gap]) -> None:
        for item in items:
            self._got(item)

    def _got(self, item: Message | Gap) -> None:
        assert self.session is not None
        self._checked.got(self.session, item)

    async def _stall(self) -> None:
        """Read no more for some time, perhaps. A checkpoint."""
        if not self.hurries and self._random.random() < self._stalls:
            await trio.sleep(self._random.random() * self._stall_s)
        else:
            await trio.lowlevel.checkpoint()


class Fetcher:
    """One that looks messages up, also such as never were."""

    def __init__(
        self,
        world: World,
        store: SimulatedStore,
        checked: CheckedStreams,
        broker: Broker,
        who: str,
        subjects: list[str],
    ) -> None:
        self.who = who
        self._store = store
        self._checked = checked
        self._broker = broker
        self._subjects = subjects
        self._random = world.random(who)

    async def run(self) -> None:
        for _ in range(self._random.randint(1, 8)):
            await pause(self._random, 1.0)
            await cancel_perhaps(self._random, self._fetch)

    async def _fetch(self) -> None:
        keys = []
        for _ in range(self._random.randint(1, 4)):
            subject = self._random.choice(self._subjects)
            keys.append(Key(subject, self._random.randint(0, self._store.last_id(subject) + 2)))
        try:
            results = await self._broker.fetch_many(keys)
        except (StorageUnavailable, BrokerClosed):
            return
        for place, (key, result) in enumerate(zip(keys, results, strict=True)):
            found = result.body if isinstance(result, Message) else type(result).__name__
            self._checked.check_found(self.who, *key, place, found)
