"""``python -m benchmarks``: run the workloads in turns, check every answer, print medians and ratios.

Owns:      the command line, rounds, the order within them.
Not here:  everything that is measured (workloads.py says where).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import grpc

from benchmarks.fsyncs import count_fsyncs
from benchmarks.loads import Measured
from benchmarks.report import Outcome, machine, save, table
from benchmarks.servers import SCRATCH, Server, running
from benchmarks.workloads import WORKLOADS, Side, Workload


def main() -> int:
    """Return 0 when every figure is valid, 1 when one is void."""
    arguments = parse()
    SCRATCH.mkdir(exist_ok=True)
    if arguments.fsyncs:
        print(count_fsyncs(arguments.seconds))
        return 0
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"medians of {arguments.rounds} rounds of {arguments.seconds} s (least-most)")
    if shutil.which("go") is None:
        print("Go is not installed: grpcio.aio makes the load, whose own cost then hides much of the servers'")
    outcomes = []
    for workload in WORKLOADS:
        if arguments.only and workload.name not in arguments.only:
            continue
        if missing := workload.missing():
            print(f"\n**{workload.name}**: not measured: {missing}")
            continue
        outcome = compare(workload, arguments.rounds, arguments.seconds)
        outcomes.append(outcome)
        print(f"\n**{workload.name}**: VOID:\n" + "\n".join(outcome.problems) if outcome.problems else table(outcome))
        sys.stdout.flush()
    if arguments.json:
        save(arguments.json, outcomes, rounds=arguments.rounds, seconds=arguments.seconds)
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="The broker beside a grpcio.aio server.")
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--rounds", type=int, default=5, help="how often each side of a workload runs")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement")
    parser.add_argument("--only", action="append", choices=names, help="this workload; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")
    parser.add_argument("--fsyncs", action="store_true", help="only count fsyncs per publish on SQLite (needs strace)")
    return parser.parse_args()


def compare(workload: Workload, rounds: int, seconds: float) -> Outcome:
    """Measure both sides in turns: what the machine does meanwhile then happens to both."""
    measured: tuple[list[Measured], list[Measured]] = ([], [])
    with ExitStack() as stack:
        servers = [] if workload.restart else [stack.enter_context(started(side)) for side in workload.sides]
        for number in range(rounds):
            for place in (1, 0) if number % 2 else (0, 1):
                side = workload.sides[place]
                with started(side) if workload.restart else nullcontext(servers[place]) as server:
                    measured[place].append(measure(side, server, seconds))
    return Outcome(workload, measured)


@contextmanager
def started(side: Side) -> Iterator[Server]:
    """Run the server of a side, with a directory of its own for its files."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory, running(side.command(Path(directory))) as server:
        yield server


def measure(side: Side, server: Server, seconds: float) -> Measured:
    """Measure one side once; a load generator that fails makes the figure void, not the run."""
    try:
        return side.load.run(server, seconds)
    except (RuntimeError, grpc.RpcError, subprocess.TimeoutExpired) as error:
        return Measured(calls=1, seconds=1, problem=str(error))
    finally:
        server.settle()


if __name__ == "__main__":
    sys.exit(main())
