"""The dashboards are those that docker/grafana generates, and each panel can be read by somebody who sees it first."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from grafana_boards import FILES, Panel, boards, panels

from trio_broker.errors import FAULTS, reasons

GENERATOR = FILES.parent / "generate.py"
EVERYDAY = {"ABORTED", "CLOSED", "CONFLICT", "DRAINING", "EXPIRED_ID", "INVALID_ID", "NOT_APPLIED", "SLOW_CONSUMER"}
"""Reasons for which nobody is to blame, or somebody whom the broker cannot know, or that have a tile of their own."""
NEVER_SENT = {"CANNOT_OPEN", "CONNECTION_LOST"}


def named(panel: Panel) -> str:
    return f"{panel.board}: {panel.title}"


def test_the_files_are_what_their_source_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GENERATOR, tmp_path], check=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert generated == {path.name: path.read_text() for path in FILES.iterdir()}, "run make dashboards"


def test_every_board_has_its_own_address_the_variables_and_the_overview_on_top() -> None:
    tops = {panel.board: [] for panel in panels()}
    for panel in panels():
        if panel.kind == "stat" or panel.title == "Alerts":
            tops[panel.board].append(panel[1:])
    overviews = list(tops.values())
    assert len(overviews) == 4
    assert overviews == [overviews[0]] * 4
    for board, path in zip(boards(), sorted(FILES.iterdir()), strict=True):
        assert board["uid"] == path.stem
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        assert [*variables] == ["datasource", "job", "instance"]
        for name in ("job", "instance"):
            assert variables[name]["multi"]
            assert variables[name]["definition"] == variables[name]["query"]
            assert variables[name]["includeAll"]


def test_every_panel_says_what_it_is_and_what_to_do() -> None:
    for panel in panels():
        assert len(panel.description) >= 10, named(panel)
        assert panel.queries, named(panel)
        assert panel.unit or panel.kind == "table", named(panel)
        if panel.kind == "timeseries":
            assert all(query.legend for query in panel.queries), named(panel)
        elif panel.kind == "stat":
            assert panel.colours, named(panel)
        else:
            assert panel.columns, named(panel)


def test_a_panel_of_rates_has_a_unit_that_says_so() -> None:
    for panel in panels():
        if all(
            re.fullmatch(r"sum [^()]*(\([\w,]+\) )?\(rate\([^()]*\)\)( > 0)?", query.expr) for query in panel.queries
        ):
            assert panel.unit != "short", named(panel)


def test_every_reason_is_somebodys_fault_or_everyday_life() -> None:
    def counted(title: str) -> set[str]:
        (expr,) = {panel.queries[0].expr for panel in panels() if panel.title == title}
        return {reason for listed in re.findall(r'reason=~"([^"]*)"', expr) for reason in listed.split("|")}

    assert counted("Failed calls") == FAULTS
    assert counted("Wrong calls") == reasons() - FAULTS - EVERYDAY - NEVER_SENT


def test_no_two_panels_of_a_board_have_one_name_or_one_place() -> None:
    assert [name for name, count in Counter(map(named, panels())).items() if count > 1] == []
    for board in boards():
        covered = Counter(
            (column, row)
            for place in (panel["gridPos"] for panel in board["panels"])
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        )
        assert max(covered.values()) == 1, board["title"]
        assert max(column for column, _ in covered) < 24, board["title"]


def test_every_query_is_about_the_chosen_jobs_and_instances() -> None:
    for panel in panels():
        if panel.title == "Alerts":  # some are of a job as a whole, some of none
            assert all('job=~"$job|"' in query.expr for query in panel.queries)
            continue
        for query in panel.queries:
            selectors = query.expr.count("{")
            assert selectors, named(panel)
            assert query.expr.count('job=~"$job",instance=~"$instance"') == selectors, named(panel)
