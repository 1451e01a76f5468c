"""The contract as a grpc-go client sees it: tests/peers/go against a broker in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

ROOT = Path(__file__).parent.parent
PATIENCE_S = 300  # for a machine that does much else
SERVERS = ("postgres_url", "cassandra_url")
"""The fixtures of stores that need one."""


class Broker(NamedTuple):
    process: trio.Process
    grpc: str
    metrics: str


@pytest.fixture(scope="session")
def peertest() -> Path:
    """Build the program; `go build` does nothing where nothing changed."""
    if shutil.which("go") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Go is not installed, and CI has to try grpc-go")
        pytest.skip("Go is not installed")
    program = ROOT / ".cache" / "peertest"
    program.parent.mkdir(exist_ok=True)
    subprocess.run(["go", "build", "-o", program, "."], cwd=ROOT / "tests" / "peers" / "go", check=True)
    return program


@pytest.fixture
async def broker(request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery) -> Broker:
    """A broker on the store that the test names; ended with the test."""
    script = Path(sys.executable).with_name("trio-broker")
    listeners = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    store = request.getfixturevalue(request.param) if request.param in SERVERS else request.param
    command = [script, "serve", "--store", store, *listeners, "--log-format", "json"]
    process = await nursery.start(partial(trio.run_process, command, cwd=tmp_path, stderr=subprocess.PIPE, check=False))
    log = lines_of(process.stderr)
    async for line in log:
        event = json.loads(line)
        if event["event"] == "ready":
            nursery.start_soon(read_to_the_end, log)
            return Broker(process, event["grpc"], event["metrics"])
    raise AssertionError("the broker ended before it was ready")


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    buffer = b""
    async for data in stream:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield line


async def read_to_the_end(lines: AsyncIterator[bytes]) -> None:
    """A full pipe would stop the broker."""
    async for _ in lines:
        pass


@pytest.mark.parametrize("broker", ["memory:", "sqlite:///broker.db", *SERVERS], indirect=True)
async def test_the_contract_holds_for_grpc_go(peertest: Path, broker: Broker) -> None:
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            [peertest, "-address", broker.grpc, "-metrics", broker.metrics], capture_stdout=True, check=False
        )
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("broker", ["memory:"], indirect=True)
async def test_a_stopping_broker_tells_grpc_go_so(peertest: Path, broker: Broker, nursery: trio.Nursery) -> None:
    peer = await nursery.start(
        partial(
            trio.run_process,
            [peertest, "-address", broker.grpc, "-drain"],
            stdout=subprocess.PIPE,
            check=False,
        )
    )
    said = []
    with trio.fail_after(PATIENCE_S):
        async for line in lines_of(peer.stdout):
            said.append(line)
            if line == b"ready":
                broker.process.send_signal(signal.SIGTERM)
        assert said == [b"ready", b"ok a_stopping_broker_says_so"]
        assert await broker.process.wait() == 0
