"""The Helm chart's files that are generated are what their sources say, and its values are described."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_kit import CHART, ROOT

from trio_broker._version import __version__
from trio_broker.config import Config

GENERATOR = ROOT / "helm" / "generate.py"
VALUES = CHART / "values.yaml"


def files(chart: Path) -> dict[str, str]:
    return {str(path.relative_to(chart)): path.read_text() for path in chart.rglob("*") if path.is_file()}


def test_it_is_what_its_sources_say(tmp_path: Path) -> None:
    generated = tmp_path / "chart"
    shutil.copytree(CHART, generated)
    subprocess.run([sys.executable, GENERATOR, generated], check=True)
    assert files(generated) == files(CHART), "run make chart"


def test_alerts_and_dashboards_are_those_of_the_compose_stack() -> None:
    docker = ROOT / "docker"
    for folder, source in (
        ("rules", docker / "prometheus" / "rules"),
        ("dashboards", docker / "grafana" / "dashboards"),
    ):
        shipped = {path.name: path.read_bytes() for path in (CHART / "files" / folder).iterdir()}
        assert shipped == {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
        assert shipped


def test_every_setting_is_the_operators_or_the_charts() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    offered = set(schema["properties"]["config"]["properties"])
    source = GENERATOR.read_text()
    kept = set(re.findall(r'"(\w+)"', source.partition("OF_THE_CHART = {")[2].partition("}")[0]))
    assert kept
    assert offered.isdisjoint(kept)
    assert offered | kept == set(Config.model_fields), "run make chart, or name a setting that templates write"


def test_the_version_is_that_of_the_package() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", about["version"])


@pytest.mark.parametrize(
    ("version", "semantic"),
    [
        ("1.2.3", "1.2.3"),
        ("1.2", "1.2.0"),
        ("1.0.0rc1", "1.0.0-rc.1"),
        ("0.1.0.dev0", "0.1.0-dev.0"),
        ("1.0a2.dev3", "1.0.0-a.2.dev.3"),
    ],
)
def test_a_version_of_pythons_is_one_of_helms(version: str, semantic: str) -> None:
    asked = f"import generate; print(generate.semantic({version!r}))"
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=GENERATOR.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == semantic


def test_every_value_is_described_or_below_one_that_is() -> None:
    described: set[str] = set()
    path: list[tuple[int, str]] = []
    comment = False
    for line in VALUES.read_text().splitlines():
        if line.lstrip().startswith("#"):
            comment = comment or line.lstrip().startswith("# --")
            continue
        if key := re.match(r"( *)(\w+):", line):
            path = [each for each in path if each[0] < len(key[1])] + [(len(key[1]), key[2])]
            if comment:
                described.add(".".join(name for _, name in path))
        comment = False
    missing = [
        name
        for name in leaves(yaml.safe_load(VALUES.read_text()))
        if not any(name == each or name.startswith(f"{each}.") for each in described)
    ]
    assert missing == []


def leaves(values: dict[str, Any], above: str = "") -> list[str]:
    """The names of values that have none below them."""
    found = []
    for name, value in values.items():
        found += leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else [above + name]
    return found
