"""Statuses as trailers (gRPC over HTTP/2, "Responses")."""

from base64 import b64decode
from urllib.parse import unquote

import hpack
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import GrpcPeer
from hypothesis import given
from hypothesis import strategies as st
from purerpc import Status, StatusCode

from trio_broker._proto.google.rpc.status_pb2 import Status as RichStatus
from trio_broker.rpc.status import CODE_NAMES, DetailedStatus, Refusals, trailers


def fields(status, metadata=()):
    return dict(hpack.Decoder().decode(trailers(status, metadata), raw=True))


def test_the_codes():
    assert [StatusCode[name].value for name in CODE_NAMES] == list(range(17))


@pytest.mark.parametrize("code", StatusCode)
def test_a_status_without_a_text(code):
    assert fields(Status(code)) == {b"grpc-status": b"%d" % code.value}


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ('plain text ~!"#', b'plain text ~!"#'),
        ("100 %", b"100 %25"),
        ("%41", b"%2541"),
        ("a\nb\tc", b"a%0Ab%09c"),
        ("café", b"caf%C3%A9"),
        ("\x7f", b"%7F"),
        ("😀", b"%F0%9F%98%80"),
        ("\udcff", b"?"),
    ],
)
def test_a_text_is_escaped(text, sent):
    assert fields(Status(StatusCode.ABORTED, text))[b"grpc-message"] == sent


@given(st.text(max_size=300))
def test_any_text_arrives(text):
    sent = fields(Status(StatusCode.ABORTED, text)).get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in sent)
    assert unquote(sent.decode()) == text.encode(errors="replace").decode()


def test_a_long_text_is_cut_between_characters():
    sent = fields(Status(StatusCode.ABORTED, "a" + "é" * 1000))[b"grpc-message"]
    assert unquote(sent.decode(), errors="strict") == "a" + "é" * 511


def test_details():
    details = [BytesValue(value=b"one"), BytesValue(value=b"two")]
    sent = fields(DetailedStatus(StatusCode.ABORTED, "nö", "WHY", details), [("x-more", "y")])
    assert sent[b"x-more"] == b"y"
    rich = RichStatus.FromString(b64decode(sent[b"grpc-status-details-bin"] + b"=="))
    assert (rich.code, rich.message) == (StatusCode.ABORTED.value, "nö")
    assert [each.type_url for each in rich.details] == ["type.googleapis.com/google.protobuf.BytesValue"] * 2
    assert [each.value for each in rich.details] == [each.SerializeToString() for each in details]


def test_details_larger_than_a_frame_arrive():
    peer = GrpcPeer()
    peer.decoder.max_header_list_size = 1 << 20
    call = peer.call(1, b"x")
    call.finish(DetailedStatus(StatusCode.ABORTED, "", "WHY", [BytesValue(value=bytes(50_000))]))
    rich = RichStatus.FromString(b64decode(peer.answer(1).trailers[b"grpc-status-details-bin"] + b"=="))
    assert BytesValue.FromString(rich.details[0].value).value == bytes(50_000)


def test_what_the_layer_says_by_itself():
    refusals = Refusals()
    said = [
        refusals.message_too_large(5, 4),
        refusals.malformed("pkg.Message"),
        refusals.deadline_exceeded(),
        refusals.stopping(),
        refusals.internal(),
    ]
    assert [status.status_code.name for status in said] == [
        "RESOURCE_EXHAUSTED",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
        "INTERNAL",
    ]
