"""What a broker holds at one moment, and how that went over time: a table, and a picture of it.

Owns:      `Sample`; CSV and SVG.
Not here:  lines on axes (benchmarks/graphs.py), what is done to the broker (__main__.py).
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from e2e_broker import BrokerProcess
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.graphs import Graph, Line, draw

MIB = 2**20
METRICS = {
    "trio_broker_connections": "connections",
    "trio_broker_trio_tasks": "tasks",
    "trio_broker_calls_in_flight": "calls",
    "trio_broker_rpc_inbound_bytes": "inbound_bytes",
    "trio_broker_rpc_outbound_bytes": "outbound_bytes",
}


class Sample(NamedTuple):
    """One look at a broker."""

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int
    connections: int
    tasks: int
    calls: int
    """Open: streams of HTTP/2 that are calls."""
    inbound_bytes: int
    outbound_bytes: int
    answered: int
    """Calls of ordinary clients, since the sample before."""
    p99_ms: float
    """Of those in the last second."""
    attacks: int
    """So far."""


def look(broker: BrokerProcess, at_s: float, *, answered: int = 0, p99_ms: float = 0.0, attacks: int = 0) -> Sample:
    """Look at a broker: at its process, and at its metrics, which is a connection by HTTP."""
    found = dict.fromkeys(METRICS.values(), 0)
    for family in text_string_to_metric_families(broker.get("/metrics")[1]):
        for sample in family.samples:
            if name := METRICS.get(sample.name):
                found[name] += int(sample.value)
    system = broker.system()
    return Sample(
        at_s=round(at_s, 1),
        memory_mib=round(system.memory_info().rss / MIB, 1),
        descriptors=system.num_fds(),
        threads=system.num_threads(),
        answered=answered,
        p99_ms=p99_ms,
        attacks=attacks,
        **found,
    )


def write(samples: Sequence[Sample], directory: Path, name: str) -> None:
    """Write ``NAME.csv`` and ``NAME.svg``."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Sample._fields)
        table.writerows(samples)
    (directory / f"{name}.svg").write_text(picture(samples))


def picture(samples: Sequence[Sample]) -> str:
    """Draw what matters of them."""

    def line(name: str, field: str) -> Line:
        return Line(name, [(each.at_s, float(getattr(each, field))) for each in samples])

    return draw(
        [
            Graph("Resident memory, MiB", [line("the broker's process", "memory_mib")]),
            Graph(
                "Held",
                [line("open files", "descriptors"), line("connections", "connections"), line("tasks", "tasks")],
            ),
            Graph("Open calls", [line("streams that are calls", "calls")]),
            Graph("Ordinary clients: ms for the slowest of a hundred calls", [line("p99 of a second", "p99_ms")]),
        ]
    )
