"""The contract as a client on @grpc/grpc-js sees it: tests/peers/js against a broker in a process of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from served_broker import serving

ROOT = Path(__file__).parent.parent
PEER = ROOT / "tests" / "peers" / "js"
INSTALLED = ROOT / ".cache" / "peer-js"
PATIENCE_S = 300  # for a machine that does much else


@pytest.fixture(scope="session")
def packages() -> Path:
    """Install what the program needs, unless that was done for the same package.json; return where."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Node is not installed, and CI has to try @grpc/grpc-js")
        pytest.skip("Node is not installed")
    wanted, done = (PEER / "package.json").read_bytes(), INSTALLED / "installed.json"
    if not done.exists() or done.read_bytes() != wanted:
        INSTALLED.mkdir(parents=True, exist_ok=True)
        (INSTALLED / "package.json").write_bytes(wanted)
        command = ["npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=INSTALLED, check=True, timeout=PATIENCE_S)
        done.write_bytes(wanted)
    return INSTALLED / "node_modules"


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_contract_holds_for_grpc_js(packages: Path, compression: str) -> None:
    with serving("--compression", compression) as address:
        done = subprocess.run(
            ["node", PEER / "main.js", address, ROOT / "protos"],
            env={**os.environ, "NODE_PATH": str(packages)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stdout


def test_the_example_for_node_runs(packages: Path) -> None:
    with serving() as address:
        done = subprocess.run(
            ["node", ROOT / "examples" / "node" / "example.js", address],
            env={**os.environ, "NODE_PATH": str(packages)},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
    assert sorted(done.stdout.splitlines()) == ["published as 1", "received 1 two cups"]
