"""Batches and streams of publishes: the Python client, and a broker in this process on a store that a test drives."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trial_store import POISON, TrialStore
from trio.testing import wait_all_tasks_blocked

import persistence
from trio_broker import (
    Aborted,
    Broker,
    BrokerError,
    Conflict,
    ConnectionLost,
    Draft,
    Draining,
    InvalidBatch,
    InvalidId,
    InvalidSubject,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StorageUnavailable,
)
from trio_broker.broker import run_broker
from trio_broker.client import Client, connect
from trio_broker.client.publishing import PublishStream
from trio_broker.config import Config
from trio_broker.errors import NotApplied
from trio_broker.memory import Pressure
from trio_broker.rpc.server import Server
from trio_broker.service.servicer import BrokerService
from trio_broker.service.statuses import BrokerRefusals

SAFETY_S = 20


class Served:
    broker: Broker
    service: BrokerService
    client: Client
    address: str


@asynccontextmanager
async def served(store: TrialStore, **settings: object) -> AsyncGenerator[Served]:
    config = Config.model_construct(**settings)  # unchecked: limits may be smaller than a broker's
    found = Served()
    with trio.fail_after(SAFETY_S):
        async with run_broker(store, config) as found.broker, trio.open_nursery() as nursery:
            server = Server(refusals=BrokerRefusals())
            found.service = BrokerService(found.broker)
            server.add_service(found.service.service)
            port = await nursery.start(server.serve_async)
            found.address = f"127.0.0.1:{port}"
            async with connect(found.address) as found.client:
                yield found
            nursery.cancel_scope.cancel()


def drafts(*bodies: bytes, subject: str = "a", **fields: object) -> list[Draft]:
    return [Draft(subject, body, None, **fields) for body in bodies]  # type: ignore[arg-type]


def told(results: list[int | BrokerError]) -> list[object]:
    return [type(result) if isinstance(result, BrokerError) else result for result in results]


async def receive(stream: PublishStream, count: int) -> list[object]:
    return told([await anext(stream) for _ in range(count)])


async def appends(store: TrialStore, count: int) -> None:
    """Wait until that many appends have begun."""
    while len(store.appends) < count:
        await trio.lowlevel.checkpoint()


async def queued(broker: Broker, count: int) -> None:
    """Wait until that many messages are queued."""
    while broker.committer.queued_messages < count:
        await trio.lowlevel.checkpoint()


async def test_a_batch_in_process_and_over_grpc() -> None:
    mixed = [*drafts(b"1", b"2"), Draft("", b""), *drafts(b"3", subject="b"), *drafts(b"4")]
    async with served(TrialStore()) as it:
        assert told(await it.broker.publish_batch(mixed)) == [1, 2, InvalidSubject, 1, 3]
        assert told(await it.client.publish_batch(mixed)) == [4, 5, InvalidSubject, 2, 6]
        assert told(await it.broker.publish_batch(mixed[:3], atomic=True)) == [7, 8, InvalidSubject]
        assert await it.client.publish_batch([]) == []
        with pytest.raises(InvalidBatch):
            await it.broker.publish_batch(drafts(*[b""] * 10_001))


async def test_an_atomic_batch_that_the_store_refuses_fails_as_one_and_others_do_not() -> None:
    store = TrialStore()
    async with served(store) as it:
        batch = [*drafts(b"1", POISON, b"3"), *drafts(b"x", b"y", subject="b")]
        assert told(await it.client.publish_batch(batch, atomic=True)) == [Rejected] * 3 + [1, 2]
        assert told(await it.client.publish_batch(batch)) == [1, Rejected, 2, 3, 4]
        invalid = [*drafts(b"1"), Draft("a", b"", -1), *drafts(b"x", subject="b")]
        assert told(await it.broker.publish_batch(invalid, atomic=True))[::2] == [Aborted, 5]


async def test_who_of_an_atomic_batch_expects_an_id_that_its_own_messages_take_hears_so() -> None:
    async with served(TrialStore()) as it:
        batch = [Draft("a", b"1", expected_last_id=0), Draft("a", b"2", expected_last_id=0)]
        other, at_fault = await it.client.publish_batch(batch, atomic=True)
        assert isinstance(other, Aborted)
        assert isinstance(at_fault, Conflict)
        assert at_fault.metadata == {"last_id": "0"}
        assert "others of the batch go before this message" in str(at_fault)


async def test_an_atomic_run_is_never_split_over_flushes() -> None:
    store = TrialStore()
    async with served(store, flush_messages=10) as it:
        batch = [*drafts(*[b"a"] * 30), *drafts(*[b"b"] * 7, subject="b"), *drafts(*[b"c"] * 7, subject="c")]
        assert told(await it.client.publish_batch(batch, atomic=True)) == [*range(1, 31), *range(1, 8), *range(1, 8)]
    assert [len(flush) for flush in store.appends] == [30, 7, 7]


async def test_a_batch_that_fails_as_a_whole_in_a_way_to_be_tried_again_is_an_error_of_the_call() -> None:
    store = TrialStore()
    async with served(store) as it:
        store.plan.append(persistence.StoreUnavailable("gone"))
        with pytest.raises(StorageUnavailable):
            await it.client.publish_batch(drafts(b"1", b"2"))
        await it.broker.drain()
        with pytest.raises(Draining):
            await it.client.publish_batch(drafts(b"1", b"2"))


async def test_the_deadline_of_a_batch_takes_it_back_if_the_store_has_not_got_it() -> None:
    store = TrialStore()
    async with served(store) as it, trio.open_nursery() as nursery:
        store.hold()
        nursery.start_soon(it.broker.publish_batch, drafts(b"flying"))
        await appends(store, 1)
        call = await it.client._channel.start("/broker.Broker/PublishBatch", b"\x0a\x03\x0a\x01a" * 3, timeout_s=0.01)
        with pytest.raises(NotApplied):
            await call.receive_one()
        store.release()
    assert store.appended_bodies() == [[b"flying"]]


async def test_the_deadline_of_a_batch_that_the_store_has_got_says_nothing() -> None:
    store = TrialStore()
    async with served(store) as it:
        store.hold()
        call = await it.client._channel.start("/broker.Broker/PublishBatch", b"\x0a\x03\x0a\x01a", timeout_s=0.05)
        await appends(store, 1)
        with pytest.raises(OutcomeUnknown):
            await call.receive_one()
        store.release()


async def test_a_cancelled_batch_in_process_is_taken_back() -> None:
    store = TrialStore()
    async with served(store) as it, trio.open_nursery() as nursery:
        store.hold()
        nursery.start_soon(it.broker.publish_batch, drafts(b"flying"))
        await appends(store, 1)
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(it.broker.publish_batch, drafts(*[b"x"] * 100))
            await wait_all_tasks_blocked()
            assert it.broker.committer.queued_messages == 100
            cancelled.cancel_scope.cancel()
        assert it.broker.committer.queued_messages == 0
        store.release()


@pytest.mark.parametrize("lanes", [1, 2])
async def test_acknowledgements_come_in_order(lanes: int) -> None:
    store = TrialStore(lanes=lanes)
    async with served(store, flush_messages=7) as it, it.client.publish_stream() as stream:
        subjects = "abcde"
        mixed = [draft for _ in range(200) for subject in subjects for draft in drafts(b"x", subject=subject)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, mixed)
            results = await receive(stream, len(mixed))
        assert results == [number for number in range(1, 201) for _ in subjects]
        await stream.finish()
        assert await stream.receive_some() == []


async def test_errors_do_not_end_a_stream() -> None:
    store = TrialStore()
    async with served(store) as it, it.client.publish_stream() as stream:
        await stream.send([*drafts(b"1"), Draft("", b""), *drafts(b"2", POISON, b"3")])
        assert await receive(stream, 5) == [1, InvalidSubject, 2, Rejected, 3]
        store.plan.append(persistence.StoreUnavailable("gone"))
        await stream.send(drafts(b"4", b"5"))
        assert await receive(stream, 2) == [StorageUnavailable] * 2
        await stream.send(drafts(b"6"))
        assert await receive(stream, 1) == [4]


async def test_a_stream_waits_for_room_and_leaves_some_to_others() -> None:
    store = TrialStore()
    async with served(store, queue_messages=100) as it, it.client.publish_stream() as stream:
        store.hold()
        await stream.send(drafts(b"flying"))
        await appends(store, 1)
        for _ in range(20):
            await stream.send(drafts(*[b"x"] * 20))
        assert await it.client.publish_batch([]) == []  # by then all was read
        assert 0 < it.broker.committer.queued_messages <= 50
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.client.publish, "b", b"x")
            await wait_all_tasks_blocked()
            store.release()
        assert await receive(stream, 401) == list(range(1, 402))


async def test_a_client_that_keeps_the_queue_full_does_not_keep_others_out() -> None:
    store = TrialStore()
    results: list[list[object]] = []

    async def publish(client: Client, count: int) -> None:
        try:
            results.append(told(await client.publish_batch(drafts(*[b"x"] * count))))
        except Overloaded:
            results.append([Overloaded] * count)

    async with served(store, queue_messages=1000) as it, connect(it.address) as other:
        store.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, it.client, 1)
            await appends(store, 1)
            for _ in range(10):
                nursery.start_soon(publish, it.client, 128)
            await queued(it.broker, 448)
            while len(results) < 6:  # of three batches and a half something is queued; the others are told at once
                await trio.lowlevel.checkpoint()
            for turn in range(1, 6):
                nursery.start_soon(publish, other, 1)
                await queued(it.broker, 448 + turn)
            store.release()
    refused = sum(result.count(Overloaded) for result in results)
    assert refused == 1280 - 448, "half of the room, in runs of 64"
    assert sum(len(result) for result in results) - refused == 1 + 448 + 5


async def test_a_stream_does_not_wait_for_those_who_have_more_to_say_than_the_store_can_take() -> None:
    store = TrialStore()
    async with (
        served(store, queue_messages=100) as it,
        connect(it.address) as other,
        it.client.publish_stream() as flood,
        other.publish_stream() as stream,
    ):
        store.hold()
        await flood.send(drafts(b"flying"))
        await appends(store, 1)
        for _ in range(20):
            await flood.send(drafts(*[b"x"] * 20))
        assert await it.client.publish_batch([]) == []  # by then all was read
        before = it.broker.committer.queued_messages
        await stream.send(drafts(*[b"y"] * 20, subject="b"))
        assert await other.publish_batch([]) == []
        assert it.broker.committer.queued_messages == before + 20
        store.release()
        assert await receive(stream, 20) == list(range(1, 21))


async def test_a_request_larger_than_the_queue_gets_in_when_it_is_empty() -> None:
    async with served(TrialStore(), queue_messages=10) as it, it.client.publish_stream() as stream:
        await stream.send(drafts(*[b"x"] * 500))
        assert await receive(stream, 500) == list(range(1, 501))
        results = told(await it.client.publish_batch(drafts(*[b"x"] * 12, subject="b")))
        assert results == [*range(1, 11), Overloaded, Overloaded], "a batch cannot wait"


async def test_a_client_that_does_not_read_is_held_back_and_its_connection_is_not() -> None:
    store = TrialStore()
    async with served(store) as it, it.client.publish_stream() as stream:
        store.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, drafts(*[bytes(10_000)] * 300))  # three windows
            await appends(store, 1)
            with pytest.raises(InvalidId):
                await it.client.fetch("a", 99)
            assert nursery.child_tasks, "the window holds the sender back"
            store.release()
            assert await receive(stream, 300) == list(range(1, 301))


async def test_a_stream_that_is_left_takes_back_what_the_store_has_not_got() -> None:
    store = TrialStore()
    async with served(store) as it:
        store.hold()
        async with it.client.publish_stream() as stream:
            await stream.send(drafts(b"flying"))
            await appends(store, 1)
            await stream.send(drafts(*[b"x"] * 10))
            await queued(it.broker, 10)
        while it.broker.committer.queued_messages:
            await trio.lowlevel.checkpoint()
        store.release()
    assert store.appended_bodies() == [[b"flying"]]
    assert not it.service._feeds
    assert not it.broker.on_stopping


async def test_draining_commits_and_acknowledges_what_was_taken_and_says_how_much() -> None:
    store = TrialStore()
    async with served(store) as it, it.client.publish_stream() as idle, it.client.publish_stream() as stream:
        store.hold()
        await stream.send(drafts(b"1", b"2"))
        await appends(store, 1)
        await stream.send(drafts(b"3"))
        while not it.broker.committer.queued_messages:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.broker.drain)
            await wait_all_tasks_blocked()
            store.release()
        assert await receive(stream, 3) == [1, 2, 3]
        for ended, acknowledged in ((stream, "3"), (idle, "0")):
            with pytest.raises(Draining) as caught:
                await ended.receive_some()
            assert caught.value.metadata["acknowledged"] == acknowledged
        with pytest.raises(Draining):
            async with it.client.publish_stream() as late:
                await late.receive_some()


async def test_the_deadline_of_a_stream_is_respected() -> None:
    store = TrialStore()
    async with served(store) as it:
        call = await it.client._channel.open("/broker.Broker/PublishStream", timeout_s=0.05)
        stream = PublishStream(call)
        await stream.send(drafts(b"1"))
        assert await receive(stream, 1) == [1]
        with pytest.raises(NotApplied) as caught:
            await stream.receive_some()
        assert caught.value.metadata["acknowledged"] == "1"


async def test_while_memory_is_short_a_stream_waits_and_goes_on_after_it() -> None:
    async with served(TrialStore()) as it, it.client.publish_stream() as stream:
        it.service.hold(Pressure.HIGH)
        await stream.send(drafts(b"1"))
        assert await it.client.publish("b", b"x") == 1  # it came after that
        assert it.broker.committer.queued_messages == 0
        it.service.hold(Pressure.NONE)
        assert await receive(stream, 1) == [1]


async def test_a_closed_connection_ends_a_stream() -> None:
    async with served(TrialStore()) as it, it.client.publish_stream() as stream:
        await stream.send(drafts(b"1"))
        assert await receive(stream, 1) == [1]
        it.client._channel.lose("gone")
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
