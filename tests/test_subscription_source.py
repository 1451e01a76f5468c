"""What a subscription's stream is given to send, and what is refused by its headers while memory is short."""

from types import SimpleNamespace

import pytest
from purerpc import Service, Status

from persistence import NO_HEADERS, Appended, NewMessage
from trio_broker._proto.pool import POOL
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.errors import Draining
from trio_broker.fanout import Fanout
from trio_broker.memory import Pressure
from trio_broker.rpc import handlers
from trio_broker.rpc.health import Health
from trio_broker.rpc.reflection import reflection_services
from trio_broker.service.encoding import batch_wire
from trio_broker.service.servicer import refuse
from trio_broker.service.subscribing import SINGLY, SubscriptionSource


class Stream:
    """The part of a call that a source uses; it keeps the very objects that it is given."""

    def __init__(self) -> None:
        self.queue: list[bytes] = []
        self.status: Status | None = None

    def send(self, data: bytes) -> None:
        self.queue.append(data)

    def finish(self, status: Status) -> None:
        self.status = status


class Scene:
    """Two subscribers of a subject, of which one is looked at."""

    def __init__(self) -> None:
        self.hub = Fanout(Config())
        self.subscription = self.hub.subscribe("a")
        self.other = self.hub.subscribe("a")
        self.source = SubscriptionSource(self.subscription, SINGLY)
        self.stream = Stream()

    def publish(self, id_: int, size: int) -> Batch:
        self.hub.deliver([(NewMessage("a", bytes(size), 0, NO_HEADERS), Appended(id_, 0))])
        return self.other.receive_nowait()

    def take(self, credit: int) -> bytes:
        return self.source.take(self.stream, credit)  # type: ignore[arg-type]


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
