"""A million real events, replayed while publishing goes on: ``python -m benchmarks.replays EVENTS``.

Owns:      the trial: what is published and read, what is checked, and the table that is printed.
Not here:  the comparison of replays with the plain driver (workloads.py, row ``replay``).

EVENTS is a file of lines with tabs, packed by gzip. They are published to one subject, and once more to one for each
origin (the second column). The broker has a core of its own, and readers are in processes of their own, which give way
to all others, as if they were on another machine; each reader checks that it gets every id of a subject once, in order,
with the body that was published.
Meanwhile somebody publishes to the same subject at a fixed rate and measures how long that takes.
"""

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from zlib import crc32

import trio

from benchmarks import graphs
from benchmarks.servers import SCRATCH, Place, Server, broker, running
from trio_broker import Draft, Message, connect
from trio_broker.start import After

SUBJECT = "flights"
CHUNK = 1000
RATE = 200
"""Publishes a second beside the readers."""
QUIET_S = 10
"""How long they are measured without any."""
READING_PROCESSES = 10
TAIL = 200
"""So many of those published meanwhile a reader waits for, to have joined the live stream."""
LOOK_S = 0.2


def events(path: Path) -> list[tuple[str, bytes]]:
    """Return the origin and the line of each event."""
    with gzip.open(path, "rb") as lines:
        return [(line.split(b"\t")[1].decode(), line.rstrip(b"\n")) for line in lines]


async def publish_all(address: str, drafts: Sequence[Draft]) -> float:
    """Publish by a stream; return how many a second."""
    began = time.monotonic()
    async with connect(address) as client, client.publish_stream() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(drafts), CHUNK):
                await stream.send(drafts[start : start + CHUNK])
            await stream.finish()

        nursery.start_soon(send)
        published = 0
        async for result in stream:
            if isinstance(result, Exception):
                raise result
            published += 1
    assert published == len(drafts)
    return published / (time.monotonic() - began)


async def read_all(address: str, subject: str, until_id: int, crc: int, checked: int) -> None:
    """Read a subject up to an id; the first ``checked`` messages have bodies with this checksum together."""
    last_id = found = 0
    async with connect(address) as client, client.subscribe(subject, start=After(0), until=until_id) as messages:
        while some := await messages.receive_some():
            for message in some:
                assert isinstance(message, Message)
                assert message.id == last_id + 1, (subject, last_id, message.id)
                last_id = message.id
                if last_id <= checked:
                    found = crc32(message.body, found)
    assert (last_id, found) == (until_id, crc), (subject, last_id, until_id)


async def read_together(address: str, subject: str, readers: int, until_id: int, crc: int, checked: int) -> None:
    """Read it several times at once, over a connection each."""
    async with trio.open_nursery() as nursery:
        for _ in range(readers):
            nursery.start_soon(read_all, address, subject, until_id, crc, checked)


async def publish_at_rate(address: str, seconds: float, stop: threading.Event) -> list[float]:
    """Publish at a fixed rate until it is enough; return how long each took, from when it was due."""
    took: list[float] = []

    async def one(due: float) -> None:
        await client.publish(SUBJECT, b"published beside the readers", None)
        took.append(trio.current_time() - due)

    async with connect(address) as client, trio.open_nursery() as nursery:
        began = trio.current_time()
        for n in range(sys.maxsize):
            due = began + n / RATE
            if stop.is_set() or due - began > seconds:
                break
            await trio.sleep_until(due)
            nursery.start_soon(one, due)
    return took


def p99_ms(took: Sequence[float]) -> float:
    """Return the 0.99 quantile."""
    return 1000 * sorted(took)[math.ceil(0.99 * len(took)) - 1]


@contextmanager
def watching(pid: int) -> Iterator[list[tuple[float, float]]]:
    """Look at the memory of a process for the length of the block; fills (seconds, MiB)."""
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def look() -> None:
        began = time.monotonic()
        while not over.wait(LOOK_S):
            status = Path(f"/proc/{pid}/status").read_text()
            rss_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
            seen.append((time.monotonic() - began, rss_kib / 1024))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def replay(address: str, pid: int, readers: int, messages: int, crc: int, last_id: int) -> dict[str, object]:
    """Let readers read the one subject while somebody publishes to it; return the row of the table."""
    quiet = trio.run(publish_at_rate, address, QUIET_S, threading.Event())
    last_id += len(quiet)
    until_id = messages if messages < last_id else last_id + TAIL
    stop = threading.Event()
    meanwhile: list[float] = []
    publisher = threading.Thread(target=lambda: meanwhile.extend(trio.run(publish_at_rate, address, math.inf, stop)))
    with watching(pid) as memory:
        publisher.start()
        began = time.monotonic()
        count = min(readers, READING_PROCESSES)
        arguments = [address, SUBJECT, *map(str, (readers // count, until_id, crc, messages))]
        command = ["chrt", "-i", "0", sys.executable, "-m", "benchmarks.replays", "--read", *arguments]
        processes = [subprocess.Popen(command) for _ in range(count)]
        codes = [process.wait() for process in processes]
        seconds = time.monotonic() - began
        stop.set()
        publisher.join()
    assert codes == [0] * count, codes
    mib = [each for _, each in memory]
    return {
        "readers": readers,
        "messages": until_id,
        "seconds": round(seconds, 1),
        "messages/s": round(readers * until_id / seconds),
        "rss first MiB": round(mib[0]),
        "rss most MiB": round(max(mib)),
        "p99 before ms": round(p99_ms(quiet), 2),
        "p99 meanwhile ms": round(p99_ms(meanwhile), 2),
        "published": len(quiet) + len(meanwhile),
        "memory": [(round(at, 1), round(each, 1)) for at, each in memory],
    }


def drawn(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return the resident memory of the broker over time as SVG, one curve for each number of readers."""
    lines = [graphs.Line(name, points) for name, points in curves.items()]
    return graphs.draw([graphs.Graph("resident memory of the broker, MiB", lines)])


@contextmanager
def on_its_own_core(command: Sequence[str]) -> Iterator[Server]:
    """Run a server on one core, and all else that this process does on the others, if there are any."""
    cores = os.sched_getaffinity(0)
    own = {max(cores)}
    os.sched_setaffinity(0, own)
    with running(command) as server:
        os.sched_setaffinity(0, cores - own or cores)
        yield server


def trial(store: str, path: Path, graph: Path | None) -> None:
    """Run it all on one store; draw the memory of the broker into ``graph``."""
    curves = {}
    found = events(path)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
        command = broker(store)(Place(Path(directory)))
        with on_its_own_core(command) as server:
            rate = trio.run(publish_all, server.address, [Draft(SUBJECT, line, None) for _, line in found])
            print(f"published {len(found)} to one subject: {rate:,.0f} a second", flush=True)
            by_origin = [Draft(f"{SUBJECT}.{origin}", line, None) for origin, line in found]
            rate = trio.run(publish_all, server.address, by_origin)
            counts = Counter(origin for origin, _ in found)
            print(f"published them to {len(counts)} subjects: {rate:,.0f} a second", flush=True)
            crcs = dict.fromkeys(counts, 0)
            whole = 0
            for number, (origin, line) in enumerate(found, 1):
                crcs[origin] = crc32(line, crcs[origin])
                if number <= 100_000:
                    part = whole = crc32(line, whole)
                else:
                    whole = crc32(line, whole)
            began = time.monotonic()
            for origin, count in counts.items():
                trio.run(read_all, server.address, f"{SUBJECT}.{origin}", count, crcs[origin], count)
            print(
                f"read those, one after the other: {len(found) / (time.monotonic() - began):,.0f} a second", flush=True
            )
            last_id = len(found)
            for readers, messages, crc in ((1, len(found), whole), (10, len(found), whole), (100, 100_000, part)):
                row = replay(server.address, server.pid, readers, messages, crc, last_id)
                last_id += int(str(row.pop("published")))
                memory = cast("list[tuple[float, float]]", row.pop("memory"))
                print(json.dumps(row), flush=True)
                curves["1 reader" if readers == 1 else f"{readers} readers"] = memory
    if graph is not None:
        graph.write_text(drawn(curves))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="?", type=Path)
    parser.add_argument("--store", default="sqlite:///{directory}/broker.db")
    parser.add_argument("--graph", type=Path, help="where to draw the broker's memory, as SVG")
    parser.add_argument("--read", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        address, subject, *numbers = options.read
        trio.run(read_together, address, subject, *map(int, numbers))
    else:
        trial(options.store, options.events, options.graph)


if __name__ == "__main__":
    main()
