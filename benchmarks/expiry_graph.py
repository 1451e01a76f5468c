"""The samples of expiry.py as graphs.

Owns:      which lines are in which graph.
Not here:  how they are drawn (graphs.py), what the figures mean (expiry.py, docs/EXPIRY.md).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from benchmarks import graphs


class Seen(Protocol):
    """What a sample needs to have."""

    @property
    def at_s(self) -> float: ...


class Line(NamedTuple):
    """One value of every sample."""

    name: str
    field: str
    scale: float = 1.0


class Panel(NamedTuple):
    """Lines on one axis; ``mark``: a count, and a vertical line wherever it grew."""

    title: str
    lines: Sequence[Line]
    mark: Line | None = None


PANELS = (
    Panel("publishes a second, thousands", [Line("publishes", "rate", 1e-3)]),
    Panel(
        "rows, millions",
        [Line("not expired", "live_rows", 1e-6), Line("in the table", "rows", 1e-6), Line("dead", "dead_rows", 1e-6)],
        Line("a vacuum ended", "vacuums"),
    ),
    Panel(
        "size, MiB",
        [
            Line("table", "table_mib"),
            Line("primary key", "key_index_mib"),
            Line("index of expires_at", "expiry_index_mib"),
        ],
        Line("a vacuum ended", "vacuums"),
    ),
    Panel("write-ahead log, MiB/s", [Line("log", "wal_mib_per_s")], Line("a checkpoint", "checkpoints")),
    Panel("CPU, cores", [Line("database", "database_cores"), Line("broker", "broker_cores")]),
)


def draw(samples: Sequence[Seen]) -> str:
    """Return the text of an SVG file."""
    return graphs.draw([_graph(panel, samples) for panel in PANELS])


def _graph(panel: Panel, samples: Sequence[Seen]) -> graphs.Graph:
    lines = [
        graphs.Line(line.name, [(sample.at_s, _value(sample, line)) for sample in samples]) for line in panel.lines
    ]
    if panel.mark is None:
        return graphs.Graph(panel.title, lines)
    return graphs.Graph(panel.title, lines, _grew(samples, panel.mark), panel.mark.name)


def _value(sample: Seen, line: Line) -> float:
    return float(getattr(sample, line.field)) * line.scale


def _grew(samples: Sequence[Seen], count: Line) -> list[float]:
    before = _value(samples[0], count)
    found = []
    for sample in samples:
        if _value(sample, count) > before:
            found.append(sample.at_s)
        before = _value(sample, count)
    return found
