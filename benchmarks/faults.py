"""Faults on a real broker, and what its dashboards show of them: ``python -m benchmarks.faults DIRECTORY [FAULT ...]``.

Owns:      the faults; the pictures in DIRECTORY (docs/observability), one for each; the table that is printed.
Not here:  how pictures are drawn (faults_graph.py), what they mean (docs/OBSERVABILITY.md).

A broker as anybody runs it is kept busy and scraped every second by a Prometheus, which is asked the dashboards' own
questions. The rules are the shipped ones with all times divided by `FASTER`, for a fault lasts a minute here.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

# grpcio's own handlers of fork() complain when a server is started while calls are under way
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

from benchmarks.faults_graph import Fired, Picture, draw, read
from benchmarks.servers import ROOT, SCRATCH
from tests.blackhole import Blackhole
from tests.busy_clients import BusyClients, call_wrong_method, publish, publish_and_fetch, read_on
from tests.e2e.e2e_broker import BrokerProcess, sqlite_url
from tests.grafana_boards import Panel, panels
from tests.postgres_server import PostgresServer
from tests.prometheus_server import PrometheusServer

RULES = ROOT / "docker" / "prometheus" / "rules" / "trio-broker.yml"
FASTER = 12
HEALTHY_S, FAULT_S, AFTER_S = 30, 60, 30
RATE_S = 5
BROKER = "broker"
PUBLISHERS, PAUSE_S = 20, 0.2
"""Clients that publish, and their pauses: about 100 calls a second while the broker is well."""
LARGE_BYTES = 1024 * 1024


class Scene(NamedTuple):
    """A busy broker that is well."""

    broker: BrokerProcess
    clients: BusyClients
    fault: Callable[[], AbstractContextManager[object]]
    """Something is wrong for the length of this block."""


class Fault(NamedTuple):
    """Something that goes wrong."""

    title: str
    scene: Callable[[Path], AbstractContextManager[Scene]]
    """Set up with files in a directory."""
    graphs: Sequence[str]
    """Those that tell it from others, as ``board: title``."""
    alerts: frozenset[str]
    """Which have to fire."""


@contextmanager
def busy(store: str, *flags: str) -> Iterator[tuple[BrokerProcess, BusyClients]]:
    """Run a broker with some publishers, subscribers and a reader."""
    with BrokerProcess(store, *flags) as broker, BusyClients(broker.address) as clients:
        clients.keep(publish, pause_s=PAUSE_S, clients=PUBLISHERS)
        clients.keep(read_on, clients=4)
        clients.keep(publish_and_fetch, pause_s=PAUSE_S)
        yield broker, clients


@contextmanager
def slow_store(_directory: Path) -> Iterator[Scene]:
    """PostgreSQL stands still for most of the time."""
    with PostgresServer() as postgres, busy(postgres.dsn()) as (broker, clients):
        yield Scene(broker, clients, lambda: _again_and_again(postgres.freeze, 1.2, postgres.thaw, 0.1))


@contextmanager
def lost_store(_directory: Path) -> Iterator[Scene]:
    """PostgreSQL is stopped, and started again."""

    @contextmanager
    def stopped() -> Iterator[None]:
        postgres.stop()
        yield
        postgres.start()

    with PostgresServer() as postgres, busy(postgres.dsn()) as (broker, clients):
        yield Scene(broker, clients, stopped)


@contextmanager
def stalled_subscriber(directory: Path) -> Iterator[Scene]:
    """One subscriber stops reading; when it is cut it comes again, and does not read either."""
    with busy(sqlite_url(directory)) as (broker, clients):
        yield Scene(broker, clients, lambda: _again_and_again(clients.stall, FAULT_S / 3, lambda: None, 0))


@contextmanager
def wrong_method(directory: Path) -> Iterator[Scene]:
    """A client calls a method that there is not, as fast as it can."""

    @contextmanager
    def hammered() -> Iterator[None]:
        with BusyClients(broker.address) as hammers:
            hammers.keep(call_wrong_method, pause_s=0, clients=4)
            yield

    with busy(sqlite_url(directory)) as (broker, clients):
        yield Scene(broker, clients, hammered)


@contextmanager
def short_memory(directory: Path) -> Iterator[Scene]:
    """Clients publish more and larger messages than memory has room for, to subscribers that do not read."""

    @contextmanager
    def flooded() -> Iterator[None]:
        with BusyClients(broker.address) as flood:
            for number in range(30):
                subject = f"large.{number}"
                flood.stall(subject)
                flood.keep(partial(publish, subject=subject, body=bytes(LARGE_BYTES)), pause_s=PAUSE_S)
            yield

    with busy(sqlite_url(directory), "--memory-max", "96MiB") as (broker, clients):
        yield Scene(broker, clients, flooded)


@contextmanager
def lost_wakeups(_directory: Path) -> Iterator[Scene]:
    """Nothing comes through any more on the connection that listens; the others are well."""

    @contextmanager
    def held() -> Iterator[None]:
        hole.hold()
        hole.cut()
        yield
        hole.release()

    with (
        PostgresServer() as postgres,
        Blackhole("127.0.0.1", postgres.port) as hole,
        busy(postgres.dsn(), "--store-listen", hole.through(postgres.dsn())) as (broker, clients),
    ):
        yield Scene(broker, clients, held)


@contextmanager
def _again_and_again(
    this: Callable[[], object], this_s: float, that: Callable[[], object], that_s: float
) -> Iterator[None]:
    """Do this and that in turn, in a thread, each followed by a pause; at last that."""
    over = Event()

    def run() -> None:
        while not over.is_set():
            this()
            over.wait(this_s)
            that()
            over.wait(that_s)

    thread = Thread(target=run, name="fault")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


FAULTS: Mapping[str, Fault] = {
    "store-slow": Fault(
        "The store is slow",
        slow_store,
        [
            "calls: Duration of calls, p99",
            "store: Duration of a flush",
            "store: Duration of operations, p99",
            "process: By how much the scheduler wakes late",
        ],
        frozenset({"TrioBrokerLatencyBurnFast"}),
    ),
    "store-down": Fault(
        "The store is down",
        lost_store,
        [
            "store: Store and wake-ups",
            "calls: Calls that failed, by reason",
            "store: Errors",
            "store: Duration of a flush",
        ],
        frozenset({"TrioBrokerStoreDown", "TrioBrokerErrorRatio", "TrioBrokerNoneReady"}),
    ),
    "subscriber-stalls": Fault(
        "One subscriber stalls",
        stalled_subscriber,
        [
            "delivery: The fullest buffer of a subscription",
            "delivery: Subscriptions cut",
            "delivery: Published and delivered",
            "delivery: From the commit to the socket",
        ],
        frozenset({"TrioBrokerSlowConsumers"}),
    ),
    "wrong-method": Fault(
        "A client hammers a method that there is not",
        wrong_method,
        [
            "calls: Calls ended",
            "calls: Calls that failed, by status",
            "calls: Part of the calls that failed",
            "process: CPUs in use",
        ],
        frozenset({"TrioBrokerUnknownMethod"}),
    ),
    "memory-short": Fault(
        "Memory runs short",
        short_memory,
        [
            "process: Memory, of its limit",
            "process: What clients make it keep",
            "calls: Calls that failed, by reason",
            "delivery: Subscriptions cut",
        ],
        frozenset({"TrioBrokerMemoryPressure"}),
    ),
    "wakeups-lost": Fault(
        "The wake-up path is lost",
        lost_wakeups,
        [
            "store: Store and wake-ups",
            "store: Hints of appends",
            "store: Duration of a flush",
        ],
        frozenset({"TrioBrokerWakeupsLost"}),
    ),
}


def run(fault: Fault) -> Picture:
    """Let it happen, and return what the dashboards showed."""
    SCRATCH.mkdir(exist_ok=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fault-", dir=SCRATCH)))
        scene = stack.enter_context(fault.scene(directory))
        rules = directory / "rules.yml"
        rules.write_text(_quicker(RULES.read_text()))
        targets = {BROKER: scene.broker.metrics_address}
        prometheus = stack.enter_context(PrometheusServer(directory, targets, [rules]))
        began = time.time()
        time.sleep(HEALTHY_S)
        with scene.fault():
            time.sleep(FAULT_S)
        ended = time.time() - began
        time.sleep(AFTER_S)
        return _look(fault, prometheus, began, ended)


def _look(fault: Fault, prometheus: PrometheusServer, began: float, ended_s: float) -> Picture:
    now = time.time()

    def show(panel: Panel) -> Sequence[tuple[str, Sequence[tuple[float, float]]]]:
        return [
            (query.name_of(series.labels), [(at - began, value) for at, value in series.values])
            for query in panel.queries
            for series in prometheus.ask_over(query.filled_in(RATE_S), began, now)
        ]

    by_name = {f"{panel.board}: {panel.title}": panel for panel in panels()}
    tiles = {panel.title: panel for panel in panels() if panel.kind == "stat"}
    firing = prometheus.ask_over('sum by (alertname) (ALERTS{alertstate="firing"})', began, now)
    return Picture(
        fault.title,
        (HEALTHY_S, ended_s),
        [read(panel, show(panel)) for panel in tiles.values()],
        [read(by_name[name], show(by_name[name])) for name in fault.graphs],
        [
            Fired(series.labels["alertname"], series.values[0][0] - began, series.values[-1][0] - began)
            for series in firing
        ],
    )


def _quicker(rules: str) -> str:
    """Divide the times of rules by `FASTER`."""
    seconds = {"m": 60, "h": 3600}

    def divided(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * seconds[found[3]] // FASTER}s{found[4]}"

    return re.sub(r"(\[|for: )(\d+)([mh])(\]|$)", divided, rules, flags=re.MULTILINE)


def main() -> None:
    """Run the faults that are named, or all; write the pictures, and print a table of the overviews."""
    directory, names = Path(sys.argv[1]), sys.argv[2:] or [*FAULTS]
    directory.mkdir(exist_ok=True)
    if not shutil.which("prometheus"):
        raise SystemExit("needs Prometheus (Debian: prometheus)")
    silent = []
    for name in names:
        picture = run(FAULTS[name])
        (directory / f"{name}.svg").write_text(draw(picture))
        print(f"{name}: {picture.told()}", flush=True)
        silent += [f"{name}: {alert}" for alert in FAULTS[name].alerts - {fired.alert for fired in picture.fired}]
    if silent:
        raise SystemExit(f"did not fire: {', '.join(silent)}")


if __name__ == "__main__":
    main()
