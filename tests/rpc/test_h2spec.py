"""h2spec's 145 cases against a real server: https://github.com/summerwind/h2spec.

It is taken from PATH or ~/go/bin, or built with Go into .cache/. Where there is neither, the test is skipped; in CI
(CI=true) it fails instead.
"""

import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio

from trio_broker.rpc.server import Server

MODULE = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
CACHE = Path(__file__).parents[2] / ".cache" / "bin"
CASES = 145


@pytest.fixture(scope="session")
def h2spec():
    """The path of the program."""
    found = shutil.which("h2spec", path=os.pathsep.join((os.environ["PATH"], str(Path.home() / "go/bin"), str(CACHE))))
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("h2spec is not there, nor Go to build it with")
    subprocess.run([go, "install", MODULE], env={**os.environ, "GOBIN": str(CACHE)}, check=True)
    return str(CACHE / "h2spec")


async def test_all_cases_of_h2spec_pass(h2spec, tmp_path):
    report = tmp_path / "h2spec.xml"
    async with trio.open_nursery() as nursery:
        port = await nursery.start(Server().serve_async)
        command = [h2spec, "--port", str(port), "--timeout", "5", "--junit-report", str(report)]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        nursery.cancel_scope.cancel()
    cases = list(ET.parse(report).iter("testcase"))
    bad = [
        case.get("classname") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case.get("classname") for case in cases if case.find("skipped") is not None]
    assert (bad, skipped) == ([], []), done.stdout.decode()
    assert len(cases) == CASES
    assert done.returncode == 0
