"""The samples of expiry.py as a drawing: panels above each other, over one axis of time.

Owns:      which lines are in which panel; SVG, as far as lines on axes need it.
Not here:  what the figures mean (expiry.py, docs/EXPIRY.md).
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple, Protocol

WIDTH, HEIGHT = 820, 130
"""Of one panel, with all that is around its axes and without."""
LEFT, RIGHT, TOP, GAP = 56, 190, 30, 46
COLOURS = ("#1f5fa8", "#c2571a", "#3d7d3d", "#7a4fa3")
STYLE = """\
text { font: 12px sans-serif; fill: #222 }
.title { font-weight: bold }
.right { text-anchor: end }
.middle { text-anchor: middle }
.grid { stroke: #ddd }
.mark { stroke: #999; stroke-dasharray: 3 3 }
polyline { fill: none; stroke-width: 1.5 }
"""


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
    height = TOP + len(PANELS) * (HEIGHT + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>\n{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for place, panel in enumerate(PANELS):
        lines += _panel(panel, samples, TOP + place * (HEIGHT + GAP))
    return "\n".join([*lines, "</svg>\n"])


def _panel(panel: Panel, samples: Sequence[Seen], top: int) -> Iterator[str]:
    end_s = samples[-1].at_s
    most = max(_value(sample, line) for sample in samples for line in panel.lines)
    step = _round_step(most / 4)
    highest = step * max(1, math.ceil(most / step))
    bottom, right = top + HEIGHT, WIDTH - RIGHT

    def x(at_s: float) -> float:
        return round(LEFT + (right - LEFT) * at_s / end_s, 1)

    def y(value: float) -> float:
        return round(bottom - HEIGHT * max(value, 0) / highest, 1)

    yield f'<text class="title" x="{LEFT}" y="{top - 8}">{escape(panel.title)}</text>'
    for number in range(round(highest / step) + 1):
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(number * step)}" y2="{y(number * step)}"/>'
        yield f'<text class="right" x="{LEFT - 6}" y="{y(number * step) + 4}">{number * step:g}</text>'
    for tick_s in range(0, math.floor(end_s) + 1, 30):
        yield f'<text class="middle" x="{x(tick_s)}" y="{bottom + 16}">{tick_s} s</text>'
    for place, (line, colour) in enumerate(zip(panel.lines, COLOURS, strict=False)):
        points = " ".join(f"{x(sample.at_s)},{y(_value(sample, line))}" for sample in samples)
        yield f'<polyline stroke="{colour}" points="{points}"/>'
        yield _key(line.name, right, top + 12 + place * 18, f'stroke="{colour}" stroke-width="3"')
    if panel.mark:
        for at_s in _grew(samples, panel.mark):
            yield f'<line class="mark" x1="{x(at_s)}" x2="{x(at_s)}" y1="{top}" y2="{bottom}"/>'
        yield _key(panel.mark.name, right, top + 12 + len(panel.lines) * 18, 'class="mark"')


def _key(name: str, left: int, middle: int, how: str) -> str:
    line = f'<line x1="{left + 14}" x2="{left + 36}" y1="{middle}" y2="{middle}" {how}/>'
    return f'{line}<text x="{left + 42}" y="{middle + 4}">{escape(name)}</text>'


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


def _round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, 20 and so on that is not less."""
    power = 10.0 ** math.floor(math.log10(least or 1))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
