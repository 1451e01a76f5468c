"""Medians, ratios, and how they are printed and kept.

Owns:      the table (Markdown, so that it can be pasted) and the JSON file.
Not here:  measuring.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loads import Measured
from benchmarks.servers import ROOT
from benchmarks.workloads import Measure, Workload


@dataclass(frozen=True, slots=True)
class Outcome:
    """All rounds of one workload."""

    workload: Workload
    measured: tuple[list[Measured], ...]
    """By side, as in ``workload.sides``; place i of all lists is round i."""
    counted: dict[str, str]
    """By the name of a side: what its database counted, over all rounds."""

    @property
    def problems(self) -> list[str]:
        """Why the figures are void, if they are."""
        sides = zip(self.workload.sides, self.measured, strict=True)
        return [f"{side.name}: {one.problem}" for side, rounds in sides for one in rounds if one.problem]


WIDTHS = (22, 32, 32, 24)


def table(outcome: Outcome) -> str:
    """One workload: medians of its rounds, with the least and the most, and how much better ours is than each other.

    A ratio is taken within each round, whose parts ran one after the other, and then its median.
    """
    workload = outcome.workload
    ours, *others = workload.sides
    lines = [f"\n**{workload.name}**: {workload.what}"]
    for place, other in enumerate(others, 1):
        lines += ["", _line("", ours.name, other.name, "better by"), _line(*("-" * width for width in WIDTHS))]
        rounds = outcome.measured[0], outcome.measured[place]
        lines += [_line(measure.title, *cells(measure, *rounds)) for measure in other.measures or workload.measures]
    if outcome.counted:
        lines += ["", *(f"- {side}: {counted}" for side, counted in outcome.counted.items())]
    return "\n".join(lines)


def cells(measure: Measure, our_rounds: list[Measured], other_rounds: list[Measured]) -> tuple[str, str, str]:
    """Two sides and the ratio."""
    ours, other = ([measure.value(one) for one in rounds] for rounds in (our_rounds, other_rounds))
    pairs = zip(ours, other, strict=True) if measure.more_is_better else zip(other, ours, strict=True)
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
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
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
            "counted": outcome.counted,
            **{
                side.name: [asdict(one) for one in rounds]
                for side, rounds in zip(outcome.workload.sides, outcome.measured, strict=True)
            },
        }
        for outcome in outcomes
    }
    path.write_text(json.dumps({"machine": machine(), **settings, "workloads": workloads}, indent=1) + "\n")
