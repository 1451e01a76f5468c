"""PublishBatch and PublishStream by grpcio, on each store."""

import asyncio
import threading
from collections.abc import Iterator
from queue import Queue

import grpc
import purerpc
import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess
from e2e_peers import OWN_CONNECTION

from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.google.rpc.error_details_pb2 import ErrorInfo
from trio_broker._proto.google.rpc.status_pb2 import Status

HOUR = 3600


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self.batch = channel.unary_unary(
            "/broker.Broker/PublishBatch",
            pb.PublishBatchRequest.SerializeToString,
            pb.PublishBatchResponse.FromString,
        )
        self.stream = channel.stream_stream(
            "/broker.Broker/PublishStream",
            pb.PublishStreamRequest.SerializeToString,
            pb.PublishStreamResponse.FromString,
        )
        self.fetch = channel.unary_unary(
            "/broker.Broker/Fetch", pb.FetchRequest.SerializeToString, pb.MessageResponse.FromString
        )


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        yield Client(channel)


def drafts(subject: str, *bodies: bytes, **fields: object) -> list[pb.PublishRequest]:
    return [pb.PublishRequest(subject=subject, body=body, expirationSeconds=HOUR, **fields) for body in bodies]


def told(response: pb.PublishBatchResponse) -> list[object]:
    """Ids, or reasons of failures."""
    return [each.failed.reason or each.published.id for each in response.results]


def acked(responses: Iterator[pb.PublishStreamResponse]) -> list[object]:
    """The same of acknowledgements, one for each message."""
    found: list[object] = []
    for response in responses:
        for ack in response.acks:
            found += [ack.failed.reason or ack.first_id + place for place in range(ack.count)]
    return found


def test_a_batch_has_a_result_for_each_message(client: Client, subject: str) -> None:
    other = f"{subject}.other"
    batch = drafts(subject, b"1", b"2") + drafts(other, b"x") + drafts("", b"bad") + drafts(subject, b"3")
    response = client.batch(pb.PublishBatchRequest(messages=batch), timeout=SAFETY_S)
    assert told(response) == [1, 2, 1, "INVALID_SUBJECT", 3]
    assert response.results[3].failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert response.results[0].published.published_at.seconds > 0
    assert client.fetch(pb.FetchRequest(subject=subject, id=3), timeout=SAFETY_S).body == b"3"


def test_an_empty_batch_has_an_empty_answer(client: Client) -> None:
    assert told(client.batch(pb.PublishBatchRequest(), timeout=SAFETY_S)) == []


def test_a_batch_of_too_many_messages_is_refused(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.batch(pb.PublishBatchRequest(messages=[pb.PublishRequest()] * 10_001), timeout=SAFETY_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_large_batch_of_many_subjects_is_appended_in_order(client: Client, subject: str) -> None:
    batch = [each for n in range(1_000) for k in range(3) for each in drafts(f"{subject}.{k}", b"%d" % n)]
    response = client.batch(pb.PublishBatchRequest(messages=batch), timeout=SAFETY_S)
    assert told(response) == [n + 1 for n in range(1_000) for _ in range(3)]


def test_an_atomic_batch_fails_together_for_each_subject(client: Client, subject: str) -> None:
    other = f"{subject}.other"
    conflicting = drafts(subject, b"1") + drafts(subject, b"2", expected_last_id=7) + drafts(other, b"x")
    response = client.batch(pb.PublishBatchRequest(messages=conflicting, atomic=True), timeout=SAFETY_S)
    assert told(response) == ["ABORTED", "CONFLICT", 1]
    assert response.results[1].failed.metadata["last_id"] == "0"
    invalid = [*drafts(subject, b"1"), pb.PublishRequest(subject=subject, expirationSeconds=-1), *drafts(other, b"y")]
    response = client.batch(pb.PublishBatchRequest(messages=invalid, atomic=True), timeout=SAFETY_S)
    assert told(response) == ["ABORTED", "INVALID_EXPIRATION", 2]
    fine = drafts(subject, b"1", expected_last_id=0) + drafts(subject, b"2", expected_last_id=1)
    assert told(client.batch(pb.PublishBatchRequest(messages=fine, atomic=True), timeout=SAFETY_S)) == [1, 2]


def test_too_much_of_one_subject_cannot_be_atomic(client: Client, subject: str) -> None:
    batch = pb.PublishBatchRequest(messages=drafts(subject, *[b""] * 1_001) + drafts(f"{subject}.b", b""), atomic=True)
    assert told(client.batch(batch, timeout=SAFETY_S)) == ["INVALID_BATCH"] * 1_001 + [1]
    batch = pb.PublishBatchRequest(messages=drafts(subject, *[b""] * 1_000), atomic=True)
    assert told(client.batch(batch, timeout=SAFETY_S)) == list(range(1, 1_001))


def test_a_batch_that_is_repeated_with_keys_is_appended_once(client: Client, subject: str) -> None:
    batch = [pb.PublishRequest(subject=subject, keep=True, idempotency_key=f"{n}") for n in range(200)]
    request = pb.PublishBatchRequest(messages=batch, atomic=True)
    assert told(client.batch(request, timeout=SAFETY_S)) == list(range(1, 201))
    again = client.batch(request, timeout=SAFETY_S)
    assert told(again) == list(range(1, 201))
    assert all(each.published.duplicate for each in again.results)


def test_a_stream_is_acknowledged_in_order_and_an_error_does_not_end_it(client: Client, subject: str) -> None:
    def requests() -> Iterator[pb.PublishStreamRequest]:
        yield pb.PublishStreamRequest()
        yield pb.PublishStreamRequest(messages=drafts(subject, b"1", b"2"))
        yield pb.PublishStreamRequest(messages=drafts("", b"bad", b"bad") + drafts(subject, b"3"))
        yield pb.PublishStreamRequest(messages=drafts(f"{subject}.other", b"x") + drafts(subject, b"4"))

    expected = [1, 2, "INVALID_SUBJECT", "INVALID_SUBJECT", 3, 1, 4]
    assert acked(client.stream(requests(), timeout=SAFETY_S)) == expected


def test_a_stream_larger_than_its_window_goes_through(client: Client, subject: str) -> None:
    body = bytes(1000)
    requests = (pb.PublishStreamRequest(messages=drafts(subject, *[body] * 100)) for _ in range(60))
    assert acked(client.stream(requests, timeout=SAFETY_S)) == list(range(1, 6_001))


def test_each_request_is_acknowledged_while_the_stream_stays_open(client: Client, subject: str) -> None:
    queue: Queue[pb.PublishStreamRequest | None] = Queue()
    call = client.stream(iter(queue.get, None), timeout=SAFETY_S)
    for n in range(1, 20):
        queue.put(pb.PublishStreamRequest(messages=drafts(subject, b"x")))
        assert acked(iter([next(call)])) == [n]
    queue.put(None)
    assert list(call) == []


def test_a_stream_with_a_request_that_is_too_long_ends_and_says_what_was_acknowledged(
    client: Client, subject: str
) -> None:
    go_on = threading.Event()

    def requests() -> Iterator[pb.PublishStreamRequest]:
        yield pb.PublishStreamRequest(messages=drafts(subject, b"1", b"2"))
        go_on.wait(SAFETY_S)
        yield pb.PublishStreamRequest(messages=[pb.PublishRequest()] * 10_001)

    call = client.stream(requests(), timeout=SAFETY_S)
    assert acked(iter([next(call)])) == [1, 2]
    go_on.set()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = info_of(caught.value)
    assert (info.reason, dict(info.metadata)) == ("INVALID_BATCH", {"limit": "10000", "acknowledged": "2"})


def info_of(error: grpc.RpcError) -> ErrorInfo:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in Status.FromString(details).details)
    return info


def test_a_stream_by_asyncio(broker: BrokerProcess, subject: str) -> None:
    async def main() -> list[object]:
        async with grpc.aio.insecure_channel(broker.address, OWN_CONNECTION) as channel:
            call = Client(channel).stream()
            found: list[object] = []
            for _ in range(20):
                await call.write(pb.PublishStreamRequest(messages=drafts(subject, *[b"x"] * 100)))
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                found += acked(iter([response]))
            return found

    async def bounded() -> list[object]:
        async with asyncio.timeout(SAFETY_S):
            return await main()

    assert asyncio.run(bounded()) == list(range(1, 2_001))


def test_a_batch_and_a_stream_by_purerpc(broker: BrokerProcess, subject: str) -> None:
    async def main() -> None:
        with trio.fail_after(SAFETY_S):
            host, _, port = broker.address.rpartition(":")
            async with purerpc.insecure_channel(host, int(port)) as channel:
                client = purerpc.Client("broker.Broker", channel)
                batch = await client.rpc("PublishBatch", pb.PublishBatchRequest, pb.PublishBatchResponse)
                await batch.send_message(pb.PublishBatchRequest(messages=drafts(subject, b"1", b"2")))
                await batch.close()
                assert told(await batch.receive_message()) == [1, 2]
                assert await batch.receive_message() is None
                stream = await client.rpc("PublishStream", pb.PublishStreamRequest, pb.PublishStreamResponse)
                for id_ in range(3, 6):
                    await stream.send_message(pb.PublishStreamRequest(messages=drafts(subject, b"x")))
                    assert acked(iter([await stream.receive_message()])) == [id_]
                await stream.close()
                assert await stream.receive_message() is None
            await channel._grpc_socket._socket._stream.aclose()  # purerpc leaves its socket open

    trio.run(main)
