"""Several brokers on one log, and what may come between them: crashes, drains, partitions, lost hints and lost tails.

At the end all heals and everybody gets to the end of the log. Then only one of the ways is left by which brokers hear
of each other, and that one is in time by itself.
"""

import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from random import Random
from typing import cast

import trio

from persistence import NewMessage, Store
from trio_broker.broker import Broker, run_broker
from trio_broker.fanout import Fanout
from trio_broker.replicas import Replicas, links, membership
from trio_broker.replicas.forwarding import Forwarding
from trio_broker.replicas.links import Link
from trio_broker.replicas.membership import Member, Membership
from trio_broker.replicas.replicas import LEAVE_S
from trio_broker.replicas.service import ReplicasService
from trio_broker.start import New

from .checked_publishes import CheckedPublishes
from .checked_streams import CheckedStreams
from .network import Network
from .observing import replaced, set_to
from .publishers import Publisher
from .replica_store import StoreView
from .scenario import CONVERGE_S, LONG_S, SECOND_US, SHORT_BYTES, small_config
from .store import Faults, SimulatedStore
from .subscribers import Fetcher, Subscriber
from .world import World, pause, ticks

ROUNDS = 6
BEATS = {"BEAT_S": 0.8, "DEAD_S": 2.8, "FORGOTTEN_S": 6.0}
"""Of membership: as nearly everything here, sooner than in earnest."""
WHO: ContextVar[str] = ContextVar("WHO")
"""Which broker a task is of."""
BACK_S = 15.0
"""Within this all brokers are up and linked, once nothing is in their way."""
LOOK_S = 0.25
IN_TIME_S = 1.5
"""With one way left everybody hears of a message within this, and the interval of polling if that is the way."""


class Replica:
    """One broker of several, which may crash, or drain, and comes back."""

    def __init__(self, scenario: "ReplicatedScenario", who: str, view: StoreView, brokers: int) -> None:
        self.who = who
        self.view = view
        self.broker: Broker | None = None
        self.service: ReplicasService | None = None
        """What other brokers call."""
        self.readers: dict[trio.CancelScope, None] = {}
        """Of those who listen here."""
        self._scenario = scenario
        self._random = random = scenario.world.random(who)
        self._backlog_max_bytes = random.choice([sys.maxsize, sys.maxsize, SHORT_BYTES])
        self.poll_interval_s = random.choice([0.2, 0.5])
        memory_is_short = self._backlog_max_bytes == SHORT_BYTES
        self._config = small_config(
            random, memory_is_short=memory_is_short, poll_interval_s=self.poll_interval_s, brokers=brokers
        )
        self._scope = trio.CancelScope()
        self._is_to_drain = trio.Event()

    async def run(self) -> None:
        """Run one broker after the other, each with an identity of its own, until cancelled."""
        WHO.set(self.who)
        while True:
            self.view.crashed = False
            self._is_to_drain = trio.Event()
            with trio.CancelScope() as self._scope:
                await self._run_one()
            await trio.sleep(self._random.random() * self._random.choice([0.01, 2.0]))

    async def _run_one(self) -> None:
        scenario = self._scenario
        async with run_broker(
            cast("Store", self.view), self._config, backlog_max_bytes=self._backlog_max_bytes
        ) as broker:
            replicas = Replicas(cast("Store", self.view), broker, address_of(self.who), ())
            scenario.identities[replicas.id] = self.who
            self.service = ReplicasService(broker, replicas.admit, replicas.feeds)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(replicas.run)
                    self.broker = broker
                    scenario.world.places[broker] = self.who
                    scenario.came_up(self)
                    await self._is_to_drain.wait()
                    await broker.drain()
                    with trio.move_on_after(LEAVE_S):
                        await replicas.leave()
                    nursery.cancel_scope.cancel()
                await broker.close()
            finally:
                self.broker = self.service = None
                del scenario.identities[replicas.id]
                if replicas.forwarding is not None:
                    scenario.world.count("append: answered", replicas.forwarding.forwarded)
                    scenario.world.count("append: here after all", replicas.forwarding.refused)
                scenario.went_down(self, broker)
        scenario.check_rest(self, broker)

    def drain(self) -> None:
        """Stop in good order: streams move."""
        self._scenario.world.note(self.who, "drains")
        self._scenario.world.count("drained broker")
        self._is_to_drain.set()

    def crash(self) -> None:
        """Stop at once, with all that is under way."""
        self._scenario.world.note(self.who, "crashes")
        self._scenario.world.count("crashed broker")
        self.view.crashed = True
        for reader in tuple(self.readers):
            reader.cancel()
        self._scope.cancel()


class RoamingPublisher(Publisher):
    scenario: "ReplicatedScenario"

    async def _move(self) -> None:
        self._broker = await self.scenario.some_broker(self._random)


class RoamingSubscriber(Subscriber):
    """It comes back at another broker when its own stops, or when it is cut."""

    scenario: "ReplicatedScenario"

    async def _listen(self) -> None:
        broker = await self.scenario.some_broker(self._random)
        replica = next(each for each in self.scenario.replicas.values() if each.broker is broker)
        self._broker = broker
        with trio.CancelScope() as scope:
            replica.readers[scope] = None
            try:
                await super()._listen()
            finally:
                del replica.readers[scope]

    async def _broker_stopped(self) -> None:
        self._scope_moved()
        await pause(self._random, 0.1)

    def _scope_moved(self) -> None:
        self.scenario.world.count("moved to another broker")


class Newcomer(RoamingSubscriber):
    """It comes for what is new, soon leaves, and comes again, wherever that is."""

    async def run(self) -> None:
        self._start, self._until = New(), None
        for _ in range(self._random.choice([0, 5, 20])):
            await pause(self._random, 0.3)
            with trio.move_on_after(self._random.random() * 0.3):
                await self._listen()
            if self.session is not None and not self.session.ended:
                self._checked.end(self.session, "cut")


class RoamingFetcher(Fetcher):
    """It looks for messages at whatever broker there is, not only at that of their publisher."""

    scenario: "ReplicatedScenario"

    async def _fetch(self) -> None:
        self._broker = await self.scenario.some_broker(self._random)
        await super()._fetch()


class ReplicatedScenario:
    def __init__(self, world: World) -> None:
        self.world = world
        self.replicas: dict[str, Replica] = {}
        self._random = random = world.random("scenario")
        faults = Faults.drawn(random)
        faults.foreign = 0.0  # the others are simulated
        lanes, apart, leaves = random.choice([1, 1, 3]), random.random() < 0.5, random.random() < 0.5
        self.store = SimulatedStore(world, faults, lanes=lanes, apart=apart, leaves_subjects=leaves)
        world.count("subjects are left to one", leaves)
        self.identities: dict[str, str] = {}
        """Of the brokers that are up, by the ids of their registers."""
        self._taken_for_dead: dict[tuple[str, str], None] = {}
        self._publishes = CheckedPublishes(world, self.store)
        self._streams = CheckedStreams(world, self.store, several=True)
        self._subjects = ["orders", "prices", "logs"][: random.choice([1, 1, 2])]
        self._subscribers: list[RoamingSubscriber] = []
        self._fanouts: list[Fanout] = []
        self._some_up = trio.Event()
        self._network: Network

    async def run(self) -> None:
        """Play it; what is stuck is cut off."""
        with trio.move_on_after(LONG_S) as long:
            async with trio.open_nursery() as nursery:
                await self._play(nursery)
                nursery.cancel_scope.cancel()
        if long.cancelled_caught:
            self.world.violated("no stall", "the scenario did not end")
            return
        self._publishes.check_settled()
        self._publishes.check_log()
        self._streams.check_acknowledged(self._publishes.acknowledged)
        self._streams.check_gaps(sum((Counter(fanout.gaps) for fanout in self._fanouts), Counter()))

    async def some_broker(self, random: Random) -> Broker:
        """Return one that is up. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while not (up := [each.broker for each in self.replicas.values() if each.broker is not None]):
            await self._some_up.wait()
        return random.choice(up)

    def came_up(self, replica: Replica) -> None:
        self.world.note(replica.who, "is up")
        assert replica.broker is not None
        self._fanouts.append(replica.broker.fanout)
        self._some_up.set()

    def went_down(self, replica: Replica, broker: Broker) -> None:
        self.world.note(replica.who, "is down")
        if all(each.broker is None for each in self.replicas.values()):
            self._some_up = trio.Event()
        self._network.went_down(replica.who)
        for path, count in broker.fanout.learned.items():
            self.world.count(f"heard by {path}", count)

    def check_rest(self, replica: Replica, broker: Broker) -> None:
        """Check that a broker leaves nothing behind."""
        committer, fanout = broker.committer, broker.fanout
        self.world.count("lagged", fanout.lags)
        assert fanout.merge is not None
        left = {
            "queued messages": committer.queued_messages,
            "subscriptions": fanout.count,
            "subjects": len(fanout._by_subject),
            "expected": len(fanout._expected),
            "merged": len(fanout.merge._offered),
            "held": len(fanout.merge._held),
            "reads": len(broker._reading._reads),
        }
        if any(left.values()):
            self.world.violated("nothing is left", f"{replica.who}: { {what: n for what, n in left.items() if n} }")

    def _service_of(self, who: str) -> ReplicasService | None:
        return self.replicas[who].service

    def _new_identity(self, _original: Callable[[int], str]) -> Callable[[int], str]:
        random = self.world.random("identities")
        return lambda size: f"{random.getrandbits(8 * size):0{2 * size}x}"

    def _tell_noting(self, original: Callable[..., None]) -> Callable[..., None]:
        """Count who is taken for dead, and is not."""

        def tell(membership: Membership, others: Mapping[str, Member]) -> None:
            for id_, who in self.identities.items():
                if id_ in membership.others and id_ not in others:
                    self.world.count("taken for dead")
                    self._taken_for_dead[WHO.get(), id_] = None
                elif id_ in others and (WHO.get(), id_) in self._taken_for_dead:
                    self.world.count("back from the dead")
                    self.world.note(WHO.get(), "sees again", who)
                    del self._taken_for_dead[WHO.get(), id_]
            original(membership, others)

        return tell

    def _noting_given(self, original: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def append(forwarding: Forwarding, batch: Sequence[NewMessage]) -> object:
            self.store.note_given(batch)
            return await original(forwarding, batch)

        return append

    def _noting_asked(self, original: Callable[[Replicas], list[trio.Event]]) -> Callable[[Replicas], list[trio.Event]]:
        def ask_settled(replicas: Replicas) -> list[trio.Event]:
            opened = self.world.opened[trio.lowlevel.current_task().name]
            opened.asked = tuple(self._teller_at(link._address) for link in replicas.links.values() if link.connected)
            return original(replicas)

        return ask_settled

    def _noting_unanswered(self, original: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
        async def ask(link: Link, path: str, *args: object) -> bytes:
            try:
                return await original(link, path, *args)
            except BaseException:
                if path == links.SETTLE_PATH:
                    self._note_unanswered(link)
                raise

        return ask

    def _noting_lost(self, original: Callable[..., None]) -> Callable[..., None]:
        def lose(link: Link, why: str) -> None:
            self._note_unanswered(link)
            original(link, why)

        return lose

    def _note_unanswered(self, link: Link) -> None:
        teller = self._teller_at(link._address)
        number = self.world.note(WHO.get(), "is not answered", teller)
        self.world.unanswered_settling.append((number, WHO.get(), teller))

    def _teller_at(self, address: str) -> str:
        return next(who for who in self.replicas if address_of(who) == address)

    def _open_channel(self, address: str) -> object:
        return self._network.open_channel(f"{WHO.get()} {self._teller_at(address)}")

    async def _play(self, nursery: trio.Nursery) -> None:
        random = self._random
        self._network = Network(self.world, nursery, self._service_of)
        with ExitStack() as stack:
            stack.enter_context(
                replaced(links, "open_channel", lambda _original: lambda address: self._open_channel(address))
            )
            stack.enter_context(replaced(secrets, "token_hex", self._new_identity))
            stack.enter_context(replaced(Membership, "_tell", self._tell_noting))
            stack.enter_context(replaced(Forwarding, "append", self._noting_given))
            stack.enter_context(replaced(Replicas, "_ask_settled", self._noting_asked))
            stack.enter_context(replaced(Link, "ask", self._noting_unanswered))
            stack.enter_context(replaced(Link, "lose", self._noting_lost))
            stack.enter_context(set_to(membership, **BEATS))
            names = [f"broker-{number}" for number in range(random.choice([2, 2, 3, 4]))]
            for who in names:
                self.replicas[who] = Replica(self, who, StoreView(self.world, self.store, who, nursery), len(names))
            self.world.note("scenario", "begins", len(names), self.store.faults)
            self.world.count(f"{len(names)} brokers")
            async with trio.open_nursery() as running:
                for replica in self.replicas.values():
                    running.start_soon(replica.run, name=replica.who)
                async with trio.open_nursery() as listening:
                    await self._listen_and_publish(listening)
                    await self._end()
                    await self._check_latecomer(listening)
                    for subscriber in self._subscribers:
                        subscriber.is_over = True
                    listening.cancel_scope.cancel()
                running.cancel_scope.cancel()

    async def _listen_and_publish(self, listening: trio.Nursery) -> None:
        broker = await self.some_broker(self._random)
        for number in range(self._random.randint(2, 5)):
            subject, who = self._random.choice(self._subjects), f"subscriber {number}"
            subscriber = RoamingSubscriber(self.world, self.store, self._streams, broker, who, subject)
            subscriber.scenario = self
            self._subscribers.append(subscriber)
            listening.start_soon(subscriber.run, name=who)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trouble)
            for number in range(self._random.randint(1, 4)):
                nursery.start_soon(self._publisher(broker, f"publisher {number}").run, name=f"publisher {number}")
            for number in range(3):
                who = f"newcomer {number}"
                subject = self.world.random(who).choice(self._subjects)
                newcomer = Newcomer(self.world, self.store, self._streams, broker, who, subject)
                newcomer.scenario = self
                nursery.start_soon(newcomer.run, name=who)
            for number in range(self._random.randint(0, 2)):
                who = f"fetcher {number}"
                fetcher = RoamingFetcher(self.world, self.store, self._streams, broker, who, self._subjects)
                fetcher.scenario = self
                nursery.start_soon(fetcher.run, name=who)

    def _publisher(self, broker: Broker, who: str) -> RoamingPublisher:
        publisher = RoamingPublisher(self.world, self.store, self._publishes, broker, who, self._subjects)
        publisher.scenario = self
        return publisher

    async def _trouble(self) -> None:
        """Let things happen to brokers, and to what is between them."""
        random = self.world.random("trouble")
        troubles = [self._crash, self._drain, self._part, self._part, self._break, self._cut_store, self._step]
        for _ in range(random.choice([0, 2, 4, 8])):
            await pause(random, 1.0)
            random.choice(troubles)(random)

    def _one(self, random: Random) -> Replica:
        return random.choice(list(self.replicas.values()))

    def _crash(self, random: Random) -> None:
        self._one(random).crash()

    def _drain(self, random: Random) -> None:
        self._one(random).drain()

    def _part(self, random: Random) -> None:
        """Let one not hear another, or neither hear the other, for a while or until all heals."""
        if random.random() < 0.4:
            self._network.parted.clear()
        hearer, teller = random.sample(list(self.replicas), 2)
        self._network.part(hearer, teller)
        if random.random() < 0.5:
            self._network.part(teller, hearer)

    def _break(self, random: Random) -> None:
        """Break the streams of one broker; they are made again."""
        self._network.went_down(self._one(random).who)

    def _cut_store(self, random: Random) -> None:
        replica = self._one(random)
        replica.view.cut_until = trio.current_time() + random.random() * random.choice([0.1, 3.0])
        self.world.note(replica.who, "cut off until", replica.view.cut_until)

    def _step(self, random: Random) -> None:
        self.store.step_us += random.choice([-200, -3, 2, 130]) * SECOND_US
        self.world.count("clock steps")
        self.world.note("trouble", "clock step", self.store.step_us)

    async def _end(self) -> None:
        """Heal, and see everybody at the end; then with one way left."""
        slow_s = self.store.faults.slow_s
        self.store.heal()
        self._network.heal()
        for replica in self.replicas.values():
            replica.view.cut_until = 0.0
            replica.view.hint_loss = 0.0
        for subscriber in self._subscribers:
            subscriber.hurries = True
        await trio.sleep(slow_s)  # a heartbeat that was slow before this may end so late
        await self._wait_for_all()
        closer = self._publisher(await self.some_broker(self._random), "closer")
        for _ in range(CONVERGE_S):
            if not (late := await self._late(closer, 1.0)):
                break
        else:
            self.world.violated("no stall", f"{late} did not reach the end")
            return
        self.world.count("converged")
        await self._check_one_way(closer)

    async def _wait_for_all(self) -> None:
        """Wait until those that were down are back, and all are heard by all."""
        for _ in range(round(BACK_S / LOOK_S)):
            await trio.sleep(LOOK_S)
            if all(each.broker is not None and each.broker.hearing.is_linked() for each in self.replicas.values()):
                return
        self.world.violated("in time", f"not all brokers hear each other within {BACK_S} s")

    async def _late(self, closer: Publisher, within_s: float) -> list[str]:
        """Publish the end; return who has not reached it in time."""
        ends = {subject: await closer.publish_end(subject) for subject in self._subjects}
        await trio.sleep(within_s)
        return [each.who for each in self._subscribers if not each.has_reached(ends[each.subject])]

    async def _check_one_way(self, closer: Publisher) -> None:
        way = self._random.choice(["tails", "wakeups", "polls"])
        self.world.note("scenario", "one way", way)
        self.world.count(f"one way: {way}")
        within_s = IN_TIME_S
        if way != "tails":
            for hearer in self.replicas:
                for teller in self.replicas:
                    if hearer != teller:
                        self._network.part(hearer, teller)
        for replica in self.replicas.values():
            replica.view.hints.is_connected = way != "polls"
            replica.view.hint_loss = 0.0 if way == "wakeups" else 1.0
            replica.view.hint_delay_max(0.01)
            if way == "polls":
                within_s = max(within_s, replica.poll_interval_s + IN_TIME_S)
        await trio.sleep(6.0 if way == "polls" else 1.0)  # what was to be asked for before is asked for
        await ticks(9)
        if way == "tails":
            await self._check_fire_and_forget(closer)
        if late := await self._late(closer, within_s):
            self.world.violated("in time", f"{late} did not hear of the end by {way} within {within_s} s")

    async def _check_fire_and_forget(self, closer: Publisher) -> None:
        """Let two brokers at a time publish what is not kept: those that listen get all of it, wherever they are."""
        subject = self._subjects[0]
        other = self._publisher(await self.some_broker(self._random), "closer too")
        listening = [
            (each.who, each.session, each.session.messages)
            for each in self._subscribers
            if each.subject == subject and not each.is_over and each.session is not None and not each.session.ended
        ]
        before_id = self.store.last_id(subject)
        for _ in range(ROUNDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(closer.publish_end, subject, 0)
                nursery.start_soon(other.publish_end, subject, 0)
            await trio.sleep(0.1)
        published = self.store.last_id(subject) - before_id
        for who, session, messages in listening:
            self.world.count("not kept, and heard of", session.messages - messages)
            if not session.ended and session.messages - messages < published:
                self.world.violated("live", f"{who} was given {session.messages - messages} of {published} not kept")

    async def _check_latecomer(self, listening: trio.Nursery) -> None:
        """See that who comes when nothing is published any more gets all there is."""
        subject = self._subjects[0]
        late = RoamingSubscriber(
            self.world, self.store, self._streams, await self.some_broker(self._random), "latecomer", subject
        )
        late.scenario = self
        late.hurries = True
        listening.start_soon(late.run, name=late.who)
        await trio.sleep(2 * IN_TIME_S)
        if late.session is not None and not late.is_over and not late.has_reached(self.store.last_id(subject)):
            self.world.violated("in time", f"{late.who} has not reached {self.store.last_id(subject)}")


def address_of(who: str) -> str:
    """Return where a broker is reached, whatever its identity."""
    return f"10.0.0.{who.removeprefix('broker-')}:50052"
