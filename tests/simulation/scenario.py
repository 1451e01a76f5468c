"""One broker: a store with its faults, a broker on it, those who use it, and how all that ends."""

import sys
from random import Random

import trio

from trio_broker.broker import Broker, run_broker
from trio_broker.config import Config

from .checked_publishes import CheckedPublishes
from .checked_streams import CheckedStreams
from .publishers import Publisher
from .store import Faults, SimulatedStore
from .subscribers import Fetcher, Subscriber
from .world import World, pause, ticks

LONG_S = 600.0
"""Nothing takes so long: what has not ended by then is stuck."""
CONVERGE_S = 60
SECOND_US = 1_000_000


SHORT_BYTES = 9_800
"""What may wait for all subscribers, where memory is short."""


class Scenario:
    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random = world.random("scenario")
        self.store = SimulatedStore(
            world, Faults.drawn(random), lanes=random.choice([1, 1, 1, 3]), apart=random.random() < 0.5
        )
        self._publishes = CheckedPublishes(world, self.store)
        self._streams = CheckedStreams(world, self.store)
        self._subjects = ["orders", "prices", "logs"][: random.choice([1, 1, 2, 3])]
        self._subscribers: list[Subscriber] = []

    async def run(self) -> None:
        """Play it; what is stuck is cut off."""
        with trio.move_on_after(LONG_S) as long:
            await self._play()
        if long.cancelled_caught:
            self._world.violated("no stall", "the scenario did not end")
            return
        self._publishes.check_settled()
        self._publishes.check_log()
        self._streams.check_acknowledged(self._publishes.acknowledged)

    async def _play(self) -> None:
        random = self._random
        backlog_max_bytes = random.choice([sys.maxsize, SHORT_BYTES])
        ends = [self._converge, self._converge, self._converge, self._drain, self._close, self._leave, self._cancel]
        end = random.choice(ends)
        self._world.note("scenario", "begins", end.__name__, self.store.faults)
        async with trio.open_nursery() as actors:
            with trio.CancelScope() as self._scope:
                config = small_config(random, memory_is_short=backlog_max_bytes == SHORT_BYTES)
                async with run_broker(self.store, config, backlog_max_bytes=backlog_max_bytes) as broker:
                    for number in range(random.randint(1, 5)):
                        subject = random.choice(self._subjects)
                        who = f"subscriber {number}"
                        subscriber = Subscriber(self._world, self.store, self._streams, broker, who, subject)
                        self._subscribers.append(subscriber)
                        actors.start_soon(subscriber.run, name=who)
                    await end(actors, broker)
        self._check_rest(broker)

    async def _work(self, broker: Broker) -> None:
        """Publish and fetch, while things happen to the store."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trouble)
            for number in range(self._random.randint(1, 4)):
                who = f"publisher {number}"
                publisher = Publisher(self._world, self.store, self._publishes, broker, who, self._subjects)
                nursery.start_soon(publisher.run, name=who)
            for number in range(self._random.randint(0, 2)):
                who = f"fetcher {number}"
                fetcher = Fetcher(self._world, self.store, self._streams, broker, who, self._subjects)
                nursery.start_soon(fetcher.run, name=who)

    async def _trouble(self) -> None:
        """Let the store be down for a while, and its clock be set."""
        random = self._world.random("trouble")
        for _ in range(random.choice([0, 0, 1, 3])):
            await pause(random, 2.0)
            if random.random() < 0.5:
                self.store.down_until = trio.current_time() + random.random() * random.choice([0.1, 3.0])
                self._world.note("trouble", "down until", self.store.down_until)
            else:
                self.store.step_us += random.choice([-200, -3, 2, 130]) * SECOND_US
                self._world.count("clock steps")
                self._world.note("trouble", "clock step", self.store.step_us)

    async def _converge(self, _actors: trio.Nursery, broker: Broker) -> None:
        """Let all finish, heal the store, and see everybody get to the end of the log."""
        await self._work(broker)
        self.store.heal()
        for subscriber in self._subscribers:
            subscriber.hurries = True
        closer = Publisher(self._world, self.store, self._publishes, broker, "closer", self._subjects)
        for _ in range(CONVERGE_S):
            ends = {subject: await closer.publish_end(subject) for subject in self._subjects}
            await trio.sleep(1.0)
            if not (late := [each for each in self._subscribers if not each.has_reached(ends[each.subject])]):
                break
        for subscriber in late:
            self._world.violated("no stall", f"{subscriber.who} has not reached {ends[subscriber.subject]}")
        self._world.count("converged", not late)
        await broker.drain()
        await broker.close()

    async def _drain(self, actors: trio.Nursery, broker: Broker) -> None:
        """Drain while all goes on."""
        actors.start_soon(self._work, broker)
        await pause(self._random, 3.0)
        number = self._world.note("scenario", "drains", broker.committer.queued_messages)
        self._world.count("queued when draining", broker.committer.queued_messages > 0)
        await broker.drain()
        await ticks(5)  # those who await their publishes hear of it
        if broker.committer.queued_messages:
            self._world.violated("drain", f"{broker.committer.queued_messages} publishes wait after it")
        self._publishes.check_settled(number)
        await pause(self._random, 1.0)
        await broker.close()

    async def _close(self, actors: trio.Nursery, broker: Broker) -> None:
        """Close while all goes on."""
        actors.start_soon(self._work, broker)
        await pause(self._random, 3.0)
        self._world.count("queued when closing", broker.committer.queued_messages > 0)
        await broker.close()

    async def _leave(self, actors: trio.Nursery, broker: Broker) -> None:
        """Leave the block of the broker while all goes on."""
        actors.start_soon(self._work, broker)
        await pause(self._random, 3.0)

    async def _cancel(self, actors: trio.Nursery, broker: Broker) -> None:
        """Cancel the broker while all goes on."""
        actors.start_soon(self._work, broker)
        await pause(self._random, 3.0)
        self._world.count("cancelled broker")
        self._scope.cancel()

    def _check_rest(self, broker: Broker) -> None:
        """Check that nothing is left behind."""
        self._streams.check_counts(broker.fanout)
        self._world.count("lagged", broker.fanout.lags)
        committer, fanout = broker.committer, broker.fanout
        left = {
            "queued messages": committer.queued_messages,
            "queued bytes": committer.queued_bytes,
            "subscriptions": fanout.count,
            "subjects": len(fanout._by_subject),
            "ended": len(fanout._ended),
            "backlog": fanout.backlog.bytes,
            "reads": len(broker._reading._reads),
            "on stopping": len(broker.on_stopping),
        }
        if any(left.values()):
            self._world.violated("nothing is left", str({what: count for what, count in left.items() if count}))


def small_config(random: Random, *, memory_is_short: bool, poll_interval_s: float = 0.5, brokers: int = 1) -> Config:
    """Return a configuration with small bounds, so that they are met. Unchecked: smaller than a broker's may be.

    Where memory is short a page, of twice as many messages as may wait, fits all the same, as it always does.
    However many brokers there are, together they sweep as often as one.
    """
    return Config.model_construct(
        subscriber_messages=random.choice([2, 4, 8, 8 if memory_is_short else 64]),
        subscriber_bytes=random.choice([400, 800 if memory_is_short else 2000, 800 if memory_is_short else 100_000]),
        queue_messages=random.choice([10, 50, 500]),
        queue_bytes=random.choice([20_000, 1_000_000]),
        flush_messages=random.choice([2, 8, 64]),
        flush_bytes=random.choice([4_000, 100_000]),
        commit_timeout=random.choice([0.3, 2.0, 10.0]),
        sweep_interval=random.choice([0.2, 2.0]) * brokers,
        body_max_bytes=2000,
        poll_interval=poll_interval_s,
    )
