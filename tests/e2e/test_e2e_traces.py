"""Traces of a real broker at a real OTLP receiver: whose child each span is, what it is linked to, what goes along."""

import time
from collections.abc import Iterator

import grpc
import pytest
from e2e_broker import BrokerProcess, eventually, sqlite_url
from e2e_otlp import Receiver, Span
from e2e_peers import OWN_CONNECTION, GrpcioStubs
from e2e_stall import begin_commit, commits_stalled
from e2e_wire import Wire

from trio_broker._proto import broker_pb2 as pb

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
TRACED = (("traceparent", TRACEPARENT),)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Where the traces of brokers go; calls without a context are not recorded."""
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        yield receiver


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def test_a_publish_is_followed_to_the_store_and_to_the_subscriber(receiver: Receiver, tmp_path) -> None:
    began_ns = time.time_ns()
    with BrokerProcess(sqlite_url(tmp_path), "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            stream = stubs.subscribe(pb.SubscribeRequest(subject="orders"), metadata=TRACED)
            stream.initial_metadata()
            request = pb.PublishRequest(subject="orders", body=b"tea", headers={"shop": b"kiel"}, keep=True)
            assert stubs.publish(request, metadata=TRACED).id == 1
            assert dict(next(stream).headers) == {"shop": b"kiel", "traceparent": TRACEPARENT.encode()}
            stubs.fetch(pb.FetchRequest(subject="orders", id=1), metadata=TRACED)
            stream.cancel()
            with pytest.raises(grpc.RpcError):
                next(stream)
        broker.stop()  # what is recorded is sent before it ends
    spans = receiver.spans
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert all(began_ns <= span.start_ns <= span.end_ns <= time.time_ns() for span in spans)
    (publish,), (subscribe,), (fetch_call,) = (
        named(spans, f"broker.Broker/{method}") for method in ("Publish", "Subscribe", "Fetch")
    )
    (flush,), (append,), (deliver,), (fetch,), (get,) = (
        named(spans, name) for name in ("flush", "append", "deliver", "fetch", "get")
    )
    assert len(spans) == 8
    assert {span.parent_id for span in (publish, subscribe, fetch_call, deliver)} == {PARENT_ID}
    assert {span.kind for span in (publish, subscribe, fetch_call)} == {"SERVER"}
    assert (flush.parent_id, flush.links, flush.kind) == (publish.id, [publish.id], "INTERNAL")
    assert (append.parent_id, append.kind) == (flush.id, "CLIENT")
    assert (deliver.links, deliver.kind) == ([subscribe.id], "PRODUCER")
    assert (fetch.parent_id, fetch.links) == (fetch_call.id, [fetch_call.id])
    assert get.parent_id == fetch.id
    assert publish.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "broker.Broker/Publish",
        "rpc.response.status_code": "OK",
    }
    assert append.attributes == {"db.system.name": "sqlite", "db.operation.name": "append"}
    assert subscribe.attributes["rpc.response.status_code"] == "CANCELLED"
    assert deliver.attributes == {
        "messaging.system": "trio_broker",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.message.id": "1",
        "messaging.message.body.size": 3,
    }
    assert not any(span.failed for span in spans)
    assert receiver.resource["service.name"] == "trio-broker"


def test_a_flush_is_linked_to_all_its_publishes(receiver: Receiver, tmp_path) -> None:
    database = tmp_path / "broker.db"
    with BrokerProcess(f"sqlite:///{database}", "--traces", "--commit-timeout", "60s") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel, Wire(broker.address) as wire:
            stubs = GrpcioStubs(channel)
            with commits_stalled(database):
                first = begin_commit(wire, "orders", b"")
                calls = [
                    stubs.publish.future(pb.PublishRequest(subject="orders", keep=True), metadata=TRACED)
                    for _ in range(3)
                ]
                calls.append(stubs.publish.future(pb.PublishRequest(subject="orders", keep=True)))
                stubs.fetch.future(pb.FetchRequest(subject="orders", id=99)).exception()  # it comes after them
            assert wire.published(first) == 1
            assert sorted(call.result().id for call in calls) == [2, 3, 4, 5]
        broker.stop()
    publishes = {span.id for span in named(receiver.spans, "broker.Broker/Publish")}
    (flush,) = named(receiver.spans, "flush")
    assert len(publishes) == 3
    assert set(flush.links) == publishes
    assert flush.parent_id in publishes
    assert flush.attributes["messaging.batch.message_count"] == 4


def test_what_the_publisher_says_itself_goes_along_unchanged(receiver: Receiver) -> None:
    own = {"traceparent": b"its own"}
    full = {f"name-{number}": b"" for number in range(64)}
    large = {"large": bytes(16 * 1024 - len("large"))}
    with BrokerProcess("memory:", "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            for headers in (own, full, large):
                request = pb.PublishRequest(subject="orders", headers=headers, keep=True)
                id_ = stubs.publish(request, metadata=TRACED).id
                assert dict(stubs.fetch(pb.FetchRequest(subject="orders", id=id_)).headers) == headers
            id_ = stubs.publish(pb.PublishRequest(subject="orders", keep=True)).id
            assert dict(stubs.fetch(pb.FetchRequest(subject="orders", id=id_)).headers) == {}
        broker.stop()


def test_what_is_not_sampled_is_carried_and_not_recorded(receiver: Receiver) -> None:
    with BrokerProcess("memory:", "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            stream = stubs.subscribe(pb.SubscribeRequest(subject="orders"))
            stream.initial_metadata()
            stubs.publish(pb.PublishRequest(subject="orders"), metadata=(("traceparent", UNSAMPLED),))
            assert dict(next(stream).headers) == {"traceparent": UNSAMPLED.encode()}
            stream.cancel()
        broker.stop()
    assert receiver.spans == []


def test_calls_that_fail_are_errors_if_the_broker_is_to_blame(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders-broker")
    with BrokerProcess("memory:", "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            for call in (
                lambda: stubs.fetch(pb.FetchRequest(subject="orders", id=1)),
                lambda: channel.unary_unary("/broker.Broker/Nothing")(b""),
                lambda: channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff"),
            ):
                with pytest.raises(grpc.RpcError):
                    call()
        broker.stop()
    failed = {span.name: span for span in receiver.spans}
    assert failed.keys() == {"broker.Broker/Fetch", "fetch", "get", "_OTHER"}
    assert (failed["broker.Broker/Fetch"].failed, failed["_OTHER"].failed) == (False, True)
    assert failed["broker.Broker/Fetch"].attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert failed["_OTHER"].attributes["rpc.method_original"] == "broker.Broker/Nothing"
    assert failed["_OTHER"].attributes["error.type"] == "UNIMPLEMENTED"
    assert receiver.resource["service.name"] == "orders-broker"


def test_traces_that_get_lost_are_one_line_and_one_more_when_they_arrive_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    receiver.refusing = True
    with BrokerProcess("memory:", "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            stubs.publish(pb.PublishRequest(subject="orders"), metadata=TRACED)
            lost = broker.wait_logged("traces_lost")
            assert (lost["level"], "403" in str(lost["why"])) == ("warning", True)
            refused = receiver.refused
            stubs.publish(pb.PublishRequest(subject="orders"), metadata=TRACED)
            eventually(lambda: receiver.refused > refused, True)
            receiver.refusing = False
            stubs.publish(pb.PublishRequest(subject="orders"), metadata=TRACED)
            assert broker.wait_logged("traces_sent")["level"] == "info"
        broker.stop()
    told = [line for line in broker.log if line["logger"] not in ("trio_broker.logs", "trio_broker.serve")]
    assert [line["event"] for line in told] == ["traces_lost", "traces_sent"]


def test_a_receiver_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody listens on "discard"
    with BrokerProcess("memory:", "--traces") as broker:
        with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            stubs = GrpcioStubs(channel)
            assert stubs.publish(pb.PublishRequest(subject="orders"), metadata=TRACED).id == 1
        broker.terminate()
        assert broker.wait() == 0
