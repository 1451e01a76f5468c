"""The dashboards as they are in docker/grafana/dashboards, for those who put their questions to a real Prometheus.

Owns:      reading the files; what Grafana's variables stand for.
Not here:  Prometheus (prometheus_server.py).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILES = Path(__file__).parents[1] / "docker" / "grafana" / "dashboards"


class Query(NamedTuple):
    expr: str
    legend: str

    def filled_in(self, rate_interval_s: int) -> str:
        """The expression with all jobs and instances chosen, as Grafana fills it in."""
        expr = self.expr.replace("$__rate_interval", f"{rate_interval_s}s")
        for variable in ("$job", "$instance"):
            expr = expr.replace(variable, ".+")
        assert "$" not in expr, expr
        return expr

    def name_of(self, labels: Mapping[str, str]) -> str:
        """What the legend calls a series."""
        name = self.legend
        for label, value in labels.items():
            name = name.replace(f"{{{{{label}}}}}", value)
        return name


class Panel(NamedTuple):
    board: str
    title: str
    description: str
    kind: str
    """``stat``, ``timeseries`` or ``table``."""
    unit: str
    """Empty for a table."""
    queries: Sequence[Query]
    words: Mapping[str, str]
    """Shown instead of a number."""
    colours: Sequence[tuple[float | None, str]]
    """From which value on (None: the least) a number has which colour."""
    columns: Sequence[str]
    """The labels that a table shows."""


def panels() -> list[Panel]:
    """All panels of all boards, but for the headings."""
    return [
        _panel(board["title"].rpartition(" / ")[2], panel)
        for board in boards()
        for panel in board["panels"]
        if panel["type"] != "row"
    ]


def boards() -> list[dict[str, Any]]:
    """What is in the files."""
    return [json.loads(path.read_text()) for path in sorted(FILES.glob("*.json"))]


def _panel(board: str, panel: dict[str, Any]) -> Panel:
    shown = panel["fieldConfig"]["defaults"]
    return Panel(
        board=board,
        title=panel["title"],
        description=panel.get("description", ""),
        kind=panel["type"],
        unit=shown.get("unit", ""),
        queries=[Query(target["expr"], target.get("legendFormat", "")) for target in panel["targets"]],
        words={key: word["text"] for words in shown.get("mappings", []) for key, word in words["options"].items()},
        colours=[(step["value"], step["color"]) for step in shown.get("thresholds", {}).get("steps", [])],
        columns=[label for change in panel.get("transformations", []) for label in change["options"]["indexByName"]],
    )
