"""A broker whose Cassandra is killed, or stands still, or is not there yet: nothing false is said, nothing hangs."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count

import pytest
from cassandra_keyspaces import Keyspaces, keyspace_of
from cassandra_server import CassandraServer
from cassandra_sstables import columns_on_disk, compact_soon, was_compacted
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_database import GRACE_S, fail_again_and_again, hold_nobody_up, stop_in_time
from e2e_journal import NOTHING_APPENDED, UNKNOWN, Journal, check_whole, publish_through, publish_until_failed
from e2e_peers import PEERS
from e2e_served import served
from e2e_wire import Wire

from persistence.cassandra import buckets
from persistence.cassandra.connection import CONNECT_TIMEOUT_S
from trio_broker.client import connect
from trio_broker.errors import ExpiredId, InvalidId

ROUNDS = 3
WRITERS = 6
AIO = PEERS["grpcio.aio"]

_numbers = count(1)


@pytest.fixture
def url(own_cassandra: CassandraServer) -> str:
    """A keyspace of the test's own on a server of its own."""
    return own_cassandra.url(f"e2e_{next(_numbers)}")


def kill_and_start(server: CassandraServer) -> None:
    server.kill9()
    server.start()


def stand_still_for_a_moment(server: CassandraServer) -> None:
    """For longer than a broker with a commit timeout of 2 s waits for an answer, but not until it gives up."""
    with server.frozen():
        time.sleep(0.8)


def test_kill_9_of_the_node_is_waited_for_and_loses_nothing_that_was_acknowledged(
    own_cassandra: CassandraServer, url: str
) -> None:
    fail_again_and_again(url, partial(kill_and_start, own_cassandra), ROUNDS)


def test_kill_9_of_the_node_for_longer_than_is_waited_loses_nothing_that_was_acknowledged(
    own_cassandra: CassandraServer, url: str
) -> None:
    journal = Journal()
    with BrokerProcess(url, "--store-grace", "0s", "--commit-timeout", "2s") as broker:
        for _ in range(ROUNDS):
            AIO.run(
                publish_until_failed,
                *([broker.address], journal, 500, own_cassandra.kill9, NOTHING_APPENDED | UNKNOWN),
            )
            own_cassandra.start()
            eventually(lambda: broker.get("/readyz")[0], 200)
        assert journal.refused
        AIO.run(check_whole, broker.address, journal)
        broker.stop()


def write_from_six_brokers(url: str, commit_timeout: str, write: Callable[[list[str], Journal], None]) -> None:
    """Write to one subject; then hold what is stored against what the clients were told."""
    journal = Journal(["orders"])
    with ExitStack() as stack:
        brokers = [stack.enter_context(BrokerProcess(url, "--commit-timeout", commit_timeout)) for _ in range(WRITERS)]
        for _ in range(ROUNDS):
            write([broker.address for broker in brokers], journal)
        for broker in brokers:
            broker.stop()
    with BrokerProcess(url) as broker:
        AIO.run(check_whole, broker.address, journal)
        broker.stop()


def test_six_brokers_write_to_one_subject_while_the_node_stops_and_goes_on(
    own_cassandra: CassandraServer, url: str
) -> None:
    def write(addresses: list[str], journal: Journal) -> None:
        AIO.run(publish_through, addresses, journal, 1_000, partial(stand_still_for_a_moment, own_cassandra))

    write_from_six_brokers(url, "2s", write)


def test_six_brokers_that_give_up_after_400_ms_write_to_one_subject_while_the_node_stops_and_goes_on(
    own_cassandra: CassandraServer, url: str
) -> None:
    def write(addresses: list[str], journal: Journal) -> None:
        AIO.run(publish_until_failed, *(addresses, journal, 500, own_cassandra.freeze, NOTHING_APPENDED | UNKNOWN))
        own_cassandra.thaw()

    write_from_six_brokers(url, "400ms", write)


def test_a_node_that_stands_still_holds_up_no_call_beyond_its_deadline_and_no_stop(
    own_cassandra: CassandraServer, url: str
) -> None:
    hold_nobody_up(url, own_cassandra.freeze)


def test_an_idle_broker_stops_within_the_grace_period_although_the_node_stands_still(
    own_cassandra: CassandraServer, url: str
) -> None:
    with BrokerProcess(url, "--grace", f"{GRACE_S}s", "--store-grace", "0s") as broker:
        own_cassandra.freeze()
        eventually(lambda: broker.get("/readyz")[0], 503)
        stop_in_time(broker)


def test_a_broker_that_waits_for_a_node_that_stands_still_at_its_start_stops_at_once(
    own_cassandra: CassandraServer, url: str
) -> None:
    with own_cassandra.frozen(), BrokerProcess(url, "--grace", f"{GRACE_S}s", waits="store_away") as broker:
        began = time.monotonic()
        broker.terminate()
        assert broker.wait() == 0
        # connecting itself is bounded, and is not interrupted
        assert time.monotonic() - began < 2 * CONNECT_TIMEOUT_S + 1


def test_a_broker_that_is_started_while_the_node_is_away_says_so_and_is_ready_when_it_is_back(
    own_cassandra: CassandraServer, url: str
) -> None:
    own_cassandra.kill9()
    with BrokerProcess(url, waits="store_away") as broker:
        assert broker.get("/healthz")[0] == 200
        status, body = broker.get("/readyz")
        assert status == 503
        assert body.startswith("starting: Cassandra at 127.0.0.1:")
        assert "Connection refused" in body
        own_cassandra.start()
        broker.wait_ready()
        assert broker.get("/readyz")[0] == 200
        with Wire(broker.address) as wire:
            assert wire.published(wire.publish("orders", b"first", keep=True)) == 1
        broker.stop()


def test_clients_are_told_what_may_be_tried_again_and_what_is_in_doubt(
    own_cassandra: CassandraServer, url: str
) -> None:
    with (
        BrokerProcess(url, "--store-grace", "0s", "--commit-timeout", "2s") as broker,
        Wire(broker.address) as wire,
    ):
        live = wire.subscribe("orders")
        wire.stand(live)
        assert wire.published(wire.publish("orders", b"first", keep=True)) == 1

        own_cassandra.kill9()
        eventually(lambda: broker.get("/readyz")[0], 503)
        assert "the store has been away" in broker.get("/readyz")[1]
        assert broker.get("/healthz")[0] == 200
        check_unavailable(wire)
        own_cassandra.start()
        eventually(lambda: broker.get("/readyz")[0], 200)
        assert wire.published(wire.publish("orders", b"second", keep=True)) == 2

        with own_cassandra.frozen():
            failure = wire.failed(wire.publish("orders", b"in doubt", keep=True))
            assert failure.told == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
            eventually(lambda: broker.get("/readyz")[0], 503)
        eventually(lambda: broker.get("/readyz")[0], 200)
        last_id = wire.published(wire.publish("orders", b"last", keep=True))
        assert last_id in (3, 4)
        wire.read_until(lambda: bool(live.received()) and live.received()[-1].id == last_id)  # still subscribed
        broker.stop()


def check_unavailable(wire: Wire) -> None:
    """Every call fails, and may safely be tried again."""
    for exchange in (wire.publish("orders", b"refused", keep=True), wire.fetch("orders", 1), wire.subscribe("orders")):
        failure = wire.failed(exchange)
        assert failure.told == ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
        assert failure.retry_after_s is not None


async def test_expired_and_never_existing_ids_are_told_apart_when_nothing_is_left_of_any_message(
    own_cassandra: CassandraServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_SLACK_S", 0)  # or rows would stay for a minute longer
    log = f"{keyspace_of(url)}.log"
    with Keyspaces(url) as keyspaces:
        async with served(url) as (_, address), connect(address) as client:
            for _ in range(5):
                last_id = await client.publish("orders", b"for a second", 1)
            compact_soon(keyspaces, log)
            with pytest.raises(ExpiredId):
                while True:
                    await client.fetch("orders", last_id)
            while not was_compacted(keyspaces, log):
                last_id = await client.publish("orders", b"not kept", 0)  # there have to be files to compact
    give_up = time.monotonic() + SAFETY_S
    while columns_on_disk(own_cassandra, log) != {"attempt"}:  # in rows; the head of the log is none
        assert time.monotonic() < give_up, "messages that have expired are not compacted away"
    async with served(url) as (_, address), connect(address) as client:
        for id_ in range(1, last_id + 1):
            with pytest.raises(ExpiredId):
                await client.fetch("orders", id_)
        with pytest.raises(InvalidId):
            await client.fetch("orders", last_id + 1)
        assert await client.publish("orders", b"next", None) == last_id + 1
