"""Load generators: programs that drive a server and say what they measured.

Owns:      `Measured`, `Load`, and brokerload (Go, in go/) with its Python stand-in.
Not here:  h2load (h2load.py), servers (servers.py), what is compared with what (workloads.py).

Each run has a subject of its own, so that ids start at 1 and a missing or doubled one is seen. A measurement
with a ``problem`` is void.
"""

import json
import shutil
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.servers import ROOT, SCRATCH, Server
from trio_broker._proto import broker_pb2 as pb

BODY_BYTES = 100
EXPIRATION_S = 3600
ENDING_S = 60
"""How much longer than its measured window a load generator may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run of a load generator saw."""

    calls: int
    """Calls, or deliveries, that ended inside the measured window."""
    seconds: float
    server_cpu_s: float = 0.0
    database_cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bytes_per_stream: float = 0.0
    batch_messages: float = 0.0
    """Messages of one subject in one write to its database, on average, where that was counted."""
    problem: str = ""

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the server's CPU per call."""
        return self.server_cpu_s / self.calls * 1e6

    @property
    def database_cpu_us(self) -> float:
        """Microseconds of the CPU of all processes of its database per call."""
        return self.database_cpu_s / self.calls * 1e6


class Kept(NamedTuple):
    """What a database has of one subject."""

    messages: int
    batches: int
    """The writes that they came in."""


class Load(ABC):
    """One way to drive a server."""

    @abstractmethod
    def missing(self) -> str:
        """Why this cannot run on this machine; empty: it can."""

    @abstractmethod
    def run(self, server: Server, seconds: float) -> Measured:
        """Drive ``server``: a warm-up, then a measured window of about ``seconds``."""

    def following(self, _ours: Measured) -> "Load":
        """Return the load to make after our side was measured so; it is always the same for most."""
        return self


class BrokerLoad(Load):
    """The Go program in go/, built when first needed; flags as of ``brokerload MODE -h``.

    Without Go, benchmarks/grpcio_load.py runs its modes publish and fanout.
    """

    def __init__(self, mode: str, **flags: object) -> None:
        self._mode = mode
        self._flags = flags

    def missing(self) -> str:
        """Go is needed for all but the modes that Python can do too."""
        return "" if shutil.which("go") or self._mode in {"publish", "fanout"} else "needs Go"

    def run(self, server: Server, seconds: float) -> Measured:
        """Run it; it reads the server's CPU clock itself, at both ends of its measured window."""
        program = [str(brokerload())] if shutil.which("go") else [sys.executable, "-m", "benchmarks.grpcio_load"]
        flags = {"address": server.address, "pid": server.pid, "subject": fresh_subject(), "length": f"{seconds}s"}
        arguments = [f"-{name.replace('_', '-')}={value}" for name, value in {**flags, **self._flags}.items()]
        return Measured(**json.loads(output_of([*program, self._mode, *arguments], seconds + ENDING_S)))


@cache
def brokerload() -> Path:
    """Build the Go program (`go build` does nothing where nothing changed) and return where it is."""
    SCRATCH.mkdir(exist_ok=True)
    program = SCRATCH / "brokerload"
    subprocess.run(["go", "build", "-o", program, "."], cwd=ROOT / "benchmarks" / "go", check=True)
    return program


def fresh_subject() -> str:
    """A subject nobody has used, so that its ids start at 1."""
    return f"bench.{uuid.uuid4().hex[:12]}"


def last_id(server: Server, subject: str) -> int:
    """Return how many ids a subject had given out, by the id that one more publish gets."""
    with server.channel() as channel:
        publish = channel.unary_unary(
            "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
        )
        return publish(pb.PublishRequest(subject=subject), timeout=ENDING_S, wait_for_ready=True).id - 1


def output_of(command: list[str], timeout_s: float, *, with_errors: bool = False) -> str:
    """Run a program and return what it printed; ``with_errors``: on its standard error too.

    Raises:
        RuntimeError: it failed; with all that it printed.
    """
    errors = subprocess.STDOUT if with_errors else subprocess.PIPE
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr or ''}")
    return done.stdout
