"""Real events through a real broker: published, heard live, fetched, and still there after kill -9.

    make demo

20,000 flights go through ``trio-broker pub`` into a ``trio-broker serve`` on a SQLite file, subject
``flights.<origin>``; a ``trio-broker sub`` of its own listens to each of the three busiest origins. In the middle of
a second pass the broker is killed; started again, it has to have every event that was acknowledged. Exit code 1: a
check failed.
"""

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from trio_broker.client import Client, connect
from trio_broker.errors import BrokerError

EVENTS = Path(__file__).parent / "data" / "flights-20k.jsonl.gz"
COMMAND = str(Path(sys.executable).with_name("trio-broker"))
LISTENERS = 3
SAMPLE = 200
FETCHES_AT_ONCE = 200
PATIENCE_S = 120


class CheckFailed(Exception):
    """The broker did not do what it promises."""


def check(promise: str, kept: object) -> None:
    if not kept:
        raise CheckFailed(promise)


def say(topic: str, text: str) -> None:
    print(f"{topic:<9} {text}", flush=True)


@dataclass(frozen=True)
class Event:
    subject: str
    body: bytes


def read_events(count: int) -> list[Event]:
    with gzip.open(EVENTS) as lines:
        bodies = [line.rstrip(b"\n") for line in islice(lines, count)]
    return [Event(f"flights.{json.loads(body)['origin']}", body) for body in bodies]


class Journal:
    """What the publishers were told: which event has which id."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, int], bytes] = {}
        self.last_ids: Counter[str] = Counter()

    def acknowledge(self, event: Event, id_: int) -> None:
        check(f"ids of {event.subject} increase, and none is given twice", id_ > self.last_ids[event.subject])
        self.events[event.subject, id_] = event.body
        self.last_ids[event.subject] = id_


# -- the command, as processes ----------------------------------------------------------------------------------


async def lines_of(stream: trio.abc.ReceiveStream | None) -> AsyncGenerator[bytes]:
    """Yield the whole lines of a process's output, without their ends."""
    assert stream is not None
    rest = b""
    async for received in stream:
        *lines, rest = (rest + bytes(received)).split(b"\n")
        for line in lines:
            yield line


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[trio.Process]:
    """Run ``trio-broker`` with pipes for the length of the block; leaving the block ends it."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(trio.run_process, [COMMAND, *arguments], check=False, **pipes))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_broker(directory: str) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Start a broker; the block begins when it is ready, and gets its address and a way to kill it."""
    store = f"sqlite:///{Path(directory) / 'broker.db'}"
    listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    async with (
        command("serve", "--store", store, *listen, "--log-format", "json") as process,
        aclosing(lines_of(process.stderr)) as log,
        trio.open_nursery() as nursery,
    ):
        async for line in log:
            event = json.loads(line)
            if event["event"] == "ready":
                break
        else:
            raise CheckFailed("a broker starts")
        nursery.start_soon(read_away, log)
        yield event["grpc"], partial(os.kill, process.pid, signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def read_away(lines: AsyncIterator[bytes]) -> None:
    async for _ in lines:
        pass


async def publish(
    address: str, events: Sequence[Event], journal: Journal, half_way: Callable[[], None] | None = None
) -> str:
    """Publish by ``trio-broker pub``; note each id as it comes. Return what the command says of its end.

    ``half_way`` is called when half of the events are acknowledged; it finds the command with events still to publish.
    """
    held_back = trio.Event()
    async with command("pub", "--json", "--keep", "--server", address) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, process, events, held_back)
            acknowledged = 0
            async for line in lines_of(process.stdout):
                journal.acknowledge(events[acknowledged], int(line))
                acknowledged += 1
                if acknowledged * 2 >= len(events) and not held_back.is_set():
                    if half_way is not None:
                        half_way()
                    held_back.set()
            nursery.cancel_scope.cancel()
        return b" ".join([line async for line in lines_of(process.stderr)]).decode()


async def feed(process: trio.Process, events: Sequence[Event], held_back: trio.Event) -> None:
    """Write events as the lines that ``pub --json`` reads; the last quarter when ``held_back`` is set."""
    assert process.stdin is not None
    lines = [json.dumps({"subject": event.subject, "body": event.body.decode()}).encode() for event in events]
    most = len(lines) - len(lines) // 4
    try:
        async with process.stdin:
            await process.stdin.send_all(b"".join(line + b"\n" for line in lines[:most]))
            await held_back.wait()
            await process.stdin.send_all(b"".join(line + b"\n" for line in lines[most:]))
    except trio.BrokenResourceError:
        pass  # it has ended, and says why


async def listen(
    address: str, subject: str, count: int, heard: dict[str, list[bytes]], task_status: trio.TaskStatus[None]
) -> None:
    """Listen by ``trio-broker sub`` until so many events came. Started when the subscription stands."""
    async with command("sub", subject, "--json", "--count", str(count), "--server", address) as process:
        async with aclosing(lines_of(process.stderr)) as told:
            check(f"{subject} can be subscribed to", await anext(told, b"") == f"subscribed to {subject}".encode())
        task_status.started()
        heard[subject] = [line async for line in lines_of(process.stdout)]


# -- the checks ---------------------------------------------------------------------------------------------------


def check_heard(journal: Journal, subject: str, events: Sequence[Event], lines: Sequence[bytes]) -> None:
    """The listener has to have got every event of its subject, in order, under the id that the publisher was told."""
    messages = [json.loads(line) for line in lines]
    bodies = [message["body"].encode() for message in messages]
    check(f"{subject} is heard whole, in order", bodies == [event.body for event in events if event.subject == subject])
    for message, body in zip(messages, bodies, strict=True):
        check(f"{subject} is heard under the ids published", journal.events.get((subject, message["id"])) == body)


async def check_fetched(address: str, journal: Journal, keys: Sequence[tuple[str, int]]) -> None:
    """Each of these has to be there, as it was published."""
    unread = iter(keys)

    async def fetch(client: Client) -> None:
        for subject, id_ in unread:
            try:
                message = await client.fetch(subject, id_)
            except BrokerError as error:
                raise CheckFailed(f"what was acknowledged is there: {error}") from error
            check(f"{subject} {id_} is as it was published", message.body == journal.events[subject, id_])

    async with connect(address) as client, trio.open_nursery() as nursery:
        for _ in range(FETCHES_AT_ONCE):
            nursery.start_soon(fetch, client)


async def first_pass(address: str, events: Sequence[Event], journal: Journal) -> None:
    """Publish everything to live listeners, and fetch some of it."""
    busiest = Counter(event.subject for event in events).most_common(LISTENERS)
    heard: dict[str, list[bytes]] = {}
    async with trio.open_nursery() as nursery:
        for subject, count in busiest:
            await nursery.start(listen, address, subject, count, heard)
        began = time.perf_counter()
        complaint = await publish(address, events, journal)
        check(f"every event is published: {complaint}", len(journal.events) == len(events))
        seconds = time.perf_counter() - began
    say("published", f"{len(events):,} events in {seconds:.1f} s, each acknowledged when it was durable")
    for subject, count in busiest:
        check_heard(journal, subject, events, heard[subject])
        say("heard", f"{subject}: all {count:,} events, in order, by a process of its own")
    sample = random.Random(2001).sample(sorted(journal.events), min(SAMPLE, len(events)))
    await check_fetched(address, journal, sample)
    say("fetched", f"a sample of {len(sample)}: all as they were published")


async def second_pass(address: str, events: Sequence[Event], journal: Journal, kill: Callable[[], None]) -> None:
    """Publish everything again, and kill the broker when half of it is acknowledged."""
    before = len(journal.events)
    complaint = await publish(address, events, journal, half_way=kill)
    acknowledged = len(journal.events) - before
    check("the broker is killed before it has all", acknowledged < len(events))
    say("killed", f"with -9 in a second pass, when {acknowledged:,} of its events were acknowledged")
    say("", f"pub said: {complaint}")


async def check_recovered(address: str, events: Sequence[Event], journal: Journal) -> None:
    """All that was ever acknowledged has to be there, and the ids have to go on."""
    await check_fetched(address, journal, list(journal.events))
    say(
        "recovered", f"all {len(journal.events):,} acknowledged events are fetched as they were published: none is lost"
    )
    subject = Counter(event.subject for event in events).most_common(1)[0][0]
    before = journal.last_ids[subject]
    await publish(address, [Event(subject, b"the first after the crash")], journal)
    check("ids go on", journal.last_ids[subject] > before)
    say(
        "ids",
        f"go on: the last of {subject} before the crash was {before:,}, the next is {journal.last_ids[subject]:,}",
    )


async def demonstrate(count: int) -> None:
    events = read_events(count)
    journal = Journal()
    subjects = len({event.subject for event in events})
    say("events", f"{len(events):,} US flights of 2001 on {subjects} subjects, flights.<origin>")
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(PATIENCE_S):
        async with running_broker(directory) as (address, kill):
            await first_pass(address, events, journal)
            await second_pass(address, events, journal, kill)
        async with running_broker(directory) as (address, _):
            await check_recovered(address, events, journal)


def first_of(error: BaseException) -> BaseException:
    """Find what went wrong first within the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Real events through a real broker, killed half-way.")
    parser.add_argument("--events", type=int, default=20_000, help="how many (default: all 20,000)")
    count = parser.parse_args(arguments).events
    began = time.perf_counter()
    failed = False
    try:
        trio.run(demonstrate, count)
    except* (CheckFailed, trio.TooSlowError) as failures:
        failed = True
        say("FAILED", f"it does not hold that {first_of(failures)}")
    else:
        say("passed", f"in {time.perf_counter() - began:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
