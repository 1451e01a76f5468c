"""Several brokers on one PostgreSQL: ``python -m benchmarks.replicas [--rounds N] [--seconds S]``.

Owns:      two trials and the tables that are printed: how much later a message comes to a subscriber at another broker,
           and what brokers cost for a message when publishers and subscribers are spread over one to four of them.
Not here:  starting brokers and databases (servers.py, postgres.py); several workers behind one port (workloads.py).

Every subscriber has to get the ids 1, 2, 3 and so on, and nearly all that crosses has to come by the brokers' streams:
else a figure is void. The load is made by this process, so rates are its own; the CPU is the brokers'.
"""

import argparse
import random
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import NamedTuple

import trio
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.postgres import Postgres, missing, postgres
from benchmarks.report import machine
from benchmarks.servers import SCRATCH, Database, Place, Server, broker, running
from trio_broker import connect
from trio_broker.client import Client

BROKERS_MAX = 4
PAIRS = 36
"""Publishers, each with a subject and a subscriber of its own; a multiple of as many brokers squared as may be."""
WINDOW = 4
"""Publishes that each has in flight."""
BODY = bytes(100)
KEPT_S = 3600
WARM_UP = 50
POLL_INTERVAL_S = 0.5
"""The default of --poll-interval."""
POLLED_S = 60.0
STREAMED_MIN = 0.95
"""The part of what crosses that has to come by streams."""
IDLE_S = 2.0
"""For so long it is watched what brokers use while nothing is published: in it each writes its register once."""
HEARD_TIMEOUT_S = 30
LATE_TIMEOUT_S = 30


class Cost(NamedTuple):
    """What one trial with some brokers took."""

    crossing: float
    """The part of the messages whose subscriber is at another broker than its publisher."""
    messages: int
    seconds: float
    cpu_us: float
    """Of all brokers together, for each message, beyond what they use while idle."""
    idle: float
    """CPUs that they use together while nothing is published."""
    database_cpu_us: float
    flush_messages: float
    """Messages in a flush, on average."""
    streamed: float
    """The part of what crossed that came by streams."""


def main() -> int:
    """Return 0 when every figure is valid, 1 when there is none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often each number of brokers is tried")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one trial")
    arguments = parser.parse_args()
    if why := missing():
        print(f"not measured: {why}")
        return 1
    SCRATCH.mkdir(exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    with postgres(SCRATCH) as database:
        streamed, text = latency(database, 2 * arguments.seconds)
        print(text)
        print(latency_by_polling(database, POLLED_S))
        least_streamed, text = costs(database, arguments.rounds, arguments.seconds)
        print(text)
    if min(streamed, least_streamed) < STREAMED_MIN:
        print("VOID: much did not come by streams")
        return 1
    return 0


def latency(database: Postgres, seconds: float) -> tuple[float, str]:
    """Publish one message at a time, in turns for a subscriber at the same broker and for one at another."""
    with brokers(database, 2) as (ours, theirs):
        took = trio.run(_take_turns, ours.address, theirs.address, seconds)
        streamed = streamed_by([theirs])
    lines = [
        "\n**from before a publish to its receipt**, in turns, a message at a time",
        "\n| subscriber | p50, ms | p99, ms | messages |",
        "|---|---|---|---|",
    ]
    for where, durations in took.items():
        percentiles = statistics.quantiles(durations, n=100)
        lines.append(f"| {where} | {percentiles[49]:.2f} | {percentiles[98]:.2f} | {len(durations)} |")
    here, there = (statistics.median(durations) for durations in took.values())
    lines.append(f"\nLater at another broker, p50: {there - here:.2f} ms. By the stream: {streamed:.1%}")
    return streamed, "\n".join(lines)


async def _take_turns(
    ours: str, theirs: str, seconds: float, prefix: str = "latency", pause_s: float = 0.0
) -> dict[str, list[float]]:
    """Return durations in ms, by where the subscriber is; before each message is a pause of up to ``pause_s``."""
    dice = random.Random(9)
    warm_up = 2 if pause_s else WARM_UP
    took: dict[str, list[float]] = {"at the publisher's broker": [], "at another broker": []}
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(connect(ours))
        subscriptions = []
        for subject, address in ((f"{prefix}.here", ours), (f"{prefix}.there", theirs)):
            client = await stack.enter_async_context(connect(address))
            subscriptions.append((subject, await stack.enter_async_context(client.subscribe(subject))))
        until = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < until or number < 2 * warm_up:
            number += 1
            for durations, (subject, messages) in zip(took.values(), subscriptions, strict=True):
                await trio.sleep(dice.random() * pause_s)
                began = time.perf_counter()
                publishing = await publisher.start_publish(subject, BODY, KEPT_S)
                with trio.fail_after(LATE_TIMEOUT_S):
                    message = await anext(messages)
                if number > warm_up:
                    durations.append(1000 * (time.perf_counter() - began))
                if not message.id == await publishing.id() == number:
                    raise RuntimeError(f"{subject}: id {message.id} came instead of {number}")
                publishing.leave()
    return took


def latency_by_polling(database: Postgres, seconds: float) -> str:
    """Do the same where brokers hear each other by no stream and no wake-up: what is left is asking the database.

    Messages come at random points of the interval.
    """
    cut_off = "--peers", "127.0.0.1:1", "--store-listen", "postgresql://nobody@127.0.0.1:1/nothing"
    with brokers(database, 2, *cut_off) as (ours, theirs):
        took = trio.run(_take_turns, ours.address, theirs.address, seconds, "polled", POLL_INTERVAL_S)
        heard = {path: int(told(theirs)[path]) for path in ("tail", "wakeup", "poll")}
    durations = took["at another broker"]
    p99 = statistics.quantiles(durations, n=100, method="inclusive")[98]  # few, and none is later than the last
    return (
        f"\n**without streams and wake-ups**, asking every {POLL_INTERVAL_S:g} s: "
        f"p50 {statistics.median(durations):.0f} ms, p99 {p99:.0f} ms, most {max(durations):.0f} ms, "
        f"of {len(durations)} messages; heard of: {heard}"
    )


def costs(database: Postgres, rounds: int, seconds: float) -> tuple[float, str]:
    """Spread publishers and subscribers over one to four brokers; set the cost beside what the formula says."""
    measured: dict[int, list[Cost]] = {count: [] for count in range(1, BROKERS_MAX + 1)}
    for round_ in range(rounds):
        for count in [*measured][:: -1 if round_ % 2 else 1]:
            measured[count].append(_cost(database, count, f"cost.{round_}.{count}", seconds))
    cpu_us = {count: statistics.median(cost.cpu_us for cost in some) for count, some in measured.items()}
    crossing = {count: some[0].crossing for count, some in measured.items()}
    hop_us = (cpu_us[2] - cpu_us[1]) / crossing[2]
    lines = [
        f"\n**CPU of a message**, {PAIRS} publishers with {WINDOW} in flight, a subscriber each; medians of {rounds}.",
        "CPU is that of all brokers beyond what they use while idle, and of the database; a flush is in messages.",
        "\n| brokers | crossing | CPU, us | predicted | range | idle | database, us | messages/s | flush | streamed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count, some in measured.items():
        predicted = f"{cpu_us[1] + crossing[count] * hop_us:.1f}" if count > 2 else "-"
        lines.append(
            f"| {count} | {crossing[count]:.0%} | {cpu_us[count]:.1f} | {predicted} "
            f"| {min(cost.cpu_us for cost in some):.1f}-{max(cost.cpu_us for cost in some):.1f} "
            f"| {statistics.median(cost.idle for cost in some):.1%} "
            f"| {statistics.median(cost.database_cpu_us for cost in some):.1f} "
            f"| {statistics.median(cost.messages / cost.seconds for cost in some):,.0f} "
            f"| {statistics.median(cost.flush_messages for cost in some):.1f} "
            f"| {min(cost.streamed for cost in some):.1%} |"
        )
    lines.append(
        f"\nPredicted: what one broker costs, and {hop_us:.1f} us for each message that crosses, which is what two "
        "cost more. It leaves out that flushes get smaller."
    )
    return min(cost.streamed for some in measured.values() for cost in some), "\n".join(lines)


def _cost(database: Postgres, count: int, prefix: str, seconds: float) -> Cost:
    """Run one trial with so many brokers."""
    places = [(pair // count % count, pair % count) for pair in range(PAIRS)]  # of each publisher and its subscriber
    crossing = sum(publisher != subscriber for publisher, subscriber in places) / PAIRS
    with brokers(database, count) as servers:
        addresses = [server.address for server in servers]

        def used_s() -> tuple[float, float]:
            return sum(server.cpu_s() for server in servers), database.cpu_s()

        idle_s = -used_s()[0]
        time.sleep(IDLE_S)
        idle = (idle_s + used_s()[0]) / IDLE_S
        messages, took_s, (cpu_s, database_cpu_s) = trio.run(
            _publish_and_receive, addresses, places, prefix, seconds, used_s
        )
        streamed = streamed_by(servers) if crossing else 1.0
        flushed = [
            sum(told(server)[f"trio_broker_flush_messages_{what}"] for server in servers) for what in ("sum", "count")
        ]
    each_us = [1e6 * used / messages for used in (cpu_s - idle * took_s, database_cpu_s)]
    return Cost(crossing, messages, took_s, each_us[0], idle, each_us[1], flushed[0] / flushed[1], streamed)


async def _publish_and_receive(addresses, places, prefix, seconds, used_s):
    """Return how many messages came, in which time, and what `used_s` grew by."""
    published: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        publishers, subscribers = [
            [await stack.enter_async_context(connect(address)) for address in addresses] for _ in range(2)
        ]
        subjects = [f"{prefix}.{pair}" for pair in range(PAIRS)]
        async with _subscribed(subscribers, subjects, places) as subscriptions:
            for subject, (publisher, _), messages in zip(subjects, places, subscriptions, strict=True):
                await publishers[publisher].publish(subject, BODY, KEPT_S)
                published[subject] += 1
                await anext(messages)
            before, began = used_s(), time.perf_counter()
            received, progress = published.copy(), trio.lowlevel.ParkingLot()
            async with trio.open_nursery() as receiving:
                for subject, messages in zip(subjects, subscriptions, strict=True):
                    receiving.start_soon(_receive_all, subject, messages, received, progress)
                async with trio.open_nursery() as publishing:
                    for subject, (publisher, _) in zip(subjects, places, strict=True):
                        for _ in range(WINDOW):
                            publishing.start_soon(
                                _publish_on, publishers[publisher], subject, published, began + seconds
                            )
                with trio.fail_after(LATE_TIMEOUT_S):
                    while received != published:
                        await progress.park()
                receiving.cancel_scope.cancel()
            took_s = time.perf_counter() - began
            grown = tuple(after_s - before_s for before_s, after_s in zip(before, used_s(), strict=True))
    return published.total() - PAIRS, took_s, grown


@asynccontextmanager
async def _subscribed(clients: Sequence[Client], subjects: Sequence[str], places) -> AsyncIterator[list]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(clients[subscriber].subscribe(subject))
            for subject, (_, subscriber) in zip(subjects, places, strict=True)
        ]


async def _publish_on(client: Client, subject: str, published: Counter[str], until: float) -> None:
    while time.perf_counter() < until:
        published[subject] += 1
        await client.publish(subject, BODY, KEPT_S)


async def _receive_all(subject: str, messages, received: Counter[str], progress: trio.lowlevel.ParkingLot) -> None:
    while True:
        message = await anext(messages)
        received[subject] += 1
        progress.unpark_all()
        if message.id != received[subject]:
            raise RuntimeError(f"{subject}: id {message.id} came instead of {received[subject]}")


@contextmanager
def brokers(database: Database, count: int, *flags: str) -> Iterator[list[Server]]:
    """Run so many brokers for the length of the block; they all hear each other, unless ``flags`` say otherwise."""
    with ExitStack() as stack:
        place = Place(SCRATCH, database.url)
        servers = [
            stack.enter_context(running(broker("{database_url}", *flags)(place), database)) for _ in range(count)
        ]
        give_up = time.monotonic() + HEARD_TIMEOUT_S
        while not flags and any(told(server).get("trio_broker_replicas_heard", 0) != count - 1 for server in servers):
            if time.monotonic() > give_up:
                raise RuntimeError(f"{count} brokers did not hear each other within {HEARD_TIMEOUT_S} s")
            time.sleep(0.1)
        for server in servers:
            server.settle()
        yield servers


def streamed_by(servers: Sequence[Server]) -> float:
    """Return which part of what brokers learned of others came by streams."""
    learned: Counter[str] = Counter()
    for server in servers:
        learned.update({path: int(told(server)[path]) for path in ("tail", "wakeup", "poll")})
    return learned["tail"] / learned.total() if learned.total() else 1.0


def told(server: Server) -> dict[str, float]:
    """Return what a broker's metrics say: of the paths of messages by path, of all others by name."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {sample.labels.get("path", sample.name): sample.value for family in families for sample in family.samples}


if __name__ == "__main__":
    sys.exit(main())
