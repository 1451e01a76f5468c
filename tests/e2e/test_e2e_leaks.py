"""Who comes and goes leaves nothing behind: no subscriber, task, descriptor, thread, memory, cycle of objects."""

import gc
import random
from collections.abc import Callable, Iterator

import grpc
import pytest
import trio
import trio.testing
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_peers import OWN_CONNECTION, GrpcioStubs
from e2e_served import served
from e2e_wire import Wire

from trio_broker._proto import broker_pb2 as pb
from trio_broker.client import connect
from trio_broker.errors import ExpiredId

SUBSCRIBERS = 1_000
CONNECTIONS = 10
ROUNDS = 2
MEMORY_MAX_BYTES = 16 * 1024 * 1024
"""How much a process may grow over the rounds: the C library gives back what it likes."""

Visit = Callable[[str, Callable[[], None]], None]
"""Subscribes `SUBSCRIBERS` times at an address, calls back when all stand, and is gone."""


class IdleBroker(BrokerProcess):
    """A broker that remembers how many descriptors it had before anybody connected."""

    def __init__(self) -> None:
        super().__init__("memory:")
        self.idle_descriptors = self.system().num_fds()


@pytest.fixture(scope="module")
def broker() -> Iterator[IdleBroker]:
    with IdleBroker() as process:
        yield process
        process.stop()


def visit_and_reset(address: str, all_stand: Callable[[], None]) -> None:
    with Wire(address) as wire:
        streams = [wire.subscribe(f"orders.{n % 10}") for n in range(SUBSCRIBERS)]
        wire.stand(*streams)
        all_stand()
        wire.cancel(*streams)
        wire.round_trip()


def visit_and_break_off(address: str, all_stand: Callable[[], None]) -> None:
    wires = [Wire(address) for _ in range(CONNECTIONS)]
    for wire in wires:
        wire.stand(*[wire.subscribe(f"orders.{n}") for n in range(SUBSCRIBERS // CONNECTIONS)])
    all_stand()
    for wire in wires:
        wire.break_off()


def visit_and_hang_up(address: str, all_stand: Callable[[], None]) -> None:
    wires = [Wire(address) for _ in range(CONNECTIONS)]
    for wire in wires:
        wire.stand(*[wire.subscribe("orders") for _ in range(SUBSCRIBERS // CONNECTIONS)])
    all_stand()
    for wire in wires:
        wire.close()


def visit_by_grpcio(address: str, all_stand: Callable[[], None]) -> None:
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        subscribe = GrpcioStubs(channel).subscribe
        calls = [subscribe(pb.SubscribeRequest(subject="orders"), timeout=SAFETY_S) for _ in range(SUBSCRIBERS)]
        for call in calls:
            call.initial_metadata()
        all_stand()
        for call in calls:
            call.cancel()


VISITS = {
    "RST_STREAM": visit_and_reset,
    "connections broken off": visit_and_break_off,
    "connections closed": visit_and_hang_up,
    "grpcio": visit_by_grpcio,
}
visits = pytest.mark.parametrize("visit", VISITS.values(), ids=VISITS.keys())


@visits
def test_a_thousand_subscribers_leave_the_process_as_it_was(broker: IdleBroker, visit: Visit) -> None:
    system = broker.system()

    def visit_once() -> None:
        visit(broker.address, lambda: eventually(broker.subscribers, SUBSCRIBERS))
        eventually(broker.subscribers, 0)

    visit_once()  # what is made once, such as the interpreter's heap, is made here
    threads, memory_bytes = system.num_threads(), system.memory_info().rss
    for _ in range(ROUNDS):
        visit_once()
    eventually(system.num_fds, broker.idle_descriptors)
    assert system.num_threads() <= threads
    assert system.memory_info().rss - memory_bytes < MEMORY_MAX_BYTES


def test_subscriptions_cancelled_at_random_points_leave_nothing(broker: IdleBroker) -> None:
    """In the same write as the request, before or after its headers, while messages are on their way, or never."""
    dice = random.Random(20260101)
    with Wire(broker.address) as publisher, Wire(broker.address) as wire:
        open_streams = []
        for n in range(SUBSCRIBERS // 2):
            stream = wire.prepare("/broker.Broker/Subscribe", pb.SubscribeRequest(subject=f"orders.{n % 3}"))
            fate = dice.randrange(5)
            if fate == 0:
                wire.cancel(stream)
                continue
            if fate == 1:
                wire.round_trip()
            if fate == 2:
                wire.stand(stream)
            if fate == 3:
                publisher.published(publisher.publish(f"orders.{n % 3}"))
            open_streams.append(stream)
            if len(open_streams) > 50:
                dice.shuffle(open_streams)
                wire.cancel(*open_streams[:40])
                del open_streams[:40]
        wire.round_trip()
        eventually(broker.subscribers, len(open_streams))
    eventually(broker.subscribers, 0)
    eventually(broker.system().num_fds, broker.idle_descriptors)


def test_requests_broken_off_anywhere_leave_nothing(broker: IdleBroker) -> None:
    request = pb.PublishRequest(subject="orders", body=bytes(1000))
    for cut in range(0, 1200, 30):
        wire = Wire(broker.address)
        wire.round_trip()
        wire.prepare("/broker.Broker/Publish", request)
        wire.socket.sendall(wire.h2.data_to_send()[:cut])
        wire.break_off()
    eventually(broker.system().num_fds, broker.idle_descriptors)


# -- in this process, where tasks and objects can be counted ----------------------------------------------------


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@visits
async def test_a_thousand_subscribers_leave_no_task(visit: Visit) -> None:
    with trio.fail_after(SAFETY_S):
        async with served("memory:") as (broker, address):
            before = living_tasks()
            standing: list[int] = []
            await trio.to_thread.run_sync(visit, address, lambda: standing.append(broker.subscribers))
            while broker.subscribers or living_tasks() > before:  # the last of them may still be on their way out
                await trio.lowlevel.checkpoint()
            assert standing == [SUBSCRIBERS]


async def test_calls_leave_no_cycles_of_objects() -> None:
    """The process looks for those rarely, and each could hold on to a body of megabytes."""
    async with served("memory:") as (_, address), connect(address) as client:

        async def use_everything() -> None:
            async with client.subscribe("orders") as messages:
                for expiration in (0, 1, None):
                    await client.publish("orders", b"x", expiration)
                    await anext(messages)
            id_ = await client.publish("orders", b"x", None)
            await client.fetch("orders", id_)
            with pytest.raises(ExpiredId):
                await client.fetch("orders", 1)
            with trio.move_on_after(0):
                await client.publish("orders", b"cancelled")

        await use_everything()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                await use_everything()
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            ours = [found for found in gc.garbage if type(found).__module__.startswith(("trio_broker", "persistence"))]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert ours == []
