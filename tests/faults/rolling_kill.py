"""``python -m tests.faults.rolling_kill --minutes 10``: kill -9 of one broker after the other, under load.

Three brokers on one PostgreSQL, 300 subscribers over 100 subjects, 16 publishers with idempotency keys and ordinary
retries, 200 or more publishes a second. Ends with 0 if every subscriber got every kept message once and in order,
nothing is there twice, and less than 0.1 % of all publishes failed.
"""

import argparse
import time
from itertools import count

import trio

from .cluster import cluster
from .oracle import Oracle
from .trial import run, say

BROKERS = 3
SUBJECTS = 100
SUBSCRIBERS = 300
PUBLISHERS = 16
PUBLISHES_PER_S = 200
PAUSE_S = 0.03
"""Between two publishes of one publisher: for `PUBLISHES_PER_S` each may take 50 ms."""
FAILED_MAX = 0.001
EVERY_S = 10.0


async def rolling_kill(url: str, options: argparse.Namespace) -> None:
    async with cluster(url, brokers=BROKERS) as brokers:
        oracle = Oracle(brokers, [f"orders.{n}" for n in range(SUBJECTS)])
        began = time.monotonic()
        over = began + options.minutes * 60
        async with oracle.at_work(publishers=PUBLISHERS, subscribers=SUBSCRIBERS, pause_s=PAUSE_S, unkeyed_every=0):
            for kills in count(1):
                await trio.sleep(options.every / 2)
                killed_at = time.monotonic()
                await brokers.kill(kills % BROKERS)
                await brokers.start(kills % BROKERS)
                await brokers.all_ready(time.monotonic())
                back_s = time.monotonic() - killed_at
                await trio.sleep(options.every / 2)
                before = time.monotonic()
                await oracle.more(0)
                caught_up_s = time.monotonic() - before
                say(
                    began,
                    f"kill {kills}: ready again after {back_s:.1f} s, subscribers had all after {caught_up_s:.2f} s; "
                    f"{oracle.acknowledged} acknowledged, {oracle.failed()} failed, errors {dict(oracle.errors())}",
                )
                if time.monotonic() > over:
                    break
            took_s = time.monotonic() - began
    rate = oracle.acknowledged / took_s
    failed = oracle.failed() / (oracle.acknowledged + oracle.failed())
    delivered = sum(len(subscriber.received) for subscriber in oracle.subscribers)
    resumed = sum(len(subscriber.ends) for subscriber in oracle.subscribers)
    say(began, f"{rate:.0f} publishes/s, {failed:.4%} failed; {delivered} delivered; streams resumed {resumed} times")
    assert rate >= PUBLISHES_PER_S, "too slow a machine, or too slow a broker"
    assert failed < FAILED_MAX


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="SECONDS", help="one kill in so many seconds")
    run(rolling_kill, parser)
