"""What the dashboards showed of a fault as one picture: the overview, the alerts, and some graphs.

Owns:      numbers as Grafana writes them, colours of tiles; when the overview is looked at.
Not here:  lines on axes (graphs.py), the faults (faults.py).
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from benchmarks import graphs
from tests.grafana_boards import Panel

STEP_S = 1
"""Between two points of a line."""
LINES_MAX = 6
TILE_WIDTH, TILE_HEIGHT, TILE_GAP, TILES_IN_A_ROW = 136, 40, 8, 6
ROW_HEIGHT = 16
FILL = {"green": "#d9ecd3", "yellow": "#f7e6a6", "red": "#f2b5ae", "": "#eeeeee"}
ORDER = ("", "green", "yellow", "red")
IN_PLAIN_UNITS = {"percentunit": (100.0, "%"), "bytes": (2.0**-20, "MiB"), "binBps": (2.0**-20, "MiB/s")}
"""What a graph's values are multiplied with, and what they are then."""
NAMES = {"reqps": "calls a second", "ops": "a second", "short": "", "none": ""}


class Shown(NamedTuple):
    """A panel, and the lines that were in it: seconds and values."""

    panel: Panel
    lines: Sequence[graphs.Line]

    def at(self, at_s: float) -> float:
        """The value of a tile at a moment; NaN if there is none."""
        values = [value for line in self.lines for when_s, value in line.points if at_s - STEP_S < when_s <= at_s]
        return values[-1] if values else math.nan

    def colour(self, value: float) -> str:
        """The colour of a tile that shows ``value``; empty where it shows nothing."""
        if math.isnan(value):
            return ""
        return [colour for least, colour in self.panel.colours if least is None or value >= least][-1]

    def written(self, value: float) -> str:
        """The value as a tile shows it."""
        if math.isnan(value):
            return "no data"
        if word := self.panel.words.get(f"{value:g}"):
            return word
        match self.panel.unit:
            case "percentunit":
                return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
            case "s":
                return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
        return f"{value:.3g}"


class Fired(NamedTuple):
    """An alert, and from when to when it fired, in seconds."""

    alert: str
    from_s: float
    to_s: float


class Picture(NamedTuple):
    """What was seen of a fault."""

    title: str
    span: tuple[float, float]
    """From when to when something was wrong, in seconds."""
    tiles: Sequence[Shown]
    graphs: Sequence[Shown]
    fired: Sequence[Fired]

    def moment_s(self) -> float:
        """When the overview is looked at: the last second of the fault in which most tiles are not green."""
        seconds = range(math.ceil(self.span[0]), math.floor(self.span[1]))
        return max(seconds, key=lambda at_s: (sum(self._rank(tile, at_s) for tile in self.tiles), at_s))

    def told(self) -> str:
        """What is not green then, and what fired, in a line."""
        at_s = self.moment_s()
        tiles = [
            f"{tile.panel.title} {tile.written(tile.at(at_s))}"
            for tile in self.tiles
            if tile.colour(tile.at(at_s)) != "green"
        ]
        return f"{', '.join(tiles)}; {', '.join(f'{f.alert} {f.from_s:.0f}-{f.to_s:.0f} s' for f in self.fired)}"

    @staticmethod
    def _rank(tile: Shown, at_s: float) -> int:
        return max(0, ORDER.index(tile.colour(tile.at(at_s))) - 1)


def read(panel: Panel, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Shown:
    """Take what a panel's queries returned, from the first value to the last, every `STEP_S`."""
    return Shown(panel, [graphs.Line(name, list(_without_gaps(points))) for name, points in series if points])


def _without_gaps(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Put NaN where there was no value."""
    before_s = points[0][0]
    for at_s, value in points:
        if at_s - before_s > 1.5 * STEP_S:
            yield before_s + STEP_S, math.nan
        yield at_s, value
        before_s = at_s


def draw(picture: Picture) -> str:
    """Return the text of an SVG file."""
    at_s = picture.moment_s()
    rows = math.ceil(len(picture.tiles) / TILES_IN_A_ROW)
    alerts_top = 70 + rows * (TILE_HEIGHT + TILE_GAP)
    head = [
        f'<text x="{TILE_GAP}" y="22" style="font: bold 16px sans-serif">{escape(picture.title)}</text>',
        f'<text x="{TILE_GAP}" y="44">Overview after {at_s - picture.span[0]:.0f} s of it (shaded below)</text>',
        *(_tile(place, tile, tile.at(at_s)) for place, tile in enumerate(picture.tiles)),
        *_alerts(picture.fired, alerts_top),
    ]
    height = alerts_top + max(1, len(picture.fired)) * ROW_HEIGHT
    return graphs.draw(
        [_graph(shown) for shown in picture.graphs],
        head="\n".join(head),
        head_height=height,
        span=graphs.Span(*picture.span),
    )


def _tile(place: int, tile: Shown, value: float) -> str:
    left = TILE_GAP + place % TILES_IN_A_ROW * (TILE_WIDTH + TILE_GAP)
    top = 54 + place // TILES_IN_A_ROW * (TILE_HEIGHT + TILE_GAP)
    middle = left + TILE_WIDTH // 2
    fill = FILL[tile.colour(value)]
    return (
        f'<rect x="{left}" y="{top}" width="{TILE_WIDTH}" height="{TILE_HEIGHT}" fill="{fill}"/>'
        f'<text class="middle" x="{middle}" y="{top + 16}">{escape(tile.panel.title)}</text>'
        f'<text class="middle title" x="{middle}" y="{top + 33}">{escape(tile.written(value))}</text>'
    )


def _alerts(fired: Sequence[Fired], top: int) -> Iterator[str]:
    if not fired:
        yield f'<text x="{TILE_GAP}" y="{top}">No alert fired.</text>'
    for place, each in enumerate(fired):
        text = f"{each.alert} fired from {each.from_s:.0f} s to {each.to_s:.0f} s"
        yield f'<text x="{TILE_GAP}" y="{top + place * ROW_HEIGHT}">{text}</text>'


def _graph(shown: Shown) -> graphs.Graph:
    most = max(map(_highest, shown.lines), default=0.0)
    if shown.panel.unit == "s":
        scale, unit = (1000.0, "ms") if most < 1 else (1.0, "s")
    else:
        scale, unit = IN_PLAIN_UNITS.get(shown.panel.unit, (1.0, NAMES.get(shown.panel.unit, shown.panel.unit)))
    highest = sorted(shown.lines, key=_highest, reverse=True)[:LINES_MAX]
    lines = [graphs.Line(line.name, [(at_s, value * scale) for at_s, value in line.points]) for line in highest]
    return graphs.Graph(f"{shown.panel.title}{unit and ', '}{unit}", lines)


def _highest(line: graphs.Line) -> float:
    return max((value for _, value in line.points if not math.isnan(value)), default=0.0)
