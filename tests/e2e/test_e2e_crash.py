"""kill -9 under load, again and again on one store: what was acknowledged is there, and no id is given twice."""

import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess
from e2e_journal import CUT_OFF, Journal, check_recovered, check_whole, publish_until_failed
from e2e_peers import PEERS

ROUNDS = 10
ACKNOWLEDGED_MIN = 1_000
ACKNOWLEDGED_MAX = 1_300
"""The broker is killed when a random number of publishes between these two were acknowledged."""

AIO = PEERS["grpcio.aio"]


def kill_again_and_again(start: Callable[[], BrokerProcess], rounds: int) -> None:
    journal = Journal()
    dice = random.Random(9)
    for _ in range(rounds):
        with start() as broker:
            AIO.run(check_recovered, broker.address, journal)
            moment = dice.randint(ACKNOWLEDGED_MIN, ACKNOWLEDGED_MAX)
            kill = partial(os.kill, broker.pid, signal.SIGKILL)
            AIO.run(publish_until_failed, [broker.address], journal, moment, kill, CUT_OFF)
            assert broker.wait() == -signal.SIGKILL
    with start() as broker:
        AIO.run(check_recovered, broker.address, journal)
        AIO.run(check_whole, broker.address, journal)
        broker.stop()


def test_ten_times_kill_9_under_load_lose_nothing_that_was_acknowledged(
    sqlite_broker: Callable[..., BrokerProcess], database: Path
) -> None:
    kill_again_and_again(sqlite_broker, ROUNDS)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("server", ["postgres_url", "cassandra_url"])
def test_five_times_kill_9_on_a_server_lose_nothing_that_was_acknowledged(
    server: str, request: pytest.FixtureRequest
) -> None:
    kill_again_and_again(partial(BrokerProcess, request.getfixturevalue(server)), 5)
