"""The encoding by hand is what protobuf would read, for every message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_broker._proto import broker_pb2 as pb
from trio_broker.batch import Backlog, Batch, Replayed
from trio_broker.message import Gap, Message, MessagePage
from trio_broker.service.encoding import (
    RESPONSE_MAX_BYTES,
    ack,
    batch_wire,
    duplicate_response,
    failed_ack,
    failed_result,
    join_together,
    message_response,
    page_response,
    publish_response,
    publish_result,
    read_varint,
    together_wire,
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
    batch = Batch.replayed("orders", 6, Replayed("orders", [(9, b"a", None, 1, None)]), gaps, 12)
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


def responses(wire: bytes) -> list[bytes]:
    """Unframe them."""
    read = []
    while wire:
        assert wire[0] == 0, "not compressed"
        size = int.from_bytes(wire[1:5], "big")
        read.append(wire[5 : 5 + size])
        wire = wire[5 + size :]
    return read


def together(wire: bytes) -> list[list[pb.MessageResponse]]:
    return [list(pb.MessageBatch.FromString(response).messages) for response in responses(wire)]


@given(st.lists(messages, min_size=1, max_size=8), st.integers(0, 2**63 - 10), st.booleans())
def test_many_messages_read_as_protobuf_in_either_encoding(made: list[Message], first_id: int, replayed: bool) -> None:
    """Ids follow one another, as they do; bodies, headers and times differ or not."""
    made = [
        message._replace(subject=made[0].subject, id=first_id + place) for place, message in enumerate(made, start=1)
    ]
    if replayed:
        rows = [(each.id, each.body, each.headers or None, each.published_us, None) for each in made]
        batch = Batch.replayed(made[0].subject, first_id, Replayed(made[0].subject, rows), (), made[-1].id)
        assert list(batch.messages) == made
    else:
        batch = Batch(made)
    expected = [_expected(message) for message in made]
    assert [pb.MessageResponse.FromString(each) for each in responses(batch_wire(batch))] == expected
    assert together(together_wire(batch)) == [expected]
    page = pb.FetchRangeResponse.FromString(page_response(made[0].subject, MessagePage(batch.messages, 2**63 - 1, 7)))
    assert (list(page.messages), page.scanned_to, page.last_id) == (expected, 2**63 - 1, 7)


def test_gaps_have_their_place_among_many_messages_too() -> None:
    row = (9, b"a", None, 1, None)
    batch = Batch.replayed("orders", 6, Replayed("orders", [row]), [Gap("orders", 7, 8, "unavailable")], 9)
    ((gap, message),) = together(together_wire(batch))
    assert (gap.subject, getattr(gap.gap, "from"), gap.gap.to) == ("orders", 7, 8)
    assert message == _expected(Message("orders", 9, b"a", {}, 1))


@pytest.mark.parametrize("sizes", [[3_000_000] * 3, [4_100_000, 10, 10, 4_150_000, 20], [4095] * 2000, [4_194_270]])
def test_what_is_too_large_for_one_response_is_several(sizes: list[int]) -> None:
    batch = Batch([Message("orders", 500 + place, bytes(size), {}, 1) for place, size in enumerate(sizes)])
    wire = together_wire(batch)
    assert max(map(len, responses(wire))) < RESPONSE_MAX_BYTES
    assert [[response.id for response in each] for each in together(wire) if not each] == []
    assert [response.id for each in together(wire) for response in each] == [500 + place for place in range(len(sizes))]
    assert len(together(wire)) <= 1 + 2 * sum(sizes) // RESPONSE_MAX_BYTES


def test_small_batches_become_one_response() -> None:
    batches = [Batch([Message("orders", id_, b"x", {}, 1)]) for id_ in (7, 8, 9)]
    assert join_together([together_wire(batches[0])]) is together_wire(batches[0])
    (joined,) = together(join_together([together_wire(batch) for batch in batches]))
    assert [response.id for response in joined] == [7, 8, 9]


def test_a_second_encoding_is_counted_as_long_as_the_batch_is() -> None:
    backlog = Backlog(10**9)
    batch = Batch([Message("orders", 7, bytes(1000), {}, 1)])
    batch.enter(backlog)
    before = backlog.bytes
    wire = together_wire(batch)
    assert together_wire(batch) is wire
    assert backlog.bytes == before, "one encoding is counted from the beginning"
    other = batch_wire(batch)
    assert backlog.bytes == before + len(other) == batch.memory_bytes
    del batch
    assert backlog.bytes == 0


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_a_varint_is_minimal(number: int) -> None:
    encoded = varint(number)
    assert read_varint(b"?" + encoded + b"?", 1) == (number, 1 + len(encoded))
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


def test_a_second_encoding_is_counted_where_the_batch_is_kept() -> None:
    backlog, elsewhere = Backlog(10**9), Backlog(10**9)
    batch = Batch([Message("orders", 7, bytes(1000), {}, 1)])
    batch.enter(backlog)
    batch_wire(batch)
    batch.count_in(elsewhere)
    first = batch.memory_bytes
    more = len(together_wire(batch))
    assert (backlog.bytes, elsewhere.bytes) == (0, first + more)
    batch.count_in(None)
    assert (backlog.bytes, elsewhere.bytes) == (batch.memory_bytes, 0)
    del batch
    assert backlog.bytes == 0
