"""What everything in one scenario shares: chance, the trace, what was counted, and what was found wrong.

No choice depends on the order of a hash or on the time of day, so a seed gives the same trace in any process.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import trio

Event = tuple[int, str, str, tuple[object, ...]]
"""Microseconds since the start, who, what, and details that are the same in every process."""


@dataclass(slots=True)
class Opened:
    """What the broker did to open a subscription."""

    number: int
    """Of the event when it was registered."""
    offered_id: int
    """How far its broker had offered the subject then."""
    place: str
    """The name of that broker."""
    asked: tuple[str, ...] = ()
    """Other brokers that were asked to acknowledge what they had under way."""
    waited_s: float = math.inf
    """Until all of them had."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace: list[Event] = []
        self.counts: Counter[str] = Counter()
        """How often something interesting happened."""
        self.violations: list[str] = []
        self.given_up: set[bytes] = set()
        """Bodies that the store was given and kept too long: a broker that hears of others does not wait for them."""

        self.doubtful: set[bytes] = set()
        """Bodies of which a broker was not told what became of them: their publishers may be told `OutcomeUnknown`."""

        self.unanswered: set[bytes] = set()
        """Bodies with a key that another broker was asked to append, and said nothing: the store knows."""

        self.places: dict[object, str] = {}
        """Names of brokers, by the brokers, where there are several."""

        self.opened: dict[str, Opened] = {}
        """The last subscription that a task has opened, by its name."""

        self.unanswered_settling: list[tuple[int, str, str]] = []
        """When it was that a broker did not hear from another one that all is acknowledged, and their names."""

    def random(self, who: str) -> Random:
        """Return the dice of one actor: what others do changes nothing about its choices."""
        return Random(f"{self.seed} {who}")

    def note(self, who: str, what: str, *details: object) -> int:
        """Trace an event; return its number: what comes later has a higher one."""
        self.trace.append((round(trio.current_time() * 1_000_000), who, what, details))
        return len(self.trace)

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] += times

    def violated(self, guarantee: str, what: str) -> None:
        """Note that the broker broke a promise."""
        self.note("checker", "VIOLATED", guarantee, what)
        self.violations.append(f"{guarantee}: {what}")


def digest(trace: list[Event]) -> str:
    """Return what two traces have in common only if they are the same."""
    return hashlib.sha256(repr(trace).encode()).hexdigest()


def text(trace: list[Event]) -> str:
    """Return a trace for people."""
    return "\n".join(
        f"{number:5} {time_us / 1_000_000:11.6f} {who:14} {what:12} {' '.join(map(str, details))}"
        for number, (time_us, who, what, details) in enumerate(trace, 1)
    )


async def ticks(count: int) -> None:
    """Let the scheduler go round so many times."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def pause(random: Random, longest_s: float) -> None:
    """Wait for some ticks, or for some time, as the dice fall. A checkpoint."""
    if random.random() < 0.5:
        await ticks(random.randint(1, 6))
    else:
        await trio.sleep(random.random() * longest_s)


async def cancel_perhaps(random: Random, call: Callable[[], Awaitable[None]]) -> None:
    """Await ``call()``; if the dice say so, cancel it at any of its awaits. A checkpoint if it is one."""
    if random.random() < 0.6:
        await call()
        return
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(_cancel_later, random, scope)
        with scope:
            await call()
        nursery.cancel_scope.cancel()


async def _cancel_later(random: Random, scope: trio.CancelScope) -> None:
    if random.random() < 0.7:
        await ticks(random.randint(0, 9))
    else:
        await trio.sleep(random.choice([0.001, 0.01, 0.1, 1.0]) * random.random())
    scope.cancel()
