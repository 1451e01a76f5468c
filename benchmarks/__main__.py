"""``python -m benchmarks``: run the workloads in turns, check every answer, print medians and ratios.

Owns:      the command line, rounds, the order within them.
Not here:  everything that is measured (workloads.py says where).
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import grpc
import psycopg

from benchmarks.accounting import measure_accounting
from benchmarks.expiry import watch_expiry
from benchmarks.fsyncs import count_fsyncs
from benchmarks.loads import Load, Measured
from benchmarks.report import Outcome, machine, save, table
from benchmarks.servers import SCRATCH, Place, Server, running
from benchmarks.workloads import WORKLOADS, Side, Workload
from persistence import StoreError
from persistence.cassandra.connection import ERRORS as CASSANDRA_ERRORS

FAILURES = (
    RuntimeError,
    StoreError,
    grpc.RpcError,
    psycopg.Error,
    subprocess.TimeoutExpired,
    *CASSANDRA_ERRORS,
)
"""What may become of one measurement."""


def main() -> int:
    """Return 0 when every figure is valid, 1 when one is void."""
    arguments = parse()
    SCRATCH.mkdir(exist_ok=True)
    logging.getLogger("persistence").setLevel(logging.ERROR)  # one replica is what is measured: no warning of it
    if arguments.fsyncs:
        print(count_fsyncs(arguments.seconds))
        return 0
    if arguments.metrics:
        accounted, affordable = measure_accounting()
        print(accounted)
        return 0 if affordable else 1
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if arguments.expiry:
        print(watch_expiry(arguments.expiry, arguments.json, arguments.graph))
        return 0
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
    parser.add_argument("--metrics", action="store_true", help="only measure what counting and timing a call costs")
    expiry = "only publish what lives 1-60 s, on PostgreSQL"
    parser.add_argument("--expiry", type=int, nargs="?", const=230, metavar="SECONDS", help=expiry)
    parser.add_argument("--graph", type=Path, metavar="FILE", help="with --expiry: draw it, as SVG")
    return parser.parse_args()


def compare(workload: Workload, rounds: int, seconds: float) -> Outcome:
    """Measure the sides in turns: what the machine does meanwhile then happens to all."""
    measured: tuple[list[Measured], ...] = tuple([] for _ in workload.sides)
    with ExitStack() as stack:
        servers = [] if workload.restart else [stack.enter_context(started(side)) for side in workload.sides]
        for number in range(-workload.rehearsals, rounds):
            for place, side in [*enumerate(workload.sides)][:: -1 if number % 2 else 1]:
                load = side.load.following(measured[0][-1]) if measured[0] else side.load
                with started(side) if workload.restart else nullcontext(servers[place]) as server:
                    measured[place].append(measure(load, server, seconds))
    measured = tuple(one[workload.rehearsals :] for one in measured)
    counted = {
        side.name: server.database.counted
        for side, server in zip(workload.sides, servers, strict=False)
        if server.database and server.database.counted
    }
    return Outcome(workload, measured, counted)


@contextmanager
def started(side: Side) -> Iterator[Server]:
    """Run the database of a side and its server, as far as it has them, with a directory of its own for its files."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=SCRATCH)))
        database = stack.enter_context(side.database.start(SCRATCH)) if side.database else None
        if side.command is None:
            assert database is not None, f"{side.name} has nothing to run"
            yield Server(database.url, database.pid, database)
        else:
            place = Place(directory, database.url if database else "")
            yield stack.enter_context(running(side.command(place), database))


def measure(load: Load, server: Server, seconds: float) -> Measured:
    """Measure once; a load generator that fails makes the figure void, not the run."""
    try:
        return load.run(server, seconds)
    except FAILURES as error:
        return Measured(calls=1, seconds=1, problem=str(error))
    finally:
        server.settle()


if __name__ == "__main__":
    sys.exit(main())
