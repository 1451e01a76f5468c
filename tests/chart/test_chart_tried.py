"""What the pod of `helm test` runs, against a broker (make chart-check); in its container: e2e/test_e2e_chart.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helm_kit import POSTGRES, one, render
from served_broker import SAFETY_S, serving

pytestmark = pytest.mark.chart


def trial(address: str, directory: Path) -> subprocess.CompletedProcess[str]:
    (container,) = one(render(*POSTGRES), "Pod")["spec"]["containers"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [*container["command"], *container["args"]],
        cwd=directory,
        env={"PATH": path, "TRIO_BROKER_SERVER": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * SAFETY_S,
        check=False,
    )


def test_it_says_what_it_did(tmp_path: Path) -> None:
    with serving() as address:
        done = trial(address, tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"{address}: message 1 of helm-test.")
    assert done.stdout.endswith(" was published, received and fetched\n")


def test_it_fails_and_says_why_where_there_is_no_broker(tmp_path: Path) -> None:
    done = trial("127.0.0.1:1", tmp_path)
    assert done.returncode != 0
    assert "127.0.0.1:1" in done.stdout
