"""SIGTERM: what was begun is finished, nobody is left without an answer, and nothing holds the process for long."""

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_failure import CallFailed
from e2e_peers import PEERS, Peer
from e2e_served import served
from e2e_stall import begin_commit, commits_stalled
from e2e_wire import Wire, connect_socket

from trio_broker.client import connect
from trio_broker.errors import BrokerClosed, BrokerError, Draining

PATIENT = ("--grace", "60s", "--commit-timeout", "60s")
STREAM_ID_MAX = 2**31 - 1
DRAINING = ("UNAVAILABLE", "DRAINING")

Brokers = Callable[..., BrokerProcess]


def takes_connections(broker: BrokerProcess) -> bool:
    host, _, port = broker.address.rpartition(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


def test_what_was_begun_is_finished_and_reaches_subscribers(sqlite_broker: Brokers, database: Path) -> None:
    with sqlite_broker(*PATIENT) as broker, Wire(broker.address) as wire, Wire(broker.address) as subscriber:
        live = subscriber.subscribe("orders")
        subscriber.stand(live)
        with commits_stalled(database):
            taken = [begin_commit(wire, "orders", b"in flight")]
            taken += [wire.publish("orders", b"queued", keep=True) for _ in range(2)]
            wire.round_trip()
            broker.terminate()
            eventually(lambda: takes_connections(broker), False)
            assert broker.get("/readyz") == (503, "draining\n")
            assert broker.get("/healthz")[0] == 200
            wire.read_until(lambda: len(wire.goaways) == 2)
            assert wire.goaways == [(STREAM_ID_MAX, 0), (taken[-1].stream_id, 0)]
            assert not any(exchange.over for exchange in taken)
        assert [wire.published(exchange) for exchange in taken] == [1, 2, 3]
        failure = subscriber.failed(live)
        assert failure.told == DRAINING
        assert failure.retry_after_s is not None
        assert [message.body for message in live.received()] == [b"in flight", b"queued", b"queued"]
        for each in (wire, subscriber):
            each.read_to_the_end()
        assert broker.wait() == 0
        assert broker.errors() == []


@pytest.mark.parametrize("name", ["grpcio", "grpcio.aio"])  # purerpc trips over the PING that follows a GOAWAY
def test_streams_end_with_the_reason_and_then_nobody_is_there(name: str) -> None:
    async def listen_to_the_end(peer: Peer) -> None:
        async with peer.connect(broker.address) as client, client.subscribe("orders") as stream:
            await client.publish("orders", b"last")
            broker.terminate()
            assert (await stream.receive()).body == b"last"
            with pytest.raises(CallFailed) as ended:
                await stream.receive()
            assert ended.value.told == DRAINING
            assert ended.value.retry_after_s is not None
            assert broker.wait() == 0
            with pytest.raises(CallFailed) as refused:
                await client.publish("orders")
            assert refused.value.told == ("UNAVAILABLE", None), "nobody was there to give a reason"

    with BrokerProcess("memory:") as broker:
        PEERS[name].run(listen_to_the_end)
        assert broker.errors() == []


@pytest.mark.parametrize(("end", "error"), [("drain", Draining), ("close", BrokerClosed)])
async def test_a_broker_that_stops_says_so_to_every_call(end: str, error: type[BrokerError]) -> None:
    """Seen from inside: a process that stops closes its connections soon after."""
    with trio.fail_after(SAFETY_S):
        async with served("memory:") as (broker, address), connect(address) as client:
            await client.publish("orders", b"x", None)
            async with client.subscribe("orders") as messages:
                await getattr(broker, end)()
                with pytest.raises(error):
                    await anext(messages)
            with pytest.raises(error) as failure:
                await client.publish("orders", b"x")
            assert failure.value.retryable
            with pytest.raises(error):
                async with client.subscribe("orders"):
                    pass
            if error is BrokerClosed:
                with pytest.raises(error):
                    await client.fetch("orders", 1)
            else:
                assert (await client.fetch("orders", 1)).body == b"x"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_broker_stops_at_once(number: int) -> None:
    with BrokerProcess("memory:", *PATIENT) as broker, Wire(broker.address) as wire:
        wire.round_trip()
        broker.system().send_signal(number)
        wire.read_to_the_end()
        assert broker.wait() == 0
        assert broker.errors() == []


def test_until_the_drain_delay_is_over_calls_are_taken() -> None:
    with BrokerProcess("memory:", "--drain-delay", "60s") as broker:
        broker.terminate()
        broker.wait_logged("stopping")
        assert broker.get("/readyz") == (503, "draining\n")
        with Wire(broker.address) as late:
            assert late.published(late.publish("orders")) == 1
            assert late.goaways == []
        broker.terminate()
        assert broker.wait() == 1


def test_a_second_signal_ends_the_process_though_the_store_is_stuck(sqlite_broker: Brokers, database: Path) -> None:
    with sqlite_broker(*PATIENT) as broker, Wire(broker.address) as wire, commits_stalled(database):
        begin_commit(wire, "orders", b"in flight")
        broker.terminate()
        broker.wait_logged("stopping")
        broker.terminate()
        assert broker.wait() == 1


def test_a_store_that_is_stuck_does_not_keep_the_process_beyond_the_grace_period(
    sqlite_broker: Brokers, database: Path
) -> None:
    """Everybody gets an answer first, and a true one: that the broker drains would mean that nothing was appended."""
    impatient = ("--grace", "200ms", "--commit-timeout", "60s")
    with sqlite_broker(*impatient) as broker, Wire(broker.address) as wire, commits_stalled(database):
        in_flight = begin_commit(wire, "orders", b"in flight")
        queued = wire.publish("orders", b"queued", keep=True)
        watching = wire.start("/grpc.health.v1.Health/Watch", b"")
        wire.stand(watching)
        broker.terminate()
        assert wire.failed(in_flight).told == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
        assert wire.failed(queued).told == ("DEADLINE_EXCEEDED", "NOT_APPLIED")
        assert wire.failed(watching).code == "UNAVAILABLE"
        assert broker.wait() == 1
    with sqlite_broker() as broker:
        with Wire(broker.address) as wire:
            assert wire.published(wire.publish("orders", b"after", keep=True)) == 1
        broker.stop()


def test_a_client_that_takes_nothing_does_not_keep_the_process_beyond_the_grace_period() -> None:
    with (
        BrokerProcess("memory:", "--grace", "200ms") as broker,
        Wire(broker.address) as publisher,
        Wire(broker.address, window=0) as windowless,
        Wire(broker.address, receive_buffer=4096) as deaf,
    ):
        windowless.stand(windowless.subscribe("orders"))
        deaf.stand(deaf.subscribe("orders"))
        for _ in range(300):
            publisher.published(publisher.publish("orders", bytes(10_000)))
        broker.terminate()
        assert broker.wait() == 0
        broker.wait_logged("grace_over")
        assert broker.errors() == []


def test_a_client_that_says_nothing_at_all_does_not_keep_the_process() -> None:
    with BrokerProcess("memory:", *PATIENT) as broker, connect_socket(broker.address):
        eventually(lambda: broker.system().num_fds() > 0, True)
        broker.terminate()
        assert broker.wait() == 0
