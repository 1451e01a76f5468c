"""What docs/KUBERNETES.md tells to copy can be copied (make chart-check)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from helm_kit import ROOT, broker, one, program, render

pytestmark = pytest.mark.chart

TEXT = (ROOT / "docs" / "KUBERNETES.md").read_text()
VALUES = re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
PRODUCTION = [each for each in VALUES if "replicaCount" in each]


@pytest.mark.parametrize("values", VALUES)
def test_values_of_an_example_render(values: str, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(values)
    store = () if "store:" in values else ("store.existingSecret=broker-store",)
    assert broker(render(*store, values=tmp_path / "values.yaml"))["args"][0] == "serve"


@pytest.mark.parametrize("values", PRODUCTION)
@pytest.mark.parametrize("by", ["job", "broker", "none"])
def test_a_release_is_asked_whether_it_knows_the_tables(values: str, by: str, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"^(helm template .*?) \| kubectl", TEXT, flags=re.MULTILINE | re.DOTALL)
    given = yaml.safe_load(values) | {"migrations": {"by": by}}
    (tmp_path / "production.yaml").write_text(yaml.safe_dump(given))
    recipe = recipe.replace("production.yaml", str(tmp_path / "production.yaml"))
    path = os.pathsep.join((str(Path(program("helm")).parent), os.environ["PATH"]))
    done = subprocess.run(recipe, shell=True, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    job = one([each for each in yaml.safe_load_all(done.stdout) if each], "Job")
    assert job["metadata"]["name"] == "broker-trio-broker-status"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate", "status"]
