"""Each alert is described, tested by ``promtool test rules``, and has its paragraph in the runbook.

And the configuration of Prometheus around them.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import promtool

from trio_broker.errors import FAULTS

ROOT = Path(__file__).parents[1]
RULES = ROOT / "docker" / "prometheus" / "rules" / "trio-broker.yml"
CASES = sorted((RULES.parent / "tests").glob("*.yml"))
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RUNBOOKS = "{{ $externalLabels.runbook_base }}"
"""An operator's address of this repository, if there is one."""


def questions() -> Iterator[dict[str, Any]]:
    """What the cases ask, and what the answer has to be."""
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            yield from case.get("promql_expr_test", [])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].removeprefix(RUNBOOKS).partition("#")
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


def test_calls_fail_that_the_broker_or_its_store_is_to_blame_for() -> None:
    (expr,) = (
        rule["expr"] for rule in GROUPS[0]["rules"] if rule["record"] == "job:trio_broker_failed_calls:ratio_rate5m"
    )
    (counted,) = re.findall(r'reason=~"([^"]*)"', expr)
    assert set(counted.split("|")) == FAULTS


@pytest.mark.usefixtures("prometheus_installed")
def test_promtool_finds_the_rules_well_formed() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.usefixtures("prometheus_installed")
def test_promtool_finds_the_configuration_well_formed_also_with_its_examples(tmp_path: Path) -> None:
    shipped = RULES.parents[1]
    promtool("check", "config", shipped / "prometheus.yml")
    tried = tmp_path / "prometheus"
    shutil.copytree(shipped, tried)
    examples = re.sub("^( *)# (?![A-Z])", r"\1", (shipped / "prometheus.yml").read_text(), flags=re.MULTILINE)
    (tried / "prometheus.yml").write_text(examples)
    promtool("check", "config", tried / "prometheus.yml")
    configuration = yaml.safe_load(examples)
    assert configuration["alerting"]["alertmanagers"]
    assert f"$externalLabels.{next(iter(configuration['global']['external_labels']))} " in RUNBOOKS


@pytest.mark.usefixtures("prometheus_installed")
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_promtool_finds_that_they_fire_when_they_should(cases: Path) -> None:
    promtool("test", "rules", cases)
