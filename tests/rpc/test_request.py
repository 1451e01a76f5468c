"""The header section of a request: what is malformed, what is metadata, how long a call may take."""

from base64 import b64encode
from contextlib import suppress

import pytest
from grpc_peer import ROUTES, GrpcPeer
from h2_peer import REQUEST
from hypothesis import given
from hypothesis import strategies as st

from trio_broker.rpc.connection import MalformedRequest
from trio_broker.rpc.request import NotGrpc, Request, RequestParser, TimedRequest, parse_timeout

FIELDS = [(name.encode(), value.encode()) for name, value in REQUEST]


def parsed(*more, without=()):
    fields = [(name, value) for name, value in FIELDS if name not in without]
    return RequestParser(ROUTES.get).parse([*fields, *more])


def test_what_a_call_needs_to_know():
    request = parsed((b"user-agent", b"me"), (b"grpc-encoding", b"gzip"), (b"content-length", b"12"))
    assert isinstance(request, Request)
    assert request.route is ROUTES["/toy.Toy/Echo"]
    assert (request.path, request.scheme, request.authority) == ("/toy.Toy/Echo", "http", "localhost")
    assert (request.content_type, request.user_agent, request.encoding) == ("application/grpc", "me", "gzip")
    assert (request.content_length, request.metadata) == (12, ())


def test_the_authority_may_be_a_host_header():
    assert parsed((b"host", b"there"), without=[b":authority"]).authority == "there"


# section 8.3


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"])
def test_pseudo_headers_that_must_be_there_once_and_with_a_value(name):
    for fields in (
        [field for field in FIELDS if field[0] != name],
        [(name, dict(FIELDS)[name]), *FIELDS],
        [field if field[0] != name else (name, b"") for field in FIELDS],
    ):
        with pytest.raises(MalformedRequest):
            RequestParser(ROUTES.get).parse(fields)


@pytest.mark.parametrize("name", [b":status", b":protocol", b":", b":Path"])
def test_pseudo_headers_that_must_not_be_there(name):
    with pytest.raises(MalformedRequest):
        RequestParser(ROUTES.get).parse([(name, b"x"), *FIELDS])


@pytest.mark.parametrize("regular", [(b"x", b"y"), (b"grpc-timeout", b"1S")])
def test_pseudo_headers_come_first(regular):
    with pytest.raises(MalformedRequest):
        RequestParser(ROUTES.get).parse([*FIELDS[:2], regular, *FIELDS[2:]])


# section 8.2


@pytest.mark.parametrize("name", [b"", b"X", b"x y", b"x\0", b"x:", b"\x7f", b"x\x80", b"x\n"])
def test_names_that_no_header_may_have(name):
    with pytest.raises(MalformedRequest):
        parsed((name, b"value"))


@pytest.mark.parametrize("value", [b"\0", b"a\rb", b"a\nb", b" a", b"a ", b"\ta", b"a\t"])
@pytest.mark.parametrize("name", [b"x", b"content-type"])
def test_values_that_no_header_may_have(name, value):
    with pytest.raises(MalformedRequest):
        parsed((name, value))


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"close"),
        (b"keep-alive", b"5"),
        (b"proxy-connection", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
    ],
    ids=lambda field: field[0].decode(),
)
def test_headers_of_one_hop(field):
    with pytest.raises(MalformedRequest):
        parsed(field)


@pytest.mark.parametrize("values", [[b"x"], [b"-1"], [b"+1"], [b""], [b"1", b"2"], [b"9" * 20]])
def test_lengths_that_are_none(values):
    with pytest.raises(MalformedRequest):
        parsed(*[(b"content-length", value) for value in values])


def test_a_length_said_twice():
    assert parsed((b"content-length", b"7"), (b"content-length", b"7")).content_length == 7


def test_a_malformed_request_ends_its_stream_only():
    peer = GrpcPeer()
    assert peer.told(peer.headers(1, [*REQUEST, ("connection", "close")])) == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert peer.call(3, b"x").message == b"x"
    assert len(peer.app.calls) == 1


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=8), st.integers(0, 6))
def test_any_fields_are_parsed_or_refused(more, kept):
    with suppress(MalformedRequest):
        assert isinstance(RequestParser(ROUTES.get).parse([*FIELDS[:kept], *more]), Request | TimedRequest | NotGrpc)


# metadata


def test_custom_metadata_in_order():
    request = parsed((b"b", b"1"), (b"a", b"caf\xc3\xa9"), (b"b", b"2"), (b"grpc-trace-bin", b"AA"))
    assert request.metadata == (("b", "1"), ("a", "caf\xc3\xa9"), ("b", "2"))


@pytest.mark.parametrize(
    ("encoded", "values"),
    [
        (b"", [b""]),
        (b"AP8", [b"\x00\xff"]),
        (b"AP8=", [b"\x00\xff"]),
        (b"YQ,YWI=,YWJj", [b"a", b"ab", b"abc"]),
    ],
)
def test_binary_metadata(encoded, values):
    assert parsed((b"x-bin", encoded)).metadata == tuple(("x-bin", value) for value in values)


@pytest.mark.parametrize("encoded", [b"A", b"AAAAA", b"!!!!", b"A P8", b"=AAA", b"AP8=AP8="])
def test_what_is_not_base64(encoded):
    with pytest.raises(MalformedRequest):
        parsed((b"x-bin", encoded))


@given(st.lists(st.tuples(st.sampled_from(["a", "b-bin", "c-bin"]), st.binary(max_size=20)), max_size=5))
def test_metadata_there_and_back(metadata):
    """A client's metadata is read as what it sent; what a server sends of it is read by the client likewise."""
    metadata = [(name, value if name.endswith("-bin") else value.hex()) for name, value in metadata]
    peer = GrpcPeer()
    encoded = [(name, b64(value) if isinstance(value, bytes) else value) for name, value in metadata]
    call = peer.call(1, b"x", more=encoded)
    assert call.request.metadata == tuple(metadata)
    call.trailing_metadata = metadata
    call.reply(b"")
    assert {name.decode(): value.decode() for name, value in peer.answer(1).trailers.items()} == {
        **dict(encoded),
        "grpc-status": "0",
    }


def b64(value):
    return b64encode(value).decode().rstrip("=")


# grpc-timeout


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"4m", 0.004),
        (b"5u", 0.000_005),
        (b"6n", 0.000_000_006),
        (b"0n", 0),
        (b"99999999H", 99_999_999 * 3600),
        (b"00000001S", 1),
    ],
)
def test_timeouts(value, seconds):
    assert parse_timeout(value) == pytest.approx(seconds)
    request = parsed((b"grpc-timeout", value))
    assert isinstance(request, TimedRequest)
    assert request.timeout_s == pytest.approx(seconds)
    assert request.request.metadata == ()


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b"1.5S", b" 1S", b"100000000S", b"1_0S", b"\xb2S"]
)
def test_malformed_timeouts(value):
    assert parse_timeout(value) is None
    if not value.startswith(b" "):
        assert parsed((b"grpc-timeout", value)).status == 400


def test_requests_that_differ_in_their_timeout_share_the_rest():
    parser = RequestParser(ROUTES.get)
    one, two = (parser.parse([*FIELDS, (b"grpc-timeout", value)]) for value in (b"1S", b"2S"))
    assert one.request is two.request
    assert (one.timeout_s, two.timeout_s) == (1, 2)


def test_what_is_remembered_of_requests_is_bounded():
    parser = RequestParser(ROUTES.get)
    for number in range(1000):
        parser.parse([*FIELDS, (b"x", b"%d" % number)])
        assert len(parser._known) <= 256
