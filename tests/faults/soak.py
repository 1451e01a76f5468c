"""``python -m tests.faults.soak --minutes 60``: load and faults for long, and what it costs the brokers.

Three brokers on one PostgreSQL under load. In each period of a minute clients begin anew on subjects of that period,
one fault after another happens, chosen by ``--seed``, and at its end the oracle checks all of them. Two of the brokers
are never killed: their resident memory and open files are printed after each period, and in the end the slope of each,
once the first fifth of the time is over. Ends with 0 if the oracle found nothing wrong.
"""

import argparse
import time
from itertools import count
from random import Random
from statistics import linear_regression

import trio
from blackhole import Blackhole
from e2e_broker import eventually
from postgres_kit import Outside

from .cluster import Cluster, cluster
from .oracle import Oracle
from .storm import storm
from .trial import run, say

SUBJECTS = 20
SUBSCRIBERS = 40
PUBLISHERS = 8
PAUSE_S = 0.03
PERIOD_S = 60.0
FAULT_EVERY_S = 5.0
OUTAGE_S = 2.0
LATENCY_S = 0.05
STORM = 500
CACHE = "1MiB"
"""Of recent messages: one that fills for an hour would be taken for a leak."""
WARM_UP = 0.2
"""Of the time: what is made once is made by then."""
MIB = 2**20

LOSES_CONNECTIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'trio-broker'
"""


class Faults:
    """What may happen; each is over when it returns."""

    def __init__(self, brokers: Cluster, hole: Blackhole, url: str, dice: Random) -> None:
        self._brokers = brokers
        self._hole = hole
        self._url = url
        self._dice = dice

    async def any(self) -> str:
        """Let one of them happen; return its name."""
        fault = self._dice.choice(
            [self.kill_a_broker, self.lose_connections, self.hear_nothing, self.be_slow, self.cut, self.storm]
        )
        await fault()
        return fault.__name__

    async def kill_a_broker(self) -> None:
        await self._brokers.kill(2)
        await self._brokers.start(2)

    async def lose_connections(self) -> None:
        with Outside(self._url) as outside:
            outside.do(LOSES_CONNECTIONS)

    async def hear_nothing(self) -> None:
        self._hole.hold()
        await trio.sleep(OUTAGE_S)
        self._hole.release()

    async def be_slow(self) -> None:
        self._hole.slow(LATENCY_S)
        await trio.sleep(OUTAGE_S)
        self._hole.slow()

    async def cut(self) -> None:
        self._dice.choice([self._hole.cut, self._hole.reset])()

    async def storm(self) -> None:
        await trio.to_thread.run_sync(storm, self._brokers[1].address, STORM, self._dice)


async def soak(url: str, options: argparse.Namespace) -> None:
    dice = Random(options.seed)
    hours: list[float] = []
    memory_mib: list[list[float]] = [[], []]
    files: list[list[float]] = [[], []]
    began = time.monotonic()
    over = began + options.minutes * 60
    with Blackhole.before(url) as hole:
        # the first reaches its database through what is slow, silent or cut at times
        async with cluster(url, "--cache-bytes", CACHE, urls=[hole.through(url), url, url]) as brokers:
            faults = Faults(brokers, hole, url, dice)
            for period in count():
                oracle = Oracle(brokers, [f"period.{period}.{n}" for n in range(SUBJECTS)])
                happened = await work(brokers, oracle, faults, options.period)
                hours.append((time.monotonic() - began) / 3600)
                for number in range(2):
                    broker = brokers[number]
                    await trio.to_thread.run_sync(eventually, broker.subscribers, 0)
                    memory_mib[number].append(broker.system().memory_info().rss / MIB)
                    files[number].append(broker.system().num_fds())
                say(
                    began,
                    f"{oracle.acknowledged} acknowledged, {oracle.failed()} failed; resident "
                    + ", ".join(f"{each[-1]:.1f}" for each in memory_mib)
                    + " MiB; open files "
                    + ", ".join(f"{each[-1]:.0f}" for each in files)
                    + f"; {' '.join(happened)}",
                )
                if time.monotonic() > over:
                    break
    after = int(len(hours) * WARM_UP)
    if len(hours) - after > 1:
        for number in range(2):
            slopes = [linear_regression(hours[after:], each[number][after:]).slope for each in (memory_mib, files)]
            print(f"broker {number}: {slopes[0]:+.2f} MiB and {slopes[1]:+.2f} open files an hour")


async def work(brokers: Cluster, oracle: Oracle, faults: Faults, period_s: float) -> list[str]:
    """Load and faults for one period, and the oracle's checks; return what happened. Its subjects are deleted."""
    happened: list[str] = []
    over = time.monotonic() + period_s
    async with oracle.at_work(publishers=PUBLISHERS, subscribers=SUBSCRIBERS, pause_s=PAUSE_S):
        while time.monotonic() < over:
            await trio.sleep(FAULT_EVERY_S)
            happened.append(await faults.any())
        await brokers.all_ready(time.monotonic())
    await oracle.forget()
    return happened


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--period", type=float, default=PERIOD_S, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=25)
    run(soak, parser)
