"""Header sections of requests, and what of them is parsed further.

Owns:      what a parsed request may look like: grpc-timeout, binary metadata, texts that go back to the peer.
Not here:  header blocks (header_blocks.py), messages (server.py).
"""

import base64
import urllib.parse
from math import isclose

import hpack
from purerpc import Status, StatusCode

from trio_broker.client.exchange import write_timeout
from trio_broker.rpc.connection import MalformedRequest
from trio_broker.rpc.request import NotGrpc, Request, RequestParser, TimedRequest, parse_timeout
from trio_broker.rpc.status import metadata_block, shown, trailers

from .choices import Choices

NAMES = [
    *[b":method", b":scheme", b":path", b":authority", b"content-type", b"te", b"grpc-timeout", b"grpc-encoding"],
    *[b"content-length", b"x-request-id", b"traceparent", b"data-bin", b"x", b"host", b"user-agent", b"connection"],
]
VALUES = [b"POST", b"http", b"/toy.Toy/Echo", b"application/grpc", b"trailers", b"1S", b"AAEC", b"5", b"me", b""]
PARSER = RequestParser({"/toy.Toy/Echo": "route"}.get)


def requests(data: bytes) -> None:
    """Parse what the bytes say in every way that a request's bytes are parsed."""
    choices = Choices(data)
    match choices.below(4):
        case 0:
            _header_section(choices)
        case 1:
            _timeout(choices.bytes(12))
        case 2:
            _metadata(choices)
        case _:
            _texts(choices)


def _header_section(choices: Choices) -> None:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/toy.Toy/Echo")] * choices.below(2)
    fields += [(b"content-type", b"application/grpc")] * choices.below(2)
    while choices.left:
        name = NAMES[at] if (at := choices.below(2 * len(NAMES))) < len(NAMES) else choices.piece()
        value = VALUES[at] if (at := choices.below(2 * len(VALUES))) < len(VALUES) else choices.piece()
        fields.append((name, value))
    try:
        head = PARSER.parse(fields)
        again = PARSER.parse(list(fields))
    except MalformedRequest:
        return
    assert head == again
    assert head.content_length is None or 0 <= head.content_length < 10**19
    request = head
    if isinstance(head, TimedRequest):
        assert 0 <= head.timeout_s < 10**8 * 3600
        request = head.request
    if isinstance(request, NotGrpc):
        assert request.status in (400, 405, 415)
        assert request.text.isascii()
        return
    assert isinstance(request, Request)
    assert all(isinstance(value, bytes) == name.endswith("-bin") for name, value in request.metadata)
    assert len(request.echo) <= 2
    metadata_block(request.echo)
    shown(request.path)


def _timeout(value: bytes) -> None:
    seconds = parse_timeout(value)
    if seconds is None:
        return
    assert 0 <= seconds < 10**8 * 3600
    written = parse_timeout(write_timeout(seconds))
    assert written is not None
    assert isclose(written, min(seconds, 99_999_999), rel_tol=1e-6, abs_tol=1e-6)


def _metadata(choices: Choices) -> None:
    """Binary values arrive as they were sent, padded or not, and several in one field."""
    values = [choices.piece() for _ in range(1 + choices.below(3))]
    padded = choices.below(2)
    coded = [base64.b64encode(value) if padded else base64.b64encode(value).rstrip(b"=") for value in values]
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b"content-type", b"application/grpc")]
    head = PARSER.parse([*fields, (b"data-bin", b",".join(coded))])
    assert isinstance(head, Request)
    assert [value for _, value in head.metadata] == values
    sent = hpack.Decoder(2**20).decode(metadata_block([("data-bin", value) for value in values]), raw=True)
    assert [base64.b64decode(value + b"=" * (-len(value) % 4)) for _, value in sent] == values


def _texts(choices: Choices) -> None:
    """A status text arrives as it was, as far as it is not cut; in a header it is printable ASCII."""
    text = choices.bytes(2000).decode(errors="surrogateescape" if choices.below(2) else "replace")
    assert shown(text).isprintable()
    assert len(shown(text)) <= 100
    fields = dict(hpack.Decoder(2**20).decode(trailers(Status(StatusCode.ABORTED, text)), raw=True))
    message = fields.get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in message)
    cut = text.encode(errors="replace")[:1024].decode(errors="ignore")
    assert urllib.parse.unquote(message.decode()) == cut
