"""SubscribeBatch and FetchRange through each gRPC library, with its default limits, and on each store."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import purerpc
import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_peers import OWN_CONNECTION
from e2e_served import served
from e2e_wire import Exchange, Wire

from trio_broker import AtEnd, Draft, Earliest, Gap, InvalidId, InvalidPosition, connect
from trio_broker._proto import broker_pb2 as pb
from trio_broker.config import Config

BODY_MAX_BYTES = int(Config().body_max_bytes)
RESPONSE_MAX_BYTES = 4 * 1024 * 1024
HOUR = 3600

Read = Callable[[str, pb.SubscribeRequest], list[pb.MessageBatch]]


def read_by_threads(address: str, request: pb.SubscribeRequest) -> list[pb.MessageBatch]:
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        return list(batches(channel)(request, timeout=SAFETY_S))


def read_by_asyncio(address: str, request: pb.SubscribeRequest) -> list[pb.MessageBatch]:
    async def main() -> list[pb.MessageBatch]:
        async with asyncio.timeout(SAFETY_S), grpc.aio.insecure_channel(address, OWN_CONNECTION) as channel:
            return [response async for response in batches(channel)(request)]

    return asyncio.run(main())


def read_by_purerpc(address: str, request: pb.SubscribeRequest) -> list[pb.MessageBatch]:
    async def main() -> list[pb.MessageBatch]:
        with trio.fail_after(SAFETY_S):
            host, _, port = address.rpartition(":")
            async with purerpc.insecure_channel(host, int(port)) as channel:
                stream = await purerpc.Client("broker.Broker", channel).rpc(
                    "SubscribeBatch", pb.SubscribeRequest, pb.MessageBatch
                )
                await stream.send_message(request)
                await stream.close()
                found = []
                while (response := await stream.receive_message()) is not None:
                    found.append(response)
            await channel._grpc_socket._socket._stream.aclose()  # purerpc leaves its socket open
            return found

    return trio.run(main)


def batches(channel: Any) -> Any:
    return channel.unary_stream(
        "/broker.Broker/SubscribeBatch", pb.SubscribeRequest.SerializeToString, pb.MessageBatch.FromString
    )


@pytest.fixture(params=[read_by_threads, read_by_asyncio, read_by_purerpc], ids=["grpcio", "grpcio.aio", "purerpc"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param


@pytest.fixture
def channel(broker: BrokerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        yield channel


def fetch_range(channel: grpc.Channel, subject: str, **fields: int) -> pb.FetchRangeResponse:
    call = channel.unary_unary(
        "/broker.Broker/FetchRange", pb.FetchRangeRequest.SerializeToString, pb.FetchRangeResponse.FromString
    )
    return call(pb.FetchRangeRequest(subject=subject, **fields), timeout=SAFETY_S)


def fill(channel: grpc.Channel, subject: str, bodies: Iterable[bytes], **fields: object) -> list[pb.PublishResult]:
    call = channel.unary_unary(
        "/broker.Broker/PublishBatch", pb.PublishBatchRequest.SerializeToString, pb.PublishBatchResponse.FromString
    )
    fields = fields or {"expirationSeconds": HOUR}
    messages = [pb.PublishRequest(subject=subject, body=body, **fields) for body in bodies]
    results = call(pb.PublishBatchRequest(messages=messages), timeout=SAFETY_S).results
    assert all(result.published.id for result in results)
    return list(results)


def ids(responses: Iterable[pb.MessageBatch]) -> list[int]:
    found = []
    for response in responses:
        assert response.messages, "one at least"
        assert response.ByteSize() < RESPONSE_MAX_BYTES
        found += [message.id for message in response.messages]
    return found


def test_a_log_is_read_from_where_and_to_where_it_is_asked(
    broker: BrokerProcess, channel: grpc.Channel, read: Read, subject: str
) -> None:
    published = fill(channel, subject, [b"%d" % n for n in range(1, 3001)])
    whole = list(range(1, 3001))
    published_at = published[0].published.published_at
    soon = datetime.now(UTC) + timedelta(hours=1)
    for start, expected in (
        ({"earliest": True, "at_end": True}, whole),
        ({"after_id": 0, "until_id": 2999}, whole[:2999]),
        ({"after_id": 2990, "at_end": True}, whole[2990:]),
        ({"last": 5, "at_end": True}, whole[-5:]),
        ({"at": published_at, "until_id": 10}, whole[:10]),
        ({"at": soon, "at_end": True}, []),
        ({"at_end": True}, []),
        ({"after_id": 3000, "until_id": 3000}, []),
    ):
        request = pb.SubscribeRequest(subject=subject, **start)
        responses = read(broker.address, request)
        assert ids(responses) == expected, start
        assert len(responses) <= 100, "many to a response"
        if expected:
            message = responses[0].messages[0]
            assert (message.subject, message.body) == (subject, b"%d" % expected[0])
            assert message.published_at.ToMicroseconds() >= published_at.ToMicroseconds()


def test_responses_stay_below_what_clients_take_by_default(
    broker: BrokerProcess, channel: grpc.Channel, read: Read, subject: str
) -> None:
    for size in (BODY_MAX_BYTES, 10, BODY_MAX_BYTES, 10, 10):
        fill(channel, subject, [bytes(size - 200 if size > 200 else size)])
    fill(channel, subject, [bytes(4096)] * 900)
    request = pb.SubscribeRequest(subject=subject, earliest=True, at_end=True)
    assert ids(read(broker.address, request)) == list(range(1, 906))


def test_the_largest_message_fits_a_response_of_each_kind(
    broker: BrokerProcess, channel: grpc.Channel, read: Read, subject: str
) -> None:
    publish = channel.unary_unary(
        "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
    )
    subject = subject.ljust(255, "s")
    headers = {f"{n:03}".ljust(8, "h"): bytes(248) for n in range(64)}
    message = pb.PublishRequest(subject=subject, body=bytes(BODY_MAX_BYTES), headers=headers, keep=True)
    assert publish(message, timeout=SAFETY_S).id == 1
    (response,) = read(broker.address, pb.SubscribeRequest(subject=subject, earliest=True, at_end=True))
    assert ids([response]) == [1]
    assert dict(response.messages[0].headers) == headers
    assert list(fetch_range(channel, subject).messages) == list(response.messages)


def test_gaps_are_in_their_place(broker: BrokerProcess, channel: grpc.Channel, read: Read, subject: str) -> None:
    fill(channel, subject, [b""], keep=True)
    fill(channel, subject, [b"", b""], expirationSeconds=0)
    fill(channel, subject, [b""], keep=True)
    request = pb.SubscribeRequest(subject=subject, earliest=True, at_end=True, report_gaps=True)
    first, gap, last = [message for response in read(broker.address, request) for message in response.messages]
    assert (first.id, last.id) == (1, 4)
    assert (getattr(gap.gap, "from"), gap.gap.to, gap.gap.reason, gap.subject) == (2, 3, "unavailable", subject)


def test_what_is_published_now_comes_as_it_does_singly(channel: grpc.Channel, subject: str) -> None:
    call = batches(channel)(pb.SubscribeRequest(subject=subject, until_id=500), timeout=SAFETY_S)
    call.initial_metadata()
    for _ in range(5):
        fill(channel, subject, [b"x"] * 100, expirationSeconds=0)
    assert ids(call) == list(range(1, 501))


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"after_id": 99}, "INVALID_ARGUMENT", "INVALID_ID"),
        ({"after_id": -1}, "INVALID_ARGUMENT", "INVALID_POSITION"),
        ({"until_id": -5}, "INVALID_ARGUMENT", "INVALID_POSITION"),
    ],
)
def test_what_no_log_has_is_refused(
    broker: BrokerProcess, subject: str, fields: dict[str, int], code: str, reason: str
) -> None:
    with Wire(broker.address) as wire:
        wire.published(wire.publish(subject))
        for failure in (
            wire.failed(subscribe_batch(wire, subject, **fields)),
            wire.failed(start_range(wire, subject, **fields)),
        ):
            assert failure.told == (code, reason)
        assert wire.failed(start_range(wire, subject, max_messages=-1)).told == ("INVALID_ARGUMENT", "INVALID_POSITION")
        assert wire.failed(start_range(wire, "no subject")).told == ("INVALID_ARGUMENT", "INVALID_SUBJECT")
        assert wire.failed(subscribe_batch(wire, "no subject")).told == ("INVALID_ARGUMENT", "INVALID_SUBJECT")


def subscribe_batch(wire: Wire, subject: str, **fields: object) -> Exchange:
    return wire.start("/broker.Broker/SubscribeBatch", pb.SubscribeRequest(subject=subject, **fields))


def start_range(wire: Wire, subject: str, **fields: int) -> Exchange:
    return wire.start("/broker.Broker/FetchRange", pb.FetchRangeRequest(subject=subject, **fields))


def test_pages_of_a_log_are_whole_together(channel: grpc.Channel, subject: str) -> None:
    fill(channel, subject, [b"x" * 1000] * 3000)
    for _ in range(3):
        fill(channel, subject, [bytes(1_200_000)] * 3)
    found: list[int] = []
    after_id, pages = 0, 0
    while True:
        page = fetch_range(channel, subject, after_id=after_id)
        assert page.ByteSize() < RESPONSE_MAX_BYTES
        found += [message.id for message in page.messages]
        after_id, pages = page.scanned_to, pages + 1
        if page.scanned_to >= page.last_id:
            break
    assert found == list(range(1, 3010))
    assert 4 <= pages <= 8
    page = fetch_range(channel, subject, after_id=10, until_id=12)
    assert ([message.id for message in page.messages], page.scanned_to, page.last_id) == ([11, 12], 12, 3009)
    page = fetch_range(channel, subject, after_id=10, max_messages=1)
    assert ([message.id for message in page.messages], page.scanned_to) == ([11], 11)
    assert fetch_range(channel, f"{subject}.none") == pb.FetchRangeResponse()


async def test_the_python_client_reads_pages_and_in_batches(broker: BrokerProcess, subject: str) -> None:
    with trio.fail_after(SAFETY_S):
        async with connect(broker.address) as client:
            await client.publish_batch([Draft(subject, b"%d" % n, None, {"n": b"%d" % n}) for n in range(1, 501)])
            await client.publish(subject, b"", 0)
            page = await client.fetch_range(subject, 498)
            assert ([message.id for message in page.messages], page.scanned_to, page.last_id) == ([499, 500], 501, 501)
            assert page.messages[0] == await client.fetch(subject, 499)
            assert (await client.fetch_range(subject, 0, 2, 1)).scanned_to == 1
            for after_id, error in ((502, InvalidId), (-1, InvalidPosition), (2**63, InvalidPosition)):
                with pytest.raises(error):
                    await client.fetch_range(subject, after_id)
            async with client.subscribe(subject, start=Earliest(), until=AtEnd(), report_gaps=True) as stream:
                got = [item async for item in stream]
            assert got[-1] == Gap(subject, 501, 501, "unavailable")
            assert got[497:500] == [await client.fetch(subject, 498), *page.messages]


def test_a_client_that_does_not_read_costs_little_and_gets_all_when_it_reads(
    broker: BrokerProcess, channel: grpc.Channel, subject: str
) -> None:
    fill(channel, subject, [bytes(1000)] * 3000)
    with Wire(broker.address, window=100_000, generous=False) as wire, Wire(broker.address) as healthy:
        call = subscribe_batch(wire, subject, earliest=True, until_id=6000)
        wire.read_until(lambda: len(call.data) == 100_000)
        other = subscribe_batch(healthy, subject, until_id=6000)
        healthy.stand(other)
        for _ in range(3):
            fill(channel, subject, [bytes(1000)] * 1000)
        healthy.finish(other)
        assert received(other) == list(range(3001, 6001))
        assert len(call.data) == 100_000
        wire.open_window(call, 2**26)
        wire.h2.increment_flow_control_window(2**26)
        wire.finish(call)
        assert received(call) == list(range(1, 6001))


def received(call: Exchange) -> list[int]:
    assert call.failure() is None
    return ids(pb.MessageBatch.FromString(message) for message in call.messages())


def test_a_slow_client_is_cut_if_it_asked_for_that(broker: BrokerProcess, channel: grpc.Channel, subject: str) -> None:
    with Wire(broker.address, window=10_000, generous=False) as wire:
        call = subscribe_batch(wire, subject, slow="FAIL")
        wire.stand(call)
        for _ in range(3):
            fill(channel, subject, [bytes(1000)] * 1000, expirationSeconds=0)
        wire.open_window(call, 2**26)
        failure = wire.failed(call)
        assert failure.told == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
        got = ids(pb.MessageBatch.FromString(message) for message in call.messages())
        assert got == list(range(1, len(got) + 1))
        assert failure.metadata["last_delivered_id"] == str(got[-1])


def test_both_calls_are_counted_by_their_names(broker: BrokerProcess, channel: grpc.Channel, subject: str) -> None:
    def deliveries() -> float:
        return broker.metric("trio_broker_messages_delivered_total")

    def count(method: str) -> float:
        return broker.metric("method_count", method=method, status="OK")

    fill(channel, subject, [b"x"] * 100)
    fetch_range(channel, subject)
    assert ids(batches(channel)(pb.SubscribeRequest(subject=subject, last=1, at_end=True), timeout=SAFETY_S)) == [100]
    eventually(lambda: broker.metric("trio_broker_calls_in_flight", method="SubscribeBatch"), 0)
    before, streams, pages = deliveries(), count("SubscribeBatch"), count("FetchRange")
    request = pb.SubscribeRequest(subject=subject, earliest=True, at_end=True)
    assert len(ids(batches(channel)(request, timeout=SAFETY_S))) == 100
    fetch_range(channel, subject)
    eventually(deliveries, before + 100)
    eventually(lambda: count("SubscribeBatch"), streams + 1)
    eventually(lambda: count("FetchRange"), pages + 1)


@asynccontextmanager
async def few_at_once(count: int) -> AsyncGenerator[str]:
    async with served("memory:", fetches_at_once=count) as (broker, address):
        for number in range(200):
            await broker.publish("a", b"%d" % number, None)
        yield address


async def test_pages_take_turns_where_memory_is_short() -> None:
    def fetch_all(address: str) -> list[int]:
        with Wire(address) as wire:
            calls = [start_range(wire, "a", after_id=after_id) for after_id in range(10)]
            wire.finish(*calls)
            return [len(pb.FetchRangeResponse.FromString(call.messages()[0]).messages) for call in calls]

    async with few_at_once(1) as address:
        assert await trio.to_thread.run_sync(fetch_all, address) == [200 - n for n in range(10)]
