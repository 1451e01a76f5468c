"""F2, F4, F5, F14: a database that dies, says nothing, is slow, or is out of one broker's reach."""

import time
from collections.abc import Callable

import pytest
import trio
from blackhole import Blackhole
from e2e_broker import BrokerProcess
from e2e_wire import Exchange, Wire
from google.protobuf.message import Message
from postgres_server import PostgresServer

from trio_broker._proto import broker_pb2 as pb

from .cluster import cluster
from .oracle import Oracle, rounds

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
ROUND = 100
"""Publishes acknowledged before each fault, where possible during it, and after it."""
NOTICED_SOON = ("--store-grace", "500ms")
"""So that a broker is not ready soon after its database is away."""
DEADLINE_S = 1
GRACE_S = 2
SLACK_S = 1

CALLS: dict[str, Message] = {
    "Broker/Publish": pb.PublishRequest(subject="orders", keep=True),
    "Broker/PublishBatch": pb.PublishBatchRequest(messages=[pb.PublishRequest(subject="orders", keep=True)]),
    "Broker/PublishStream": pb.PublishStreamRequest(messages=[pb.PublishRequest(subject="orders", keep=True)]),
    "Broker/Fetch": pb.FetchRequest(subject="orders", id=1),
    "Broker/FetchRange": pb.FetchRangeRequest(subject="orders"),
    "Broker/Subscribe": pb.SubscribeRequest(subject="unheard-of"),
    "Broker/SubscribeBatch": pb.SubscribeRequest(subject="orders", earliest=True, at_end=True),
    "Admin/ListSubjects": pb.ListSubjectsRequest(),
    "Admin/GetSubject": pb.GetSubjectRequest(subject="orders"),
    "Admin/PurgeSubject": pb.PurgeSubjectRequest(subject="orders"),
    "Admin/DeleteSubject": pb.DeleteSubjectRequest(subject="orders"),
}
"""Every call that there is, as one that needs the store."""


async def test_kill_9_of_the_database_loses_nothing_and_brokers_recover_by_themselves(
    own_postgres: PostgresServer, own_url: str
) -> None:
    with trio.fail_after(SAFETY_S):
        async with cluster(own_url, *NOTICED_SOON) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                for _ in rounds(least=1):
                    await oracle.more(ROUND)
                    await trio.to_thread.run_sync(own_postgres.kill9)
                    for broker in brokers.running():
                        await brokers.readiness(broker, 503)
                    await trio.to_thread.run_sync(own_postgres.start)
                    await brokers.all_ready(time.monotonic())
                await oracle.more(ROUND)
            assert set(oracle.errors()) <= {"STORAGE_UNAVAILABLE", "OUTCOME_UNKNOWN"}
            assert {reason for each in oracle.subscribers for reason in each.ends} <= {"STORAGE_UNAVAILABLE"}


def start_all(wire: Wire, timeout: str | None) -> dict[str, Exchange]:
    return {name: wire.start(f"/broker.{name}", request, timeout=timeout) for name, request in CALLS.items()}


def check_none_waits_longer(address: str) -> None:
    with Wire(address) as wire:
        began = time.monotonic()
        calls = start_all(wire, f"{DEADLINE_S}S")
        wire.finish(*calls.values())
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        codes = {name: failure and failure.code for name, failure in ((n, c.failure()) for n, c in calls.items())}
        assert set(codes.values()) <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}, codes


def check_all_answer(address: str) -> None:
    with Wire(address) as wire:
        calls = start_all(wire, None)
        wire.stand(*calls.values())  # a subscription goes on
        del calls["Broker/Subscribe"]
        wire.finish(*calls.values())
        reasons = {failure.reason for call in calls.values() if (failure := call.failure())}
        assert reasons <= {"EXPIRED_ID"}  # of what was purged meanwhile


async def test_while_the_database_says_nothing_no_call_of_any_kind_outlasts_its_deadline(postgres_url: str) -> None:
    """And no worker is stuck afterwards: all calls are answered again."""
    with trio.fail_after(SAFETY_S), Blackhole.before(postgres_url) as hole:
        async with cluster(postgres_url, *NOTICED_SOON, urls=[hole.through(postgres_url)]) as brokers:
            address = brokers[0].address
            await trio.to_thread.run_sync(check_all_answer, address)
            hole.hold()
            for _ in range(3):  # more than there are workers
                await trio.to_thread.run_sync(check_none_waits_longer, address)
            await brokers.readiness(brokers[0], 503)
            hole.release()
            await brokers.all_ready(time.monotonic())
            await trio.to_thread.run_sync(check_all_answer, address)


def stop_amid_calls(broker: BrokerProcess, wire: Wire, hold: Callable[[], None]) -> None:
    hold()
    calls = start_all(wire, None)
    wire.round_trip()
    began = time.monotonic()
    broker.terminate()
    assert broker.wait() == 0, broker.log
    assert time.monotonic() - began < GRACE_S + SLACK_S
    assert len(calls) == len(CALLS)


def test_a_broker_stops_within_the_grace_period_with_every_kind_of_call_waiting_for_a_silent_database(
    postgres_url: str,
) -> None:
    with (
        Blackhole.before(postgres_url) as hole,
        BrokerProcess(hole.through(postgres_url), "--grace", f"{GRACE_S}s") as broker,
        Wire(broker.address) as wire,
    ):
        stop_amid_calls(broker, wire, hole.hold)


def check_cut_off(broker: BrokerProcess) -> None:
    """A broker without its database takes nothing, and says so in time."""
    with Wire(broker.address) as wire:
        began = time.monotonic()
        publishes = [wire.publish("orders", keep=True, timeout=f"{DEADLINE_S}S") for _ in range(10)]
        fetch = wire.fetch("orders", 1, timeout=f"{DEADLINE_S}S")
        failures = [wire.failed(call) for call in (*publishes, fetch)]
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        assert {failure.code for failure in failures} <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}


@pytest.mark.parametrize("cut", [Blackhole.reset, Blackhole.abandon])
async def test_a_broker_that_alone_is_cut_from_the_database_says_so_and_the_other_goes_on(
    postgres_url: str, cut: Callable[[Blackhole], object]
) -> None:
    with trio.fail_after(SAFETY_S), Blackhole.before(postgres_url) as hole:
        async with cluster(postgres_url, *NOTICED_SOON, urls=[hole.through(postgres_url), postgres_url]) as brokers:
            oracle = Oracle(brokers)
            async with oracle.at_work():
                await oracle.more(ROUND)
                hole.hold()
                cut(hole)
                await brokers.readiness(brokers[0], 503)
                await trio.to_thread.run_sync(check_cut_off, brokers[0])
                for _ in rounds(least=1):
                    await oracle.more(ROUND, delivered=False)
                    assert brokers[1].get("/readyz")[0] == 200
                hole.cut()
                hole.release()
                await brokers.all_ready(time.monotonic())
                await oracle.more(ROUND)
            assert set(oracle.errors()) <= {"STORAGE_UNAVAILABLE", "OUTCOME_UNKNOWN", "NOT_APPLIED"}
