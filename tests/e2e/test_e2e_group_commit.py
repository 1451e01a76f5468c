"""Many publishes share one fsync, and a lone one waits for nobody.

fsyncs are counted as the commits in the write-ahead log: with journal_mode=WAL and synchronous=FULL each commit is one
fsync of the log (https://sqlite.org/pragma.html#pragma_synchronous); checkpoints add a few, one in 4,000 pages.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from e2e_broker import SAFETY_S, BrokerProcess, sqlite_url
from e2e_served import served
from e2e_stall import begin_commit, commits_stalled
from e2e_wire import Wire

from trio_broker.client import connect

CONNECTIONS = 4
PUBLISHERS = 25
"""On each connection."""
PUBLISHES = 20
"""By each publisher, one after the other."""
MESSAGES_PER_FSYNC = 20

_LOG_HEADER = struct.Struct(">IIIIIIII")
_FRAME_HEADER = struct.Struct(">IIII8x")


@pytest.fixture
def broker(sqlite_broker: Callable[..., BrokerProcess]) -> Iterator[BrokerProcess]:
    with sqlite_broker() as process:
        yield process
        process.stop()


@pytest.fixture
def wires(broker: BrokerProcess) -> Iterator[list[Wire]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Wire(broker.address)) for _ in range(CONNECTIONS)]


class Log:
    """The write-ahead log of a database, as its file format says: https://sqlite.org/fileformat2.html#walformat."""

    def __init__(self, database: Path) -> None:
        data = database.with_name(f"{database.name}-wal").read_bytes()
        _, _, page_bytes, self.generation, *salts, _, _ = _LOG_HEADER.unpack_from(data)
        self.commits = 0
        """Frames of this generation that end a transaction."""
        for position in range(_LOG_HEADER.size, len(data), _FRAME_HEADER.size + page_bytes):
            _, pages_after_commit, *frame_salts = _FRAME_HEADER.unpack_from(data, position)
            self.commits += frame_salts == salts and pages_after_commit > 0


def commits_between(before: Log, after: Log) -> int:
    assert before.generation == after.generation, "the log has begun anew: publish less"
    return after.commits - before.commits


def test_a_hundred_publishers_share_fsyncs(wires: list[Wire], database: Path) -> None:
    """Each publishes again when it has its id.

    The publishers of a connection do so together: a client written in Python could not keep a hundred busy one by one.
    """
    ids: list[int] = []
    before = Log(database)
    under_way = {wire: wire.publish_together("orders", PUBLISHERS, keep=True) for wire in wires}
    for turn in range(PUBLISHES):
        for wire in wires:
            ids += [wire.published(exchange) for exchange in under_way[wire]]
            if turn < PUBLISHES - 1:
                under_way[wire] = wire.publish_together("orders", PUBLISHERS, keep=True)
    assert sorted(ids) == list(range(1, CONNECTIONS * PUBLISHERS * PUBLISHES + 1))
    assert 0 < commits_between(before, Log(database)) <= len(ids) / MESSAGES_PER_FSYNC


def test_all_that_comes_while_a_commit_is_under_way_is_the_next_commit(wires: list[Wire], database: Path) -> None:
    first_wire = wires[0]
    before = Log(database)
    with commits_stalled(database):
        first = begin_commit(first_wire, "orders", b"alone")
        rest = [(wire, wire.publish("orders", b"together", keep=True)) for wire in wires for _ in range(PUBLISHERS)]
        for wire in wires:
            wire.round_trip()
    ids = [wire.published(exchange) for wire, exchange in [(first_wire, first), *rest]]
    assert sorted(ids) == list(range(1, CONNECTIONS * PUBLISHERS + 2))
    assert commits_between(before, Log(database)) == 2


def test_what_waits_for_the_store_is_bounded(sqlite_broker: Callable[..., BrokerProcess], database: Path) -> None:
    with sqlite_broker("--queue-messages", "20") as broker, Wire(broker.address) as wire:
        with commits_stalled(database):
            taken = [begin_commit(wire, "orders", b"in flight"), *wire.publish_together("orders", 10)]
            failure = wire.failed(wire.publish("orders", b"one too many", keep=True))
            assert failure.told == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            assert failure.retry_after_s is not None
        assert [wire.published(exchange) for exchange in taken] == list(range(1, 12))
        assert wire.published(wire.publish("orders", b"next")) == 12


async def test_a_lone_publisher_waits_for_no_timer(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    """The clock stands still: what waited for it would wait for ever."""
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:
        watchdog = threading.Timer(SAFETY_S, token.run_sync_soon, [scope.cancel])
        watchdog.start()
        try:
            async with served(sqlite_url(tmp_path)) as (_, address), connect(address) as client:
                ids = [await client.publish("orders", b"x", None) for _ in range(10)]
        finally:
            watchdog.cancel()
    assert not scope.cancelled_caught, "it waited for the clock"
    assert ids == list(range(1, 11))
    assert mock_clock.current_time() == 0.0
