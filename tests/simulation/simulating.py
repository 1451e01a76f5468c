"""One seed, from nothing to the end, the same way each time; and what came of it."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
import trio._core._run as scheduler
from structlog.testing import capture_logs

from .clock import JumpingClock
from .observing import observed
from .replicated import ReplicatedScenario
from .scenario import Scenario
from .world import Event, World, digest


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a seed."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    trace: list[Event]

    @property
    def digest(self) -> str:
        return digest(self.trace)

    def __str__(self) -> str:
        found = "\n".join(f"    {violation}" for violation in self.violations)
        return f"seed {self.seed}: replay it by  python -m tests.simulation {self.seed}\n{found}"


def simulate(seed: int) -> Report:
    """Run a seed, from nothing to the end: an odd one has several brokers."""
    world = World(seed)
    with _deterministic(seed), observed(world), capture_logs() as logs:
        scenario = (ReplicatedScenario if seed % 2 else Scenario)(world)
        try:
            trio.run(scenario.run, clock=JumpingClock())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the broker let it out
            world.violations.append(f"no crash: {error!r} {getattr(error, 'exceptions', '')}")
    failed = Counter(str(line["event"]) for line in logs if line["log_level"] == "error")
    if failed != Counter(append_failed=scenario.store.bugs):
        world.violations.append(f"no crash: logged {dict(failed)}, {scenario.store.bugs} bugs of the store")
    return Report(seed, world.violations, world.counts, world.trace)


@contextmanager
def _deterministic(seed: int) -> Generator[None]:
    """Let trio run tasks in an order that only the seed decides, as its own support for Hypothesis does."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    state = scheduler._r.getstate()
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._r.setstate(state)
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
