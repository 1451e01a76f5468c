"""What several workers need besides their processes: pauses, shares, one page for all. From outside: tests/e2e."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from trio.testing import MockClock, wait_all_tasks_blocked

from metrics import Readiness, merge, pack
from metrics.histograms import Histogram, histogram
from trio_broker.config import Config
from trio_broker.front import Connections
from trio_broker.line_budget import LineBudget
from trio_broker.workers import supervisor
from trio_broker.workers.channel import Channel, close_all
from trio_broker.workers.doorman import by_preference
from trio_broker.workers.pauses import LONGEST_S, STEADY_S, Pauses
from trio_broker.workers.supervisor import worker_memory_bytes
from trio_broker.workers.worker import Door

MIB = 2**20


def test_a_worker_that_ends_is_replaced_at_once_and_then_after_longer_and_longer_pauses() -> None:
    pauses = Pauses()
    waited = [pauses.after(0.1) for _ in range(100)]
    assert waited[:8] == [0, 0.25, 0.5, 1, 2, 4, 8, LONGEST_S]
    assert set(waited[8:]) == {LONGEST_S}
    assert [pauses.after(lived_s) for lived_s in (STEADY_S, 0.1, 0.1)] == [0, 0.25, 0.5]


async def test_a_worker_for_which_there_is_no_thread_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    tried_at: list[float] = []

    async def open_process(*_: object, **_options: object) -> trio.Process:
        tried_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "open_process", open_process)
    kept = supervisor._Supervisor(Config(store="postgresql:///", workers=2), LineBudget())
    kept._announced = True  # it had started
    with trio.move_on_after(5):
        await kept._keep(0)
    assert len(tried_at) == 6, "at once, and after 0, 0.25, 0.5, 1 and 2 s"


def test_workers_share_what_the_supervisor_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "resident_bytes", lambda: 60 * MIB)
    monkeypatch.setattr(supervisor, "memory_limit_bytes", lambda: 1024 * MIB)
    monkeypatch.setattr(supervisor, "memory_used_bytes", lambda: 224 * MIB)
    config = Config(store="postgresql://db/x", workers=4)
    assert worker_memory_bytes(config) == 200 * MIB
    assert worker_memory_bytes(config.model_copy(update={"memory_max": 260 * MIB})) == 50 * MIB
    assert worker_memory_bytes(config.model_copy(update={"memory_max": MIB})) == 1


class Families(Collector):
    """A family of each kind."""

    def __init__(self, value: float) -> None:
        self._value = value

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("calls", "Calls.", self._value)
        yield GaugeMetricFamily("open", "Open.", float("nan"))
        yield InfoMetricFamily("build", "Build.", {"version": 'a "quoted\\" one'})
        untyped = Metric("method_count", "Old.", "unknown")
        untyped.add_sample("method_count", {"method": "Publish"}, self._value)
        yield untyped
        seconds = Histogram((0.5,))
        seconds.observe(self._value)
        yield histogram("seconds", "Seconds.", seconds)


class Merged(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def registry_of(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


@pytest.mark.parametrize("encode", [generate_latest, generate_openmetrics])
def test_the_page_of_one_worker_is_as_its_own_but_for_the_label(encode) -> None:
    own = registry_of(Families(0.25))
    page = encode(registry_of(Merged(merge({"0": pack(own)})))).decode()
    assert 'worker="0"' in page
    assert page.replace(',worker="0"', "").replace('{worker="0"}', "") == encode(own).decode()


def test_each_family_is_there_once_with_the_samples_of_all_workers() -> None:
    families = merge({str(n): pack(registry_of(Families(n))) for n in range(2)})
    assert [family.name for family in families] == ["calls", "open", "build", "method_count", "seconds"]
    assert [(sample.labels, sample.value) for sample in families[0].samples] == [
        ({"worker": "0"}, 0),
        ({"worker": "1"}, 1),
    ]


def test_half_of_what_a_worker_tells_is_nothing() -> None:
    half, whole = pack(registry_of(Families(1)))[:-5], pack(registry_of(Families(1)))
    assert merge({"0": half, "1": b""}) == []
    assert {sample.labels["worker"] for family in merge({"0": half, "1": whole}) for sample in family.samples} == {"1"}


class Worker:
    """What a doorman looks at."""

    def __init__(self, connections: int, *, ready: bool = True, taking: bool = True) -> None:
        self.connections = connections
        self.taking = taking
        self._ready = ready

    def readiness(self) -> Readiness:
        return Readiness(self._ready, "")


def test_a_connection_goes_to_a_ready_worker_before_others_and_then_to_who_has_fewest() -> None:
    idle, busy = Worker(1), Worker(7)
    unready, closed = Worker(0, ready=False), Worker(0, taking=False)
    assert by_preference([busy, unready, closed, idle]) == [idle, busy, unready]


def test_connections_say_by_default_that_none_are_taken() -> None:
    assert Connections() == (0, 0, False)


@contextmanager
def channel() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.open()
    other = Channel(theirs)
    try:
        yield ours, other
    finally:
        ours.close()
        other.close()


async def test_a_channel_carries_messages_and_descriptors_and_ends_with_the_other_side() -> None:
    with channel() as (ours, theirs):
        a, b = socket.socketpair()
        with a, b:
            assert ours.send("metrics", {"n": 1}, [a.fileno()])
            message = await theirs.receive()
            assert message is not None
            assert (message.kind, message.values, len(message.descriptors)) == ("metrics", {"n": 1}, 1)
            assert message.descriptors[0] != a.fileno()
            close_all(message.descriptors)
        assert ours.send("unread")
        theirs.close()
        assert not ours.send("stop")
        assert await ours.receive() is None


async def test_a_channel_that_nobody_reads_refuses_in_the_end_and_waits_for_nothing() -> None:
    with channel() as (ours, _):
        assert not all(ours.send("stop") for _ in range(100_000))


async def test_whoever_waits_at_a_channel_can_be_cancelled() -> None:
    with channel() as (ours, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


def test_a_door_gives_what_was_handed_over_and_never_looks_as_if_nobody_were_there() -> None:
    outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    a, b = socket.socketpair()
    kept = outer.dup()
    with Door(inner.detach(), kept.fileno()) as door, kept, b:
        socket.send_fds(outer, [b"c"], [a.fileno()])
        outer.close()
        a.close()
        taken, _ = door.accept()
        with taken:
            b.send(b"hello")
            assert taken.recv(5) == b"hello"
        with pytest.raises(BlockingIOError):
            door.accept()
