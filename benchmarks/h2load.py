"""Unary publishes by h2load (Debian: nghttp2-client): the cheapest client there is, and blind to gRPC.

Owns:      its command line, reading its report, the flood beside a lone caller.
Not here:  the other load generator (loads.py).

h2load counts answers and reads none of them, so ids are checked from outside: after n publishes on a fresh
subject the next one must get id n + 1. Where a server gives out ids over all subjects, they must have advanced by n.
"""

import re
import shutil
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.loads import (
    BODY_BYTES,
    ENDING_S,
    EXPIRATION_S,
    BrokerLoad,
    Kept,
    Load,
    Measured,
    fresh_subject,
    last_id,
    output_of,
)
from benchmarks.servers import Server
from trio_broker._proto import broker_pb2 as pb

WARM_UP_CALLS = 1000
FLOOD_LEAD_S = 1


class H2Load(Load):
    """``connections`` connections with ``streams`` publishes in flight on each.

    Args:
        shared_ids: the server gives out ids over all subjects, not from 1 for each.
        kept: reads back what the database has of a subject: all that was published.
    """

    def __init__(
        self,
        *,
        connections: int,
        streams: int,
        shared_ids: bool = False,
        kept: Callable[[Server, str], Kept] | None = None,
    ) -> None:
        self.connections = connections
        self.streams = streams
        self.shared_ids = shared_ids
        self.kept = kept

    def missing(self) -> str:
        """It has to be installed."""
        return "" if shutil.which("h2load") else "needs h2load (Debian: nghttp2-client)"

    def run(self, server: Server, seconds: float) -> Measured:
        """Send as many calls as will take about ``seconds``, going by a short run, which is the warm-up."""
        return AtOnce(self).run(server, seconds)

    @contextmanager
    def command(
        self, server: Server, subject: str, *limits: str, expiration_s: int = EXPIRATION_S
    ) -> Iterator[list[str]]:
        """Make the command line; the request that it sends lies in a file for the length of the block."""
        message = pb.PublishRequest(subject=subject, body=bytes(BODY_BYTES), expirationSeconds=expiration_s)
        encoded = message.SerializeToString()
        with tempfile.NamedTemporaryFile() as request:
            request.write(struct.pack(">BI", 0, len(encoded)) + encoded)
            request.flush()
            load = [f"--clients={self.connections}", f"--max-concurrent-streams={self.streams}"]
            headers = ["--header=content-type: application/grpc", "--header=te: trailers"]
            url = f"http{'s' if server.authority else ''}://{server.address}/broker.Broker/Publish"
            yield ["h2load", *load, *limits, *headers, f"--data={request.name}", url]


class AtOnce(Load):
    """One h2load or several that run at once, each on a subject of its own."""

    def __init__(self, *loads: H2Load) -> None:
        self._loads = loads

    def missing(self) -> str:
        """What any of them misses."""
        return next(filter(None, (load.missing() for load in self._loads)), "")

    def run(self, server: Server, seconds: float) -> Measured:
        """As `H2Load.run`. Each sends a part of the calls that is as large as its part of the streams."""
        rate = self._publish(server, WARM_UP_CALLS).rate
        return self._publish(server, max(int(rate * seconds), WARM_UP_CALLS))

    def _publish(self, server: Server, calls: int) -> Measured:
        streams = [load.connections * load.streams for load in self._loads]
        runs = [
            _Run(load, server, calls * part // sum(streams)) for load, part in zip(self._loads, streams, strict=True)
        ]
        with ThreadPoolExecutor(len(runs)) as threads:
            database_cpu_s, cpu_s = server.database_cpu_s(), server.cpu_s()
            list(threads.map(_Run.publish, runs))
            cpu_s = server.cpu_s() - cpu_s
            database_cpu_s = server.database_cpu_s() - database_cpu_s
        problem = "".join([run.check() for run in runs])
        percentiles_us = statistics.quantiles([each for run in runs for each in run.durations_us], n=100)
        calls, batches = sum(run.calls for run in runs), sum(run.batches for run in runs)
        return Measured(
            calls=calls,
            seconds=max(finished_in_s(run.report) for run in runs),
            server_cpu_s=cpu_s,
            database_cpu_s=database_cpu_s,
            p50_ms=percentiles_us[49] / 1000,
            p99_ms=percentiles_us[98] / 1000,
            batch_messages=calls / batches if batches else 0,
            problem=problem,
        )


class _Run:
    """One run of h2load, on a fresh subject."""

    def __init__(self, load: H2Load, server: Server, calls: int) -> None:
        self.calls = calls
        self.report = ""
        self.durations_us: list[int] = []
        self.batches = 0
        """In which the database got the messages, where that is counted."""
        self._load = load
        self._server = server
        self._subject = fresh_subject()
        self._ids_before = last_id(server, self._subject) + 1 if load.shared_ids else 0

    def publish(self) -> None:
        with (
            tempfile.NamedTemporaryFile() as log,
            self._load.command(
                self._server, self._subject, f"--requests={self.calls}", f"--log-file={log.name}"
            ) as command,
        ):
            self.report = output_of(command, ENDING_S)
            self.durations_us = [int(line.split("\t")[2]) for line in Path(log.name).read_text().splitlines()]

    def check(self) -> str:
        """Compare what was sent, what was answered, the ids and what is kept; return what is wrong."""
        kept = self._load.kept(self._server, self._subject) if self._load.kept else Kept(self.calls, 0)
        self.batches = kept.batches
        appended = last_id(self._server, self._subject) - self._ids_before
        if self.calls == succeeded(self.report) == appended == kept.messages:
            return ""
        return f"{self.calls} calls, {appended} ids, {kept.messages} messages kept:\n{self.report}"


class LoneBesideFlood(Load):
    """One caller on a connection of its own beside a flood: what is measured is the lone caller."""

    def __init__(self, flood: H2Load) -> None:
        self._flood = flood
        self._lone = BrokerLoad("publish", connections=1, callers=1, warm_up=f"{FLOOD_LEAD_S}s")

    def missing(self) -> str:
        """Go too is needed: a lone caller in Python would wait for itself."""
        return self._flood.missing() or BrokerLoad("latency").missing()

    def run(self, server: Server, seconds: float) -> Measured:
        """Measure while the flood runs. The flood has to outlast it, and its answers have to be ids."""
        subject = fresh_subject()
        duration_s = int(seconds + 2 * FLOOD_LEAD_S) + 1
        with self._flood.command(server, subject, f"--duration={duration_s}") as command:
            flood = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                lone = self._lone.run(server, seconds)
                outlasted = flood.poll() is None
                report = flood.communicate(timeout=ENDING_S)[0]
            finally:
                flood.kill()
                flood.wait()
        answered, appended = succeeded(report), last_id(server, subject)
        cut_off = self._flood.connections * self._flood.streams  # in flight at the end: appended or not
        if not outlasted or not 0 < answered <= appended <= answered + cut_off:
            return replace(lone, problem=f"{lone.problem} flood: outlasted={outlasted}, {appended} ids:\n{report}")
        return lone


def succeeded(report: str) -> int:
    """How many answers h2load got that it took for successes."""
    found = re.search(r"(\d+) succeeded", report)
    return int(found[1]) if found else 0


def finished_in_s(report: str) -> float:
    """How long h2load took.

    Raises:
        RuntimeError: it did not finish.
    """
    found = re.search(r"finished in ([\d.]+)(us|ms|s)", report)
    if found is None:
        raise RuntimeError(f"h2load did not finish:\n{report}")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
