"""Requests of many messages: no more of them are parsed than are accepted."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from trio_broker._proto import broker_pb2 as pb
from trio_broker.publishing import BATCH_MESSAGES_MAX
from trio_broker.rpc.handlers import bind
from trio_broker.service.requests import _cut, batch_request, cut, stream_request
from trio_broker.service.servicer import BrokerService

BOMB = b"\x0a\x00" * (2 * 1024 * 1024)
"""4 MiB, of which protobuf alone makes 190 MiB."""
ELEMENTS = [
    *[b"\x0a\x00", b"\x0a\x02\x18\x01", b"\x0a\x85\x00\x0a\x03a.b", b"\x8a\x00\x00", b"\x8a\x80\x80\x80\x00\x00"],
    pb.PublishBatchRequest(messages=[pb.PublishRequest(subject="a.b", body=bytes(300))]).SerializeToString(),
    pb.PublishBatchRequest(messages=[pb.PublishRequest(subject="a.b", body=bytes(20_000))]).SerializeToString(),
]
OTHERS = [
    b"\x10\x01",
    b"\x10" + b"\xff" * 9 + b"\x01",
    b"\x79" + bytes(8),
    b"\x7d" + bytes(4),
    b"\x7a\x03abc",
    b"\x7b\x10\x01\x7c",
]
BROKEN = [b"\x0a", b"\x0a\x05a", b"\x0f", b"\x7c", b"\xff" * 11, b"\x0a" + b"\xff" * 11, b"\x0a\x81"]


@pytest.mark.parametrize("parse", [batch_request, stream_request])
@pytest.mark.parametrize("element", ELEMENTS)
def test_of_too_many_messages_one_too_many_is_parsed(parse, element):
    assert len(parse(element * (BATCH_MESSAGES_MAX + 1000)).messages) == BATCH_MESSAGES_MAX + 1
    assert len(parse(element * BATCH_MESSAGES_MAX).messages) == BATCH_MESSAGES_MAX


def test_a_bomb_behind_other_fields_is_cut():
    for other in OTHERS:
        assert len(batch_request(other + BOMB).messages) == BATCH_MESSAGES_MAX + 1


@given(st.lists(st.sampled_from(ELEMENTS + OTHERS + BROKEN), min_size=1), st.integers(0, 100))
def test_what_is_not_too_much_is_left_as_it_is(parts, end):
    data = b"".join(parts)
    for each in (data, data[: -end or None]):
        assert cut(each) == _cut(each) == each


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_protobuf_is_refused_by_protobuf(broken):
    with pytest.raises(DecodeError):
        batch_request(
            pb.PublishBatchRequest(messages=[pb.PublishRequest(body=bytes(100_000))]).SerializeToString() + broken
        )


def test_the_broker_parses_batches_so():
    methods = BrokerService(None).service.methods
    bound = methods["PublishBatch"]
    method = bind("broker.Broker", "PublishBatch", bound.method_fn, bound.signature)
    assert len(method.parse(BOMB).messages) == BATCH_MESSAGES_MAX + 1
