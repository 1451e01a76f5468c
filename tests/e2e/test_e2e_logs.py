"""What an operator finds in the log of a real broker: failed and slow calls, connections, and what it is doing."""

import signal
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from e2e_broker import BrokerProcess, eventually
from e2e_peers import OWN_CONNECTION, GrpcioStubs
from e2e_stall import begin_commit, commits_stalled
from e2e_wire import Wire

from trio_broker._proto import broker_pb2 as pb
from trio_broker.line_budget import LINES

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"

Brokers = Callable[..., BrokerProcess]


def fail(stubs: GrpcioStubs, *metadata: tuple[str, str]) -> dict[str, object]:
    """Publish what no broker accepts; return the trailers."""
    with pytest.raises(grpc.RpcError) as failed:
        stubs.publish(pb.PublishRequest(subject="", body=b"a secret body"), metadata=metadata)
    return dict(failed.value.trailing_metadata())


def test_a_failed_call_is_found_by_the_id_that_its_client_got() -> None:
    with BrokerProcess("memory:") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            trailers = fail(stubs)
            line = broker.wait_logged("call_failed")
            assert line["request_id"] == trailers["x-request-id"]
            assert "traceparent" not in trailers
            trailers = fail(stubs, ("x-request-id", "order-17"), ("traceparent", TRACEPARENT))
            assert (trailers["x-request-id"], trailers["traceparent"]) == ("order-17", TRACEPARENT)
        broker.stop()
        failed = [line for line in broker.log if line["event"] == "call_failed"]
        assert [line["request_id"] for line in failed] == [line["request_id"], "order-17"]
        assert failed[1] == {
            **{name: failed[1][name] for name in ("timestamp", "seconds", "peer")},
            "event": "call_failed",
            "level": "info",
            "logger": "trio_broker.call_log",
            "method": "broker.Broker/Publish",
            "status": "INVALID_ARGUMENT",
            "reason": "INVALID_SUBJECT",
            "why": failed[1]["why"],
            "request_id": "order-17",
            "trace_id": TRACE_ID,
        }
        assert str(failed[1]["peer"]).startswith("127.0.0.1:")
        assert "a secret body" not in str(broker.log)


def test_what_goes_well_is_silent_and_its_ids_come_back() -> None:
    with BrokerProcess("memory:", "--slow-call", "1h") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            publish = GrpcioStubs(channel).publish
            _, call = publish.with_call(pb.PublishRequest(subject="orders"))
            assert dict(call.trailing_metadata()) == {}
            metadata = (("x-request-id", "order-17"), ("traceparent", TRACEPARENT))
            _, call = publish.with_call(pb.PublishRequest(subject="orders"), metadata=metadata)
            assert dict(call.trailing_metadata()) == dict(metadata)
        broker.stop()
        assert [line["event"] for line in broker.log if str(line["event"]).startswith("call_")] == []


def test_a_client_that_fails_for_ever_is_told_of_in_few_lines() -> None:
    failures = 10 * LINES
    with BrokerProcess("memory:") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            for _ in range(failures):
                fail(GrpcioStubs(channel))
        broker.stop()
        assert len([line for line in broker.log if line["event"] == "call_failed"]) == LINES
        (left_out,) = (line for line in broker.log if line["event"] == "lines_left_out")
        assert (left_out["of"], left_out["reason"], left_out["lines"]) == (
            *("call_failed", "INVALID_SUBJECT", failures - LINES),
        )


def test_a_slow_call_is_told_of(sqlite_broker: Brokers, database: Path) -> None:
    with sqlite_broker("--slow-call", "1us", "--commit-timeout", "60s") as broker, Wire(broker.address) as wire:
        with commits_stalled(database):
            exchange = begin_commit(wire, "orders", b"slow")
        assert wire.published(exchange) == 1
        line = broker.wait_logged("call_slow")
        assert (line["method"], line["level"]) == ("broker.Broker/Publish", "info")
        assert float(str(line["seconds"])) > 0


def test_connections_are_told_of_at_debug() -> None:
    with BrokerProcess("memory:", "--log-level", "debug") as broker:
        with Wire(broker.address) as wire:
            wire.round_trip()
            opened = broker.wait_logged("connection_opened")
        closed = broker.wait_logged("connection_closed")
        assert closed["why"] == "the client closed"
        assert (closed["peer"], closed["connection_id"]) == (opened["peer"], opened["connection_id"])


def test_sigusr1_asks_what_the_broker_is_doing(sqlite_broker: Brokers) -> None:
    with sqlite_broker() as broker, Wire(broker.address) as wire:
        wire.stand(wire.subscribe("orders"))
        broker.system().send_signal(signal.SIGUSR1)
        text = str(broker.wait_logged("process_described")["stack"])
        for part in (
            *("task trio_broker.serve._await_signals", "task trio_broker.commit.Committer._run_lane"),
            *("trio_broker.rpc.accepting.Entrance._serve", "Transport._read", "thread MainThread"),
        ):
            assert part in text
        eventually(lambda: broker.subscribers(), 1)
        broker.stop()
