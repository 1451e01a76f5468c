"""Start a server as a process of its own, and read what it costs.

Owns:      the command lines, readiness, stopping.
Not here:  load (loads.py), databases (postgres.py, cassandra.py), what is compared with what (workloads.py).
Threads:   one per server, which reads its output to the end so that a full pipe never stops it.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, NamedTuple, Protocol

import grpc
import trustme

from benchmarks.clocks import cpu_s_of_family

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / ".cache"
"""For what is built and for databases: /tmp is often no disk, and an fsync there costs nothing."""
AUTHORITY = "authority.pem"
"""Beside the certificate of a server that speaks TLS."""
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 15
QUIET_TIMEOUT_S = 20


class Place(NamedTuple):
    """Where a server may keep things."""

    directory: Path
    database_url: str = ""
    """Of an empty database, if it asked for one."""


class Database(Protocol):
    """A running database, of one side alone, with nothing in it."""

    url: str
    pid: int
    counted: str
    """What it tells of all rounds and warm-ups together; known at the end. Empty: nothing."""

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        ...


class DatabaseKind(NamedTuple):
    """Where databases come from."""

    start: Callable[[Path], AbstractContextManager[Database]]
    """Run one with its files in a directory."""
    missing: Callable[[], str]
    """Why it cannot run on this machine; empty: it can."""


Command = Callable[[Place], Sequence[str]]
"""Makes the command line of a server."""


def broker(store: str, *flags: str) -> Command:
    """The broker as anybody runs it. ``{directory}`` and ``{database_url}`` in ``store`` are replaced."""

    def command(place: Place) -> Sequence[str]:
        url = store.format(**place._asdict())
        script = Path(sys.executable).with_name("trio-broker")
        listeners = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        return [str(script), "serve", "--store", url, *listeners, "--log-format", "json", *flags]

    return command


def encrypted(store: str, *flags: str) -> Command:
    """The same with TLS, by a certificate of its own for an ECDSA key (P-256), which most have."""

    def command(place: Place) -> Sequence[str]:
        authority = trustme.CA()
        certificate, key = place.directory / "cert.pem", place.directory / "key.pem"
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        authority.cert_pem.write_to_path(str(certificate.with_name(AUTHORITY)))
        return broker(store, "--tls-cert", str(certificate), "--tls-key", str(key), *flags)(place)

    return command


def grpcio_aio(_place: Place) -> Sequence[str]:
    """The peer: benchmarks/grpcio_server.py."""
    return [sys.executable, "-m", "benchmarks.grpcio_server"]


def grpcio_aio_on_postgres(place: Place) -> Sequence[str]:
    """The peer on PostgreSQL: benchmarks/grpcio_postgres_server.py."""
    return [sys.executable, "-m", "benchmarks.grpcio_postgres_server", place.database_url]


def grpcio_aio_on_cassandra(place: Place) -> Sequence[str]:
    """The peer on Cassandra: benchmarks/grpcio_cassandra_server.py."""
    return [sys.executable, "-m", "benchmarks.grpcio_cassandra_server", place.database_url]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    address: str
    pid: int
    database: Database | None = None
    """Its own, if it has one."""
    metrics_address: str = ""
    """HOST:PORT, if it has any."""
    authority: bytes | None = None
    """Whom clients have to trust, in PEM. None: it speaks plaintext."""

    def channel(self) -> grpc.Channel:
        """Connect to it."""
        if self.authority is None:
            return grpc.insecure_channel(self.address)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.authority))

    def cpu_s(self) -> float:
        """CPU time of all its threads, and of its workers', so far."""
        return cpu_s_of_family(self.pid)

    def database_cpu_s(self) -> float:
        """CPU time of all processes of its database so far."""
        return self.database.cpu_s() if self.database else 0.0

    def settle(self) -> None:
        """Wait until the server is idle: what one run left behind must not be paid by the next one."""
        give_up = time.monotonic() + QUIET_TIMEOUT_S
        while time.monotonic() < give_up:
            before_s = self.cpu_s() + self.database_cpu_s()
            time.sleep(0.1)
            if self.cpu_s() + self.database_cpu_s() - before_s < 0.01:
                return


@contextmanager
def running(command: Sequence[str], database: Database | None = None) -> Iterator[Server]:
    """Run a server for the length of the ``with`` block.

    Raises:
        RuntimeError: it did not get ready; with what it printed.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    # no SimpleQueue: its `get` waits for ever when a timeout is over at the wrong moment (CPython 3.11, 3.12)
    ready = Queue[Mapping[str, str] | Exception]()
    reader = threading.Thread(target=_read, args=(process.stdout, ready), daemon=True)
    reader.start()
    try:
        try:
            event = ready.get(timeout=START_TIMEOUT_S)
        except Empty:
            raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S} s") from None
        if isinstance(event, Exception):
            raise event
        yield Server(event["grpc"], process.pid, database, event.get("metrics", ""), _authority(command))
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()


def _authority(command: Sequence[str]) -> bytes | None:
    if "--tls-cert" not in command:
        return None
    return Path(command[command.index("--tls-cert") + 1]).with_name(AUTHORITY).read_bytes()


def _read(output: IO[str], ready: Queue[Mapping[str, str] | Exception]) -> None:
    """Find the line that says where the server listens; then read on and forget."""
    seen = []
    for line in output:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and event.get("event") == "ready":
            ready.put(event)
            break
        seen.append(line)
    else:
        ready.put(RuntimeError("the server ended before it was ready:\n" + "".join(seen)))
    for _ in output:
        pass
