"""What an ordinary client notices of ten hostile connections: ``python -m benchmarks.hostile``.

Owns:      the trial, what is checked, and the table that is printed.
Not here:  what the hostile ones do (hostile_peers.py), the bounds that answer it (docs/RPC.md).
Threads:   grpcio's.

A grpcio client publishes at a fixed rate, each publish timed from when it was due, in turns with and without ten
hostile connections from a process of their own. Every publish has to succeed, with ids 1, 2, 3 and so on. The bar is a
p99 within 3x. The hostile process gives way to all others (nice), as if it were on another machine: it has what server
and client leave of the cores.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks.report import machine
from benchmarks.servers import ROOT, SCRATCH, Place, Server, broker, running
from trio_broker._proto import broker_pb2 as pb

BODY = bytes(100)
CALLERS = 32
"""Publishes that may be late at the same time."""
CALL_TIMEOUT_S = 10
BAR = 3.0
"""What the p99 may be, times that without hostile connections."""


class Result(NamedTuple):
    """One run."""

    p50_ms: float
    p99_ms: float
    most_ms: float
    failed: int
    resident_bytes: int
    """The server's memory at the end."""


@contextmanager
def hostile(address: str) -> Iterator[None]:
    """Have ten hostile connections for the length of the block."""
    command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.hostile_peers", address]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "attacking\n":
            raise RuntimeError("the hostile peers did not start")
        yield
        if process.poll() is not None:
            raise RuntimeError("the hostile peers ended before the trial")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def publish(server: Server, subject: str, seconds: float, per_s: int) -> Result:
    """Publish at a fixed rate.

    Raises:
        RuntimeError: the ids are not those of the publishes that succeeded.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options) as channel, ThreadPoolExecutor(CALLERS) as callers:
        call = channel.unary_unary(
            "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
        )
        request = pb.PublishRequest(subject=subject, body=BODY, expirationSeconds=3600)

        def one(due: float) -> tuple[float, int]:
            try:
                got = call(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True).id
            except grpc.RpcError:
                got = 0
            return time.perf_counter() - due, got

        one(time.perf_counter())
        began = time.perf_counter()
        waiting = []
        for number in range(int(seconds * per_s)):
            due = began + number / per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(callers.submit(one, due))
        done = [each.result() for each in waiting]
    ids = [got for _, got in done if got]
    failed = len(done) - len(ids)
    if len(set(ids)) != len(ids) or (not failed and sorted(ids) != list(range(2, len(ids) + 2))):
        raise RuntimeError(f"{subject}: {len(ids)} publishes got {len(set(ids))} ids up to {max(ids)}")
    durations_ms = sorted(1000 * seconds for seconds, _ in done)
    cut = [durations_ms[int(part * (len(durations_ms) - 1))] for part in (0.5, 0.99, 1)]
    return Result(*cut, failed, resident_bytes(server.pid))


def resident_bytes(pid: int) -> int:
    """Return the memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def main() -> int:
    """Return 0 if all publishes succeeded and the bar is kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=int, default=100, help="publishes a second")
    parser.add_argument("--flags", default="", help="more flags of the broker")
    arguments = parser.parse_args()
    SCRATCH.mkdir(exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    without, beside = [], []
    for number in range(arguments.rounds):
        with running(broker("memory:", *arguments.flags.split())(Place(SCRATCH))) as server:
            without.append(publish(server, f"alone.{number}", arguments.seconds, arguments.rate))
            with hostile(server.address):
                beside.append(publish(server, f"beside.{number}", arguments.seconds, arguments.rate))
    for name, results in {"alone": without, "beside ten hostile connections": beside}.items():
        for result in results:
            print(
                f"{name}: p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms, most {result.most_ms:.1f} ms, "
                f"{result.failed} failed, memory {result.resident_bytes / 2**20:.0f} MiB"
            )
    ratios = [bad.p99_ms / good.p99_ms for good, bad in zip(without, beside, strict=True)]
    ratio = statistics.median(ratios)
    print(f"p99 within a round: {ratio:.2f}x ({min(ratios):.2f}-{max(ratios):.2f}); the bar is {BAR:g}x")
    return 0 if ratio <= BAR and not any(result.failed for result in beside) else 1


if __name__ == "__main__":
    sys.exit(main())
