"""What of a call is counted, and what is told of a process at each stage of its life."""

from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing
from broker_kit import broker_on
from postgres_kit import until
from prometheus_client import CollectorRegistry
from purerpc import Status, StatusCode
from trial_store import TrialStore

from metrics import State
from persistence import open_store
from trio_broker import errors
from trio_broker.batch import Batch
from trio_broker.broker import run_broker
from trio_broker.config import Config
from trio_broker.fanout import PATHS, TAIL
from trio_broker.merge import HELD_MAX, PATIENCE_S
from trio_broker.message import Message
from trio_broker.metering import STREAMS, UNARY, Metering
from trio_broker.replicas import run_replicas
from trio_broker.replicas.forwarding import Forwarding
from trio_broker.replicas.tails import WAITING_BYTES
from trio_broker.rpc.call import Call
from trio_broker.rpc.listeners import listen_tcp
from trio_broker.rpc.server import Server
from trio_broker.rpc.status import OK
from trio_broker.service.places import Places
from trio_broker.service.statuses import status_of

OF_PROCESS = State(ready=True, memory_used_bytes=90, memory_limit_bytes=100, memory_pressure=True)


@pytest.fixture
def metering() -> Metering:
    return Metering(Config(metrics_subjects="orders", queue_messages=7), lambda: OF_PROCESS)


@pytest.fixture
async def registry(metering: Metering) -> CollectorRegistry:
    return metering.registry()


def call(method: str | None, status: Status | None, first_message_s: float | None = None) -> Call:
    name = None if method is None else SimpleNamespace(name=method)
    return cast("Call", SimpleNamespace(method=name, status=status, first_message_s=first_message_s))


@pytest.mark.parametrize(
    ("method", "status", "counted", "reason"),
    [
        ("Publish", OK, "OK", None),
        ("Publish", Status(StatusCode.OK), "OK", None),
        ("Publish", None, "CANCELLED", "cancelled_by_peer"),
        ("Fetch", status_of(errors.InvalidId("")), "INVALID_ARGUMENT", "INVALID_ID"),
        ("Check", Status(StatusCode.NOT_FOUND), "NOT_FOUND", "none"),
        (None, Status(StatusCode.UNIMPLEMENTED), "UNIMPLEMENTED", "none"),
    ],
)
async def test_a_call_counts_once_by_status_and_by_reason(
    metering: Metering,
    registry: CollectorRegistry,
    method: str | None,
    status: Status | None,
    counted: str,
    reason: str | None,
) -> None:
    metering.call_over(call(method, status), 0.5)
    samples = [sample for family in registry.collect() for sample in family.samples]
    label = method or "unknown"
    assert [s.labels for s in samples if s.name == "method_count" and s.value] == [{"method": label, "status": counted}]
    errors_told = [s.labels for s in samples if s.name == "trio_broker_rpc_errors_total" and s.value]
    assert errors_told == ([] if reason is None else [{"method": label, "reason": reason}])


async def test_errors_that_are_not_the_clients_are_told_before_there_are_any(registry: CollectorRegistry) -> None:
    for method in (*UNARY, *STREAMS):
        for reason in errors.FAULTS:
            labels = {"method": method, "reason": reason}
            assert registry.get_sample_value("trio_broker_rpc_errors_total", labels) == 0


async def test_the_first_message_of_a_stream_counts_when_it_ends(
    metering: Metering, registry: CollectorRegistry
) -> None:
    metering.call_over(call("Subscribe", OK, 0.25), 9.0)
    metering.call_over(call("Subscribe", OK), 9.0)
    method = {"method": "Subscribe"}
    assert registry.get_sample_value("trio_broker_stream_first_message_seconds_sum", method) == 0.25
    assert registry.get_sample_value("trio_broker_stream_first_message_seconds_count", method) == 1
    assert registry.get_sample_value("trio_broker_stream_lifetime_seconds_sum", method) == 18


async def test_the_same_series_are_told_before_and_after_there_is_a_broker(
    metering: Metering, registry: CollectorRegistry
) -> None:
    def series() -> set[tuple[str, ...]]:
        return {(s.name, *s.labels.items()) for family in registry.collect() for s in family.samples}

    before = series()
    assert registry.get_sample_value("trio_broker_store_up") == 0
    async with broker_on(TrialStore()) as broker:
        metering.watch(broker, Server(), Places(7))
        assert series() == before
        assert registry.get_sample_value("trio_broker_store_up") == 1
        for method in (*UNARY, *STREAMS):
            assert registry.get_sample_value("trio_broker_calls_in_flight", {"method": method}) == 0


async def test_what_the_broker_holds_is_told(metering: Metering, registry: CollectorRegistry) -> None:
    store = TrialStore()
    async with broker_on(store, subscriber_messages=4) as broker, trio.open_nursery() as nursery:
        metering.watch(broker, Server(), Places(7))
        with broker.open_subscription("orders") as subscription:
            await broker.publish("orders", b"12345")
            assert registry.get_sample_value("trio_broker_subscriber_buffer_messages") == 1
            assert registry.get_sample_value("trio_broker_subscriber_buffer_bytes") == 5
            assert registry.get_sample_value("trio_broker_subscriber_buffer_fill_ratio") == 0.25
            assert registry.get_sample_value("trio_broker_subscriber_backlog_bytes") == broker.fanout.backlog.bytes > 10
            assert registry.get_sample_value("trio_broker_subject_subscribers", {"subject": "orders"}) == 1
            subscription.receive_nowait()
            broker.fanout.deliveries.settle()
            assert registry.get_sample_value("trio_broker_messages_delivered_total") == 1
            assert registry.get_sample_value("trio_broker_delivered_bytes_total") == 5
        store.hold()
        for _ in range(3):
            nursery.start_soon(broker.publish, "orders", b"waits")
            await trio.testing.wait_all_tasks_blocked()
        assert registry.get_sample_value("trio_broker_publish_queue_messages") == 2
        assert registry.get_sample_value("trio_broker_publish_queue_bytes") == broker.committer.queued_bytes > 0
        assert registry.get_sample_value("trio_broker_publish_queue_limit_messages") == 7
        assert registry.get_sample_value("trio_broker_memory_used_bytes") == 90
        assert registry.get_sample_value("trio_broker_memory_limit_bytes") == 100
        assert registry.get_sample_value("trio_broker_memory_pressure") == 1
        store.release()


async def test_what_is_learned_of_other_brokers_is_told_by_path(
    metering: Metering, registry: CollectorRegistry, postgres_url: str
) -> None:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"trio_broker_{name}", labels)

    config = Config()
    async with (
        open_store(postgres_url) as our_store,
        open_store(postgres_url) as their_store,
        run_broker(our_store, config) as ours,
        run_broker(their_store, config) as theirs,
        run_replicas(our_store, ours, listen_tcp("127.0.0.1", 0)) as our_replicas,
    ):
        metering.watch_replicas(our_replicas)
        metering.watch(ours, Server(), Places(7))
        assert value("replicas") == value("replicas_heard") == 0
        assert [value("learned_messages_total", path=path) for path in PATHS] == [0, 0, 0, 0]
        assert value("forwarded_messages_total") is None
        our_replicas.forwarding = Forwarding("a", our_store.append, dict, lambda _: None)  # type: ignore[arg-type, return-value]
        assert value("forwarded_messages_total") == value("forwards_refused_messages_total") == 0
        async with run_replicas(their_store, theirs, listen_tcp("127.0.0.1", 0)), ours.subscribe("a") as messages:
            await until(lambda: our_replicas.heard and our_replicas.feeds.open)
            assert value("replicas") == value("replicas_heard") == 1
            await until(lambda: theirs.fanout.tails.get("a"))
            with trio.fail_after(10):
                await theirs.publish("a", b"x", None)
                await messages.receive()
            assert value("learned_messages_total", path=TAIL) == 1

            large = Batch([Message("a", 2, bytes(WAITING_BYTES // 2 + 1), {}, 0)])
            (feed,) = our_replicas.feeds.open
            feed.offer(large, [None])
            feed.offer(large, [None])
            assert value("tail_waiting_bytes") == large.memory_bytes
            assert value("tail_dropped_batches_total") == 1
        await until(lambda: not our_replicas.feeds.open)
        assert value("tail_waiting_bytes") == 0
        assert value("tail_dropped_batches_total") == 1, "it has to go on counting when the stream is over"


async def test_holes_that_are_given_up_are_counted(
    metering: Metering, registry: CollectorRegistry, postgres_url: str
) -> None:
    def given_up() -> float | None:
        return registry.get_sample_value("trio_broker_holes_given_up_total")

    def batch(id_: int) -> Batch:
        return Batch([Message("a", id_, b"", {}, 0)])

    async with open_store(postgres_url) as store, run_broker(store, Config()) as broker:
        metering.watch(broker, Server(), Places(7))
        merge = broker.fanout.merge
        assert merge is not None
        merge.begin("a", 1)
        merge.arrive(batch(4), [None], now=0)
        merge.arrive(batch(2), [None], now=0)
        merge.arrive(batch(3), [None], now=0)
        merge.give_up(PATIENCE_S)
        assert given_up() == 0, "it came in time"
        merge.arrive(batch(6), [None], now=0)
        merge.give_up(PATIENCE_S)
        assert given_up() == 1
        for id_ in range(8, 9 + HELD_MAX):
            merge.arrive(batch(id_), [None], now=0)
        assert given_up() == 2
