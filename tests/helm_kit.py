"""The Helm chart, rendered: what Helm makes of values, and what it says of wrong ones.

Owns:      finding helm and what belongs to it, `render`, `refusal`, the chart's own value files.
Not here:  installing helm (helm/ci/install.sh); what the objects have to be (chart/).
Threads:   any; every function blocks.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "trio-broker"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
"""One file for each way to install it; together they use every part of the chart."""
RELEASE = "r"
NAMESPACE = "messages"
POSTGRES = ("store.url=postgresql://trio_broker@db/app",)
"""The least that installs brokers."""

_PROGRAMS = ROOT / ".cache" / "bin"


def program(name: str) -> str:
    """Return the path of helm or of what belongs to it; without it the test is skipped, or fails in CI."""
    found = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], str(_PROGRAMS))))
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{name} is not installed: make chart-check")
    return found


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of helm, and say how it went."""
    return subprocess.run([program("helm"), *arguments], capture_output=True, text=True, check=False)


def template(*sets: str, values: Path | None = None, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Render the chart with a file of values, and values as for ``--set``."""
    files = [f"--values={values}"] if values else []
    given = [f"--set={each}" for each in sets]
    return helm("template", RELEASE, CHART, f"--namespace={NAMESPACE}", *files, *given, *options)


def render(*sets: str, values: Path | None = None) -> list[dict[str, Any]]:
    """Return the objects that an installation consists of, hooks among them."""
    done = template(*sets, values=values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refusal(*sets: str) -> str:
    """Return why an installation is refused: the last lines of what helm says."""
    done = template(*sets)
    assert done.returncode != 0, done.stdout
    return done.stderr.strip()


def one(objects: list[dict[str, Any]], kind: str, component: str = "") -> dict[str, Any]:
    """Return the only object of a kind, and of a component of the chart if one is named."""
    label = "app.kubernetes.io/component"
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind and component in ("", each["metadata"].get("labels", {}).get(label))
    )
    return found


def broker_pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the pod of a broker is to be."""
    (workload,) = (
        each
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet") and not each["metadata"]["name"].endswith("demo-postgres")
    )
    pod: dict[str, Any] = workload["spec"]["template"]
    return pod


def broker(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the container of a broker is to be."""
    (container,) = (each for each in broker_pod(objects)["spec"]["containers"] if each["name"] == "broker")
    found: dict[str, Any] = container
    return found


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container that have a value of their own, with those they refer to filled in."""
    found = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return {
        name: value.replace("$(POD_IP)", "fd00::1" if "[$(" in value else "10.1.2.3") for name, value in found.items()
    }
