"""Each alert is described, tested by ``promtool test rules``, and has its paragraph in the runbook."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import promtool

ROOT = Path(__file__).parents[1]
RULES = ROOT / "docker" / "prometheus" / "rules" / "trio-broker.yml"
CASES = sorted((RULES.parent / "tests").glob("*.yml"))
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


def questions() -> Iterator[dict[str, Any]]:
    """What the cases ask, and what the answer has to be."""
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            yield from case["promql_expr_test"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == alert["alert"].lower()
    (paragraph,) = re.findall(
        rf"^## {alert['alert']}\n(.*?)(?=\n\n|\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert paragraph.startswith(f"*{alert['labels']['severity']}.*")
    assert "**Look at**" in paragraph
    assert "**Do:**" in paragraph


def test_the_runbook_is_about_these_alerts_in_their_order() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]


@pytest.mark.parametrize("name", [alert["alert"] for alert in ALERTS])
def test_an_alert_fires_in_one_case_and_is_silent_in_another(name: str) -> None:
    assert any(f'"{name}"' in sample["labels"] for asked in questions() for sample in asked["exp_samples"])
    assert any(re.search(_matcher(asked["expr"]), name) for asked in questions() if not asked["exp_samples"])


def _matcher(expr: str) -> str:
    """Return a regular expression of the alerts that a question is about."""
    found = re.search(r'alertname=~?"([^"]*)"', expr)
    return f"^{found[1]}$" if found else "^$"


@pytest.mark.usefixtures("prometheus_installed")
def test_promtool_finds_the_rules_well_formed() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.usefixtures("prometheus_installed")
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_promtool_finds_that_they_fire_when_they_should(cases: Path) -> None:
    promtool("test", "rules", cases)
