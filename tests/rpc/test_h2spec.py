"""h2spec's 145 cases against a real server: https://github.com/summerwind/h2spec."""

from xml.etree import ElementTree as ET

import pytest
import trio
from go_tools import go_tool
from tls_files import Files

from trio_broker.rpc.server import Server
from trio_broker.rpc.tls import server_context

MODULE = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
CASES = 145


@pytest.fixture(scope="module")
def h2spec():
    return go_tool(MODULE)


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
async def test_all_cases_of_h2spec_pass(h2spec, tls, tmp_path):
    report = tmp_path / "h2spec.xml"
    files = Files(tmp_path)
    server = Server(tls=server_context(files.cert, files.key) if tls else None)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_async)
        command = [h2spec, "--port", str(port), "--timeout", "5", "--junit-report", str(report)]
        command += ["--tls", "--insecure"] if tls else []
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
