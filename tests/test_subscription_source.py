"""What a subscription's stream is given to send, and what is refused by its headers while memory is short."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from purerpc import Service, Status

from persistence import NO_HEADERS, Appended, NewMessage, Page
from persistence.rows import Rows
from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.pool import POOL
from trio_broker.batch import Batch
from trio_broker.broker import Broker
from trio_broker.config import Config
from trio_broker.errors import Draining
from trio_broker.fanout import Fanout, Span
from trio_broker.memory import Pressure
from trio_broker.rpc import handlers
from trio_broker.rpc.health import Health
from trio_broker.rpc.reflection import reflection_services
from trio_broker.service.admin import AdminService
from trio_broker.service.encoding import batch_wire, together_wire
from trio_broker.service.servicer import BrokerService, refuse
from trio_broker.service.subscribing import SINGLY, TOGETHER, Encoding, SubscriptionSource


class Stream:
    """The part of a call that a source uses; it keeps the very objects that it is given."""

    def __init__(self) -> None:
        self.queue: list[bytes] = []
        self.status: Status | None = None
        self.send_window = 0
        self.connection = SimpleNamespace(send_window=2**20)

    def send(self, data: bytes) -> None:
        self.queue.append(data)

    def finish(self, status: Status) -> None:
        self.status = status


class Scene:
    """Two subscribers of a subject, of which one is looked at."""

    def __init__(self, encoding: Encoding = SINGLY) -> None:
        self.hub = Fanout(Config())
        self.subscription = self.hub.subscribe("a")
        self.other = self.hub.subscribe("a")
        self.source = SubscriptionSource(self.subscription, encoding)
        self.stream = Stream()

    def publish(self, id_: int, size: int) -> Batch:
        self.hub.deliver([(NewMessage("a", bytes(size), 0, NO_HEADERS), Appended(id_, 0))])
        return self.other.receive_nowait()

    def take(self, credit: int) -> bytes:
        return self.source.take(self.stream, credit)  # type: ignore[arg-type]


def test_many_messages_to_a_response_leave_by_the_same_rules() -> None:
    scene = Scene(TOGETHER)
    small = [scene.publish(id_, 10) for id_ in (1, 2)]
    (one_response,) = unframed(scene.take(credit=1000))
    assert [message.id for message in pb.MessageBatch.FromString(one_response).messages] == [1, 2]
    large = scene.publish(3, 1_000_000)
    assert scene.take(credit=100) == together_wire(large)
    assert scene.take(credit=100) == b""
    assert scene.stream.queue == []
    assert scene.subscription.sending is None
    delivered: list[tuple[object, int]] = []
    scene.hub.deliveries.on_delivered = lambda batch, takers, _lag_s: delivered.append((batch, takers))
    scene.hub.deliveries.settle()
    assert delivered == [(batch, 2) for batch in (*small, large)]


def unframed(wire: bytes) -> list[bytes]:
    found = []
    while wire:
        size = int.from_bytes(wire[1:5])
        found.append(wire[5 : 5 + size])
        wire = wire[5 + size :]
    return found


class Behind:
    """A subscriber that is sent a page of the log."""

    def __init__(self, window: int) -> None:
        self.wanted: list[object] = []
        self.hub = Fanout(Config(), want_page=self.wanted.append)
        self.subscription = self.hub.subscribe("a", Span(0, None, 3000))
        self.source = SubscriptionSource(self.subscription, SINGLY)
        self.stream = Stream()
        self.stream.send_window = window
        self.subscription.pull()
        self.subscription.position.begin_read()
        rows = [(id_, bytes(100), None, 1, None) for id_ in range(1, 1001)]
        self.subscription.page(Page(Rows(rows), 1000, 3000))

    def take(self) -> bytes:
        return self.source.take(self.stream, 16_384)  # type: ignore[arg-type]


def test_the_next_page_is_asked_for_while_one_leaves_that_has_room_in_the_windows() -> None:
    behind = Behind(window=1_000_000)
    assert len(behind.wanted) == 1
    assert len(behind.take()) > 100_000
    assert len(behind.wanted) == 2


def test_a_page_that_has_to_wait_for_the_windows_brings_no_other() -> None:
    behind = Behind(window=65_535)
    assert len(behind.take()) > 100_000
    assert len(behind.wanted) == 1
    assert behind.take() == b"", "it has left"
    assert len(behind.wanted) == 2


@pytest.mark.parametrize("ended", [False, True])
def test_a_batch_beyond_the_credit_is_not_copied(ended: bool) -> None:
    scene = Scene()
    small, large = scene.publish(1, 10), scene.publish(2, 1_000_000)
    if ended:
        scene.hub.end_all(Draining("stopping"))
    assert scene.take(credit=100) == b""
    assert scene.stream.queue == [batch_wire(small), batch_wire(large)]
    assert scene.stream.queue[1] is batch_wire(large), "all subscribers share it"
    assert scene.subscription.sending is large
    assert (scene.stream.status is not None) == ended


def test_small_batches_leave_together() -> None:
    scene = Scene()
    batches = [scene.publish(id_, 10) for id_ in (1, 2, 3)]
    assert scene.take(credit=1000) == b"".join(map(batch_wire, batches))
    assert scene.stream.queue == []


def methods(service: Service) -> list[handlers.Method]:
    return [
        handlers.bind(service.name, name, bound.method_fn, bound.signature) for name, bound in service.methods.items()
    ]


@pytest.mark.parametrize(
    ("pressure", "served"), [(Pressure.HIGH, {"Fetch", "FetchRange"}), (Pressure.FULL, set[str]())]
)
def test_while_memory_is_short_the_log_is_read_by_single_calls_at_most(pressure: Pressure, served: set[str]) -> None:
    calls = methods(BrokerService(cast("Broker", None)).service)
    call = {method.name: SimpleNamespace(method=method) for method in calls}
    assert {name for name in call if refuse(pressure, call[name]) is None} == served  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pressure", "refused"), [(Pressure.HIGH, set[str]()), (Pressure.FULL, {"ListSubjects", "GetSubject"})]
)
def test_while_memory_is_short_subjects_can_be_dropped(pressure: Pressure, refused: set[str]) -> None:
    calls = methods(AdminService(cast("Any", None)).service)
    call = {method.name: SimpleNamespace(method=method) for method in calls}
    assert {name for name in call if refuse(pressure, call[name]) is not None} == refused  # type: ignore[arg-type]


@pytest.mark.parametrize("pressure", [Pressure.HIGH, Pressure.FULL])
def test_while_memory_is_short_nothing_that_streams_begins(pressure: Pressure) -> None:
    services = [Health().service, *reflection_services(POOL, [])]
    served = {
        f"{method.service}/{method.name}"
        for service in services
        for method in methods(service)
        if refuse(pressure, SimpleNamespace(method=method)) is None  # type: ignore[arg-type]
    }
    assert served == {"grpc.health.v1.Health/Check", "grpc.health.v1.Health/List"}
