"""A process that opens a store and does as it is told: one JSON command a line in, one JSON answer a line out."""

import json
import sys

import trio

from persistence import Appended, Conflict, NewMessage, Store, open_store


def say(*answer: object) -> None:
    print(json.dumps(answer), flush=True)


async def append(store: Store, subject: str, batches: int, size: int) -> None:
    """Append batches and print what was acknowledged, batch by batch."""
    for _ in range(batches):
        outcomes = await store.append([NewMessage(subject, b"from a peer", None)] * size)
        say(*outcomes)


async def append_keyed(store: Store, subject: str, keys: int) -> None:
    """Append messages, each with a key that other peers use as well; print what became of each, and its id."""
    for n in range(keys):
        (outcome,) = await store.append([NewMessage(subject, b"from a peer", None, idempotency_key=f"key {n}")])
        say(type(outcome).__name__, outcome[0])


async def append_expected(store: Store, subject: str, times: int) -> None:
    """Append one after the last that is known, until so many were appended; print their ids."""
    appended: list[int] = []
    last_id = 0
    while len(appended) < times:
        (outcome,) = await store.append([NewMessage(subject, b"from a peer", None, expected_last_id=last_id)])
        assert isinstance(outcome, Appended | Conflict)
        last_id = outcome[0]
        if isinstance(outcome, Appended):
            appended.append(last_id)
    say(*appended)


async def count(store: Store, name: str, times: int) -> None:
    """Add one to a register, ``times`` times, by compare and set; print the versions it got."""
    versions: list[int] = []
    while len(versions) < times:
        register = await store.load(name)
        value, version = (int(register.value), register.version) if register else (0, 0)
        new_version = await store.compare_and_set(name, b"%d" % (value + 1), version=version)
        if new_version is not None:
            versions.append(new_version)
    say(*versions)


COMMANDS = {"append": append, "append keyed": append_keyed, "append expected": append_expected, "count": count}


async def main(url: str) -> None:
    say("imported")
    assert json.loads(sys.stdin.readline()) == ["open"]
    async with open_store(url) as store:
        say("open")
        while True:
            command, *arguments = json.loads(await trio.to_thread.run_sync(sys.stdin.readline))
            if command == "close":
                return
            await COMMANDS[command](store, *arguments)


trio.run(main, sys.argv[1])
