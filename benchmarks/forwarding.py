"""Eight publishers to one subject, at one broker and spread over three, in turns: ``python -m benchmarks.forwarding``.

Owns:      the trial on Cassandra, what is checked, and the table that is printed.
Not here:  how brokers leave a subject to one of them (trio_broker/replicas/forwarding.py), other figures of replicas
           (replicas.py).

Each publisher has `IN_FLIGHT` publishes on their way, on a connection of its own. All ids have to be there, each once.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import trio

from benchmarks.cassandra import Cassandra, cassandra, missing
from benchmarks.replicas import brokers
from benchmarks.report import machine
from benchmarks.servers import SCRATCH
from trio_broker import connect

BROKERS = 3
PUBLISHERS = 8
IN_FLIGHT = 50
BODY = bytes(100)
KEPT_S = 3600


async def publish_all(addresses: Sequence[str], subject: str, seconds: float) -> float:
    """Publish for so long; return how many a second. A checkpoint."""
    ids: list[int] = []

    async def publish(address: str) -> None:
        async with connect(address) as client, trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(one_after_the_other, client)

    async def one_after_the_other(client) -> None:
        while time.perf_counter() < until:
            ids.append(await client.publish(subject, BODY, KEPT_S))

    began = time.perf_counter()
    until = began + seconds
    async with trio.open_nursery() as nursery:
        for number in range(PUBLISHERS):
            nursery.start_soon(publish, addresses[number % len(addresses)])
    if sorted(ids) != list(range(1, len(ids) + 1)):
        raise RuntimeError(f"{subject}: {len(ids)} publishes got {len(set(ids))} ids up to {max(ids)}")
    return len(ids) / (time.perf_counter() - began)


def trial(node: Cassandra, count: int, subject: str, seconds: float) -> float:
    """Publish at so many brokers; return how many a second."""
    with brokers(node, count) as servers:
        return trio.run(publish_all, [server.address for server in servers], subject, seconds)


def main() -> int:
    """Return 0, or 1 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forwarding", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    if why := missing():
        print(f"not measured: {why}")
        return 1
    SCRATCH.mkdir(exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    rates: dict[int, list[float]] = {1: [], BROKERS: []}
    with cassandra(SCRATCH) as node:
        trial(node, 1, "forwarding.warm", 2 * arguments.seconds)  # the node compiles what it is asked often
        for round_ in range(arguments.rounds):
            for count, results in rates.items():
                results.append(trial(node, count, f"forwarding.{round_}.{count}", arguments.seconds))
    for count, results in rates.items():
        most, least, median = max(results), min(results), statistics.median(results)
        print(f"{count} brokers: {median:,.0f} a second ({least:,.0f}-{most:,.0f})")
    ratios = [three / one for one, three in zip(*rates.values(), strict=True)]
    print(f"ratio within a round: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
