"""Reading the log through each gRPC library and on each store: where a stream begins and ends, and resuming."""

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, sqlite_url
from e2e_failure import CallFailed
from e2e_peers import Peer, received

from trio_broker import After, At, AtEnd, Earliest, Gap, Last, Message, SlowPolicy, connect


def test_a_stream_begins_where_it_is_asked_to(broker: BrokerProcess, peer: Peer, subject: str) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client:
            published = [await client.publish(subject, b"%d" % n, keep=True) for n in range(10)]
            starts: list[tuple[dict[str, object], int]] = [
                ({"earliest": True}, 1),
                ({"after_id": 0}, 1),
                ({"after_id": 7}, 8),
                ({"last": 7}, 7),  # three of the last seven were not to be kept
                ({"at": published[0].published_at}, 1),
                ({}, 11),
            ]
            for number, (start, first_id) in enumerate(starts):
                async with client.subscribe(subject, **start) as stream:
                    live = 11 + number
                    assert (await client.publish(subject, b"live")).id == live
                    kept = range(first_id, 11)
                    got = [message.id for message in await received(stream, len(kept) + 1)]
                    assert got == [*kept, live]

    peer.run(scenario)


async def test_a_stream_ends_where_it_is_asked_to(broker: BrokerProcess, subject: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with connect(broker.address) as client:
            for number in range(5):
                await client.publish(subject, b"%d" % number, None)
            message = await client.fetch(subject, 3)
            for start, until, expected in (
                (Earliest(), AtEnd(), [1, 2, 3, 4, 5]),
                (Last(2), AtEnd(), [4, 5]),
                (After(1), 3, [2, 3]),
                (After(5), AtEnd(), []),
                (Earliest(), 0, []),
            ):
                async with client.subscribe(subject, start=start, until=until) as stream:
                    assert [message.id async for message in stream] == expected
            async with client.subscribe(subject, start=At(message.published_at), until=AtEnd()) as stream:
                assert [message.id async for message in stream][-3:] == [3, 4, 5]
            async with client.subscribe(subject, start=After(5), until=7) as stream:
                for _ in range(4):
                    await client.publish(subject, b"", None)
                assert [message.id async for message in stream] == [6, 7]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"after_id": 99}, "INVALID_ID"),
        ({"after_id": -1}, "INVALID_POSITION"),
        ({"last": -1}, "INVALID_POSITION"),
        ({"until_id": -5}, "INVALID_POSITION"),
        ({"slow": 9}, "INVALID_POSITION"),
    ],
)
def test_what_no_log_has_is_refused(
    broker: BrokerProcess, peer: Peer, subject: str, fields: dict[str, object], reason: str
) -> None:
    async def scenario(peer: Peer) -> None:
        async with peer.connect(broker.address) as client:
            with pytest.raises(CallFailed) as refused:
                async with client.subscribe(subject, **fields) as stream:
                    await stream.receive()
            assert refused.value.told == ("INVALID_ARGUMENT", reason if peer.sees_details else None)

    peer.run(scenario)


async def test_what_was_never_to_be_kept_is_told_to_who_asked(broker: BrokerProcess, subject: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with connect(broker.address) as client:
            for expiration in (None, 0, 0, None):
                await client.publish(subject, b"", expiration)
            async with client.subscribe(subject, start=Earliest(), until=AtEnd(), report_gaps=True) as stream:
                got = [item if isinstance(item, Gap) else item.id async for item in stream]
            assert got == [1, Gap(subject, 2, 3, "unavailable"), 4]
            async with client.subscribe(subject, start=Earliest(), until=AtEnd()) as silent:
                assert [message.id async for message in silent] == [1, 4]


async def test_a_subscriber_that_resumes_after_its_last_id_misses_nothing_and_gets_nothing_twice(
    broker: BrokerProcess, subject: str
) -> None:
    """It leaves, or its connection does, at any time; publishing goes on."""
    count, dice, got = 300, random.Random(1), list[int]()

    async def publish_all() -> None:
        async with connect(broker.address) as client:
            for number in range(count):
                await client.publish(subject, b"%d" % number, None)

    with trio.fail_after(SAFETY_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all)
            while len(got) < count:
                async with (
                    connect(broker.address) as client,
                    client.subscribe(subject, start=After(got[-1] if got else 0)) as stream,
                ):
                    for _ in range(min(dice.randrange(1, 30), count - len(got))):
                        got.append((await anext(stream)).id)
    assert got == list(range(1, count + 1))


async def test_a_subscriber_resumes_at_a_broker_that_was_killed_and_started_again(tmp_path: Path) -> None:
    url, got = sqlite_url(tmp_path), list[int]()
    with trio.fail_after(SAFETY_S):
        for _ in range(3):
            with BrokerProcess(url) as broker:
                async with connect(broker.address) as client:
                    async with client.subscribe("a", start=After(got[-1] if got else 0)) as stream:
                        for _ in range(50):
                            await client.publish("a", b"", None)
                        for _ in range(30):
                            got.append((await anext(stream)).id)
                    broker.kill()
        with BrokerProcess(url) as broker:
            async with (
                connect(broker.address) as client,
                client.subscribe("a", start=After(got[-1]), until=AtEnd()) as stream,
            ):
                got += [message.id async for message in stream]
            broker.stop()
    assert got == list(range(1, 151))


async def test_who_drops_the_oldest_gets_the_newest(broker: BrokerProcess, subject: str) -> None:
    """Nothing is read until more was published than the client's windows and its buffer hold."""
    body, count = bytes(60_000), 200
    with trio.fail_after(SAFETY_S):
        async with (
            connect(broker.address) as publisher,
            connect(broker.address) as client,
            client.subscribe(subject, slow=SlowPolicy.DROP_OLDEST, report_gaps=True) as stream,
        ):
            for _ in range(count):
                await publisher.publish(subject, body)
            next_id, gaps = 1, 0
            while next_id <= count:
                item: Message | Gap = await anext(stream)
                gaps += isinstance(item, Gap)
                assert (item.first_id if isinstance(item, Gap) else item.id) == next_id
                next_id = (item.last_id if isinstance(item, Gap) else item.id) + 1
            assert gaps


def test_the_command_line_reads_the_log(tmp_path: Path) -> None:
    def sub(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "trio_broker", "sub", "a", "--server", broker.address, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY_S, env=clean_environment())
        return done.returncode, done.stdout, done.stderr

    async def fill() -> None:
        async with connect(broker.address) as client:
            for body, expiration in ((b"one", None), (b"two", 0), (b"three", None), (b"four", None)):
                await client.publish("a", body, expiration)

    with BrokerProcess(sqlite_url(tmp_path)) as broker:
        trio.run(fill)
        missing = "subscribed to a\nid 2 is missing: unavailable\n"
        assert sub("--all", "--exit-at-end") == (0, "one\nthree\nfour\n", missing)
        assert sub("--from", "3", "--exit-at-end")[:2] == (0, "three\nfour\n")
        assert sub("--last", "1", "--exit-at-end")[:2] == (0, "four\n")
        assert sub("--since", "1h", "--exit-at-end")[:2] == (0, "one\nthree\nfour\n")
        assert sub("--all", "--count", "2") == (0, "one\nthree\n", missing)
        assert sub("--all", "--count", "1") == (0, "one\n", "subscribed to a\n")
        assert sub("--exit-at-end")[:2] == (0, "")
        code, _, said = sub("--all", "--last", "1")
        assert (code, "give one of" in said) == (2, True)
        code, _, said = sub("--from", "99")
        assert (code, "never assigned" in said) == (3, True)
        broker.stop()


async def test_a_time_to_come_means_from_now_on(broker: BrokerProcess, subject: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with connect(broker.address) as client:
            await client.publish(subject, b"", None)
            async with client.subscribe(subject, start=At(datetime.now(UTC) + timedelta(hours=1))) as stream:
                await client.publish(subject, b"", None)
                assert (await anext(stream)).id == 2
