"""The encoding by hand is what protobuf would read, for every message."""

from hypothesis import given
from hypothesis import strategies as st

from persistence import Record
from trio_broker._proto import broker_pb2 as pb
from trio_broker.batch import Batch, Replayed
from trio_broker.message import Gap, Message
from trio_broker.service.encoding import (
    ack,
    batch_wire,
    duplicate_response,
    failed_ack,
    failed_result,
    message_response,
    publish_response,
    publish_result,
    varint,
)

ids = st.integers(min_value=1, max_value=2**63 - 1)
times_us = st.integers(min_value=0, max_value=253402300799_000_000)
headers = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.binary(), max_size=3)
messages = st.builds(
    Message, subject=st.text(st.characters(exclude_categories=["Cs"])), id=ids, body=st.binary(), headers=headers,
    published_us=times_us,
)  # fmt: skip


@given(ids, times_us)
def test_a_publish_response_reads_as_protobuf(id_: int, published_us: int) -> None:
    expected = pb.PublishResponse(id=id_)
    expected.published_at.FromMicroseconds(published_us)
    assert pb.PublishResponse.FromString(publish_response(id_, published_us)) == expected
    expected.duplicate = True
    assert pb.PublishResponse.FromString(duplicate_response(id_, published_us)) == expected


@given(messages)
def test_a_message_reads_as_protobuf(message: Message) -> None:
    assert pb.MessageResponse.FromString(message_response(message)) == _expected(message)


def test_a_batch_is_encoded_once_as_framed_messages() -> None:
    batch = Batch([Message("orders", 7, b"a", {}, 1), Message("orders", 8, b"", {"k": b"v"}, 1)])
    wire = batch_wire(batch)
    assert batch_wire(batch) is wire
    read = []
    while wire:
        assert wire[0] == 0, "not compressed"
        size = int.from_bytes(wire[1:5], "big")
        read.append(pb.MessageResponse.FromString(wire[5 : 5 + size]))
        wire = wire[5 + size :]
    assert read == [_expected(message) for message in batch.messages]


def test_gaps_are_sent_in_their_place() -> None:
    gaps = [Gap("orders", 7, 8, "unavailable"), Gap("orders", 10, 12, "live_buffer")]
    batch = Batch.replayed("orders", 6, Replayed("orders", [Record(9, b"a", {}, 1, None)]), gaps, 12)
    wire, read = batch_wire(batch), []
    while wire:
        size = int.from_bytes(wire[1:5], "big")
        read.append(pb.MessageResponse.FromString(wire[5 : 5 + size]))
        wire = wire[5 + size :]
    first, message, last = read
    assert (first.subject, getattr(first.gap, "from"), first.gap.to, first.gap.reason) == (
        "orders",
        7,
        8,
        "unavailable",
    )
    assert message == _expected(batch.messages[0])
    assert (getattr(last.gap, "from"), last.gap.to) == (10, 12)
    assert not last.id
    assert not message.HasField("gap")


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_a_varint_is_minimal(number: int) -> None:
    encoded = varint(number)
    assert sum((byte & 127) << (7 * place) for place, byte in enumerate(encoded)) == number
    assert len(encoded) == max(1, -(-number.bit_length() // 7))


def _expected(message: Message) -> pb.MessageResponse:
    expected = pb.MessageResponse(
        body=message.body, id=message.id, subject=message.subject, headers=dict(message.headers)
    )
    expected.published_at.FromMicroseconds(message.published_us)
    return expected


@given(ids, times_us, st.booleans())
def test_a_publish_result_is_what_protobuf_says(id_: int, us: int, duplicate: bool) -> None:
    response = pb.PublishBatchResponse.FromString(publish_result(id_, us, duplicate=duplicate))
    (result,) = response.results
    assert (result.published.id, result.published.duplicate) == (id_, duplicate)
    assert result.published.published_at.ToMicroseconds() == us


@given(st.integers(1, 10**6), ids, times_us, st.booleans())
def test_an_ack_is_what_protobuf_says(count: int, id_: int, us: int, duplicate: bool) -> None:
    (found,) = pb.PublishStreamResponse.FromString(ack(count, id_, us, duplicate=duplicate)).acks
    assert (found.count, found.first_id, found.duplicate) == (count, id_, duplicate)
    assert found.published_at.ToMicroseconds() == us


def test_failures_are_what_protobuf_says() -> None:
    failure = pb.Failure(code=3, message="x" * 300, reason="INVALID_SUBJECT", metadata={"limit": "1"})
    encoded = failure.SerializeToString()
    assert pb.PublishBatchResponse.FromString(failed_result(encoded)).results[0].failed == failure
    (found,) = pb.PublishStreamResponse.FromString(failed_ack(300, encoded)).acks
    assert (found.count, found.failed) == (300, failure)
