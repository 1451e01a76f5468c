"""Medians, ratios, and how they are printed and kept.

Owns:      the table (Markdown, so that it can be pasted) and the JSON file.
Not here:  measuring.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loads import Measured
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Outcome:
    """All rounds of one workload."""

    workload: Workload
    measured: tuple[list[Measured], list[Measured]]
    """By side, as in ``workload.sides``; place i of both lists is round i."""

    @property
    def problems(self) -> list[str]:
        """Why the figures are void, if they are."""
        sides = zip(self.workload.sides, self.measured, strict=True)
        return [f"{side.name}: {one.problem}" for side, rounds in sides for one in rounds if one.problem]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured."""

    title: str
    value: Callable[[Measured], float]
    more_is_better: bool = False


ROWS = (
    Row("calls/s", lambda m: m.rate, more_is_better=True),
    Row("server CPU, us/call", lambda m: m.cpu_us),
    Row("p50, ms", lambda m: m.p50_ms),
    Row("p99, ms", lambda m: m.p99_ms),
)
MEMORY_ROWS = (Row("bytes/stream", lambda m: m.bytes_per_stream),)
WIDTHS = (20, 28, 28, 22)


def table(outcome: Outcome) -> str:
    """One workload: medians of its rounds, with the least and the most, and how much better ours is.

    A ratio is taken within each round, whose two halves ran one after the other, and then its median.
    """
    workload = outcome.workload
    lines = [
        f"\n**{workload.name}**: {workload.what}\n",
        _line("", *(side.name for side in workload.sides), "better by"),
        _line(*("-" * width for width in WIDTHS)),
    ]
    rows = MEMORY_ROWS if outcome.measured[0][0].bytes_per_stream else ROWS
    lines += [_line(row.title, *cells(row, outcome)) for row in rows]
    return "\n".join(lines)


def cells(row: Row, outcome: Outcome) -> tuple[str, str, str]:
    """Both sides and the ratio."""
    ours, other = ([row.value(one) for one in rounds] for rounds in outcome.measured)
    pairs = zip(ours, other, strict=True) if row.more_is_better else zip(other, ours, strict=True)
    return _spread(ours), _spread(other), _spread([better / worse for better, worse in pairs], unit="x")


def _spread(values: Sequence[float], unit: str = "") -> str:
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{_short(median)}{unit} ({_short(least)}-{_short(most)})"


def _short(value: float) -> str:
    """Three digits are more than a measurement is worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(*texts: str) -> str:
    return "| " + " | ".join(text.ljust(width) for text, width in zip(texts, WIDTHS, strict=True)) + " |"


def machine() -> dict[str, object]:
    """Where the figures come from."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def save(path: Path, outcomes: Sequence[Outcome], **settings: object) -> None:
    """Write every round of every workload."""
    workloads = {
        outcome.workload.name: {
            "what": outcome.workload.what,
            **{
                side.name: [asdict(one) for one in rounds]
                for side, rounds in zip(outcome.workload.sides, outcome.measured, strict=True)
            },
        }
        for outcome in outcomes
    }
    path.write_text(json.dumps({"machine": machine(), **settings, "workloads": workloads}, indent=1) + "\n")
