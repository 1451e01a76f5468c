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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.loads import (
    BODY_BYTES,
    ENDING_S,
    EXPIRATION_S,
    BrokerLoad,
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
    """

    def __init__(self, *, connections: int, streams: int, shared_ids: bool = False) -> None:
        self.connections = connections
        self.streams = streams
        self._shared_ids = shared_ids

    def missing(self) -> str:
        """It has to be installed."""
        return "" if shutil.which("h2load") else "needs h2load (Debian: nghttp2-client)"

    def run(self, server: Server, seconds: float) -> Measured:
        """Send as many calls as will take about ``seconds``, going by a short run, which is the warm-up."""
        rate = self._publish(server, WARM_UP_CALLS).rate
        return self._publish(server, max(int(rate * seconds), WARM_UP_CALLS))

    def _publish(self, server: Server, calls: int) -> Measured:
        subject = fresh_subject()
        first = last_id(server, subject) + 1 if self._shared_ids else 0
        with tempfile.NamedTemporaryFile() as log:
            with self.command(server, subject, f"--requests={calls}", f"--log-file={log.name}") as command:
                database_cpu_s, cpu_s = server.database_cpu_s(), server.cpu_s()
                report = output_of(command, ENDING_S)
                cpu_s = server.cpu_s() - cpu_s
                database_cpu_s = server.database_cpu_s() - database_cpu_s
            durations_us = [int(line.split("\t")[2]) for line in Path(log.name).read_text().splitlines()]
        percentiles_us = statistics.quantiles(durations_us, n=100)
        appended = last_id(server, subject) - first
        return Measured(
            calls=calls,
            seconds=finished_in_s(report),
            server_cpu_s=cpu_s,
            database_cpu_s=database_cpu_s,
            p50_ms=percentiles_us[49] / 1000,
            p99_ms=percentiles_us[98] / 1000,
            problem="" if appended == calls == succeeded(report) else f"{calls} calls, {appended} ids:\n{report}",
        )

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
            url = f"http://{server.address}/broker.Broker/Publish"
            yield ["h2load", *load, *limits, *headers, f"--data={request.name}", url]


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
