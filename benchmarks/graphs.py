"""Graphs over one axis of time, below each other, as SVG.

Owns:      SVG, as far as lines on axes need it.
Not here:  what is drawn (expiry_graph.py, faults_graph.py).
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

WIDTH, HEIGHT = 880, 130
"""Of one graph, with all that is around its axes and without."""
LEFT, RIGHT, TOP, GAP = 56, 250, 30, 46
TICK_S, TICKS_MAX = 30, 12
"""Of the axis of time: a tick so often, or less often where that would be more than so many."""
COLOURS = ("#1f5fa8", "#c2571a", "#3d7d3d", "#7a4fa3", "#a8891f", "#555555")
STYLE = """\
text { font: 12px sans-serif; fill: #222 }
.title { font-weight: bold }
.right { text-anchor: end }
.middle { text-anchor: middle }
.grid { stroke: #ddd }
.mark { stroke: #999; stroke-dasharray: 3 3 }
.span { fill: #f6e3d7 }
polyline { fill: none; stroke-width: 1.5 }
"""


class Line(NamedTuple):
    """A value over time: seconds and value. It is broken where the value is NaN."""

    name: str
    points: Sequence[tuple[float, float]]


class Graph(NamedTuple):
    """Lines on one axis, and vertical lines where something happened."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[float] = ()
    mark_name: str = ""


class Span(NamedTuple):
    """A stretch of time that is shaded."""

    from_s: float
    to_s: float


def draw(graphs: Sequence[Graph], *, head: str = "", head_height: int = 0, span: Span | None = None) -> str:
    """Return the text of an SVG file; ``head`` is SVG for the top of it."""
    top = TOP + head_height
    height = top + len(graphs) * (HEIGHT + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>\n{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    if head:
        lines.append(head)
    end_s = max(at_s for graph in graphs for line in graph.lines for at_s, _ in line.points)
    for place, graph in enumerate(graphs):
        lines += _graph(graph, end_s, top + place * (HEIGHT + GAP), span)
    return "\n".join([*lines, "</svg>\n"])


def _graph(graph: Graph, end_s: float, top: int, span: Span | None) -> Iterator[str]:
    values = [value for line in graph.lines for _, value in line.points]
    most = max((value for value in values if not math.isnan(value)), default=0.0)
    step = _round_step(most / 4)
    highest = step * max(1, math.ceil(most / step))
    bottom, right = top + HEIGHT, WIDTH - RIGHT

    def x(at_s: float) -> float:
        return round(LEFT + (right - LEFT) * at_s / end_s, 1)

    def y(value: float) -> float:
        return round(bottom - HEIGHT * max(value, 0) / highest, 1)

    if span:
        width = round(x(span.to_s) - x(span.from_s), 1)
        yield f'<rect class="span" x="{x(span.from_s)}" y="{top}" width="{width}" height="{HEIGHT}"/>'
    yield f'<text class="title" x="{LEFT}" y="{top - 8}">{escape(graph.title)}</text>'
    for number in range(round(highest / step) + 1):
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(number * step)}" y2="{y(number * step)}"/>'
        yield f'<text class="right" x="{LEFT - 6}" y="{y(number * step) + 4}">{number * step:g}</text>'
    for tick_s in range(0, math.floor(end_s) + 1, TICK_S * math.ceil(end_s / TICK_S / TICKS_MAX)):
        yield f'<text class="middle" x="{x(tick_s)}" y="{bottom + 16}">{tick_s} s</text>'
    for place, (line, colour) in enumerate(zip(graph.lines, COLOURS, strict=False)):
        for unbroken, part in groupby(line.points, lambda point: not math.isnan(point[1])):
            if unbroken:
                points = " ".join(f"{x(at_s)},{y(value)}" for at_s, value in part)
                yield f'<polyline stroke="{colour}" points="{points}"/>'
        yield _key(line.name, right, top + 12 + place * 18, f'stroke="{colour}" stroke-width="3"')
    if graph.mark_name:
        for at_s in graph.marks:
            yield f'<line class="mark" x1="{x(at_s)}" x2="{x(at_s)}" y1="{top}" y2="{bottom}"/>'
        yield _key(graph.mark_name, right, top + 12 + len(graph.lines) * 18, 'class="mark"')


def _key(name: str, left: int, middle: int, how: str) -> str:
    line = f'<line x1="{left + 14}" x2="{left + 36}" y1="{middle}" y2="{middle}" {how}/>'
    return f'{line}<text x="{left + 42}" y="{middle + 4}">{escape(name)}</text>'


def _round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, 20 and so on that is not less."""
    power = 10.0 ** math.floor(math.log10(least or 1))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
