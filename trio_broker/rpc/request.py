"""The header section of a gRPC request (RFC 9113, section 8; gRPC over HTTP/2, "Requests").

Owns:      what makes a header section malformed, what makes it not gRPC, and what a call needs of it.
Not here:  HPACK (hpack.py), frames (connection.py), the call itself (call.py).

The gRPC spec: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from trio_broker.rpc.compression import accepts
from trio_broker.rpc.connection import Fields, MalformedRequest
from trio_broker.rpc.status import shown

_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_NAME_BYTES = bytes(set(range(0x21, 0x7F)) - set(range(0x41, 0x5B)) - {0x3A})
_BAD_IN_VALUE = (b"\0", b"\r", b"\n")
_KNOWN_REQUESTS = 256
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
_ECHOED = {
    REQUEST_ID: re.compile(r"[!-~]{1,128}"),
    TRACEPARENT: re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"),
}
"""What identifies a call in logs and traces (https://www.w3.org/TR/trace-context/), and what it may look like."""
_SOME_TIMEOUT = (b"grpc-timeout", b"")
"""Stands for a timeout, so that requests that differ in nothing else are equal."""


class NotGrpc(NamedTuple):
    """A well-formed HTTP/2 request that is no gRPC call, and what to tell the client."""

    content_length: int | None
    status: int
    text: str


class Request(NamedTuple):
    """What the header section of a call says. Shared by all calls with the same headers: immutable."""

    content_length: int | None
    path: str
    scheme: str
    authority: str | None
    content_type: str
    user_agent: str | None
    encoding: str | None
    """grpc-encoding: how messages with the compressed flag are compressed."""
    accept_encoding: str | None
    compresses: bool
    """Replies are to be compressed, and the client understands them."""
    metadata: tuple[tuple[str, str | bytes], ...]
    """Custom metadata in order; values of ``-bin`` names decoded."""
    echo: tuple[tuple[str, str], ...]
    """The part of it that identifies the call, and goes back in the trailers: at most one of each name."""
    route: object
    """What `RequestParser.route` found for the path."""


class TimedRequest(NamedTuple):
    """A request with a deadline, which differs from call to call."""

    content_length: int | None
    request: Request
    timeout_s: float


class RequestParser:
    """Check and parse header sections. One per server.

    Args:
        route: finds what serves a path; None: nothing does. What has a true ``compressed`` compresses its replies.
        compresses: all replies are compressed.
    """

    def __init__(self, route: Callable[[str], object], *, compresses: bool = False) -> None:
        self._route = route
        self._compresses = compresses
        self._known: dict[tuple[tuple[bytes, bytes], ...], Request | NotGrpc] = {}

    def parse(self, fields: Fields) -> Request | TimedRequest | NotGrpc:
        """Return what a request's header fields say.

        Raises:
            MalformedRequest: RFC 9113, sections 8.2 and 8.3.
        """
        timeout = None
        for index, (name, value) in enumerate(fields):
            if name == b"grpc-timeout":
                timeout = value
                fields = [*fields[:index], _SOME_TIMEOUT, *fields[index + 1 :]]
                break
        key = tuple(fields)
        request = self._known.get(key)
        if request is None:
            request = self._parse(fields)
            if len(self._known) >= _KNOWN_REQUESTS:
                self._known.clear()
            self._known[key] = request
        if timeout is None or isinstance(request, NotGrpc):
            return request
        seconds = parse_timeout(timeout)
        if seconds is None:
            return NotGrpc(request.content_length, 400, f"malformed grpc-timeout: {shown(timeout.decode('latin-1'))}")
        return TimedRequest(request.content_length, request, seconds)

    def _parse(self, fields: Fields) -> Request | NotGrpc:
        pseudo, regular = _split(fields)
        length = _content_length(regular)
        if pseudo[b":method"] != b"POST":
            return NotGrpc(length, 405, "a gRPC call is a POST")
        content_type = next((value for name, value in regular if name == b"content-type"), b"")
        if content_type not in (b"application/grpc", b"application/grpc+proto") and not content_type.startswith(
            (b"application/grpc+", b"application/grpc;")
        ):
            return NotGrpc(length, 415, "the content-type of a gRPC call is application/grpc")
        known = {name: value.decode("latin-1") for name, value in regular}
        path = pseudo[b":path"].decode("latin-1")
        authority = pseudo.get(b":authority")
        metadata = tuple(_metadata(regular))
        accept_encoding = known.get(b"grpc-accept-encoding")
        route = self._route(path)
        return Request(
            content_length=length,
            path=path,
            scheme=pseudo[b":scheme"].decode("latin-1"),
            authority=authority.decode("latin-1") if authority is not None else known.get(b"host"),
            content_type=known[b"content-type"],
            user_agent=known.get(b"user-agent"),
            encoding=known.get(b"grpc-encoding"),
            accept_encoding=accept_encoding,
            compresses=(self._compresses or getattr(route, "compressed", False)) and accepts(accept_encoding),
            metadata=metadata,
            echo=tuple(_echo(metadata)),
            route=route,
        )


def _echo(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[tuple[str, str]]:
    """Pick what identifies the call. What is malformed, or not the only one of its name, identifies nothing."""
    for name, pattern in _ECHOED.items():
        values = [value for given, value in metadata if given == name]
        if len(values) == 1 and isinstance(values[0], str) and pattern.fullmatch(values[0]):
            yield name, values[0]


def parse_timeout(value: bytes) -> float | None:
    """Return a grpc-timeout in seconds; None if it is malformed ("TimeoutValue": at most 8 digits, and a unit)."""
    digits, unit = value[:-1], _UNIT_S.get(value[-1:])
    if unit is None or not 1 <= len(digits) <= 8 or not digits.isdigit():
        return None
    return int(digits) * unit


def _split(fields: Fields) -> tuple[dict[bytes, bytes], Fields]:
    """Separate and check pseudo-header fields (section 8.3) and regular ones (section 8.2)."""
    pseudo: dict[bytes, bytes] = {}
    for position, (name, value) in enumerate(fields):
        if name[:1] != b":":
            regular = fields[position:]
            break
        if name not in (b":method", b":scheme", b":path", b":authority") or name in pseudo:
            raise MalformedRequest(f"pseudo-header {name.decode('latin-1')}")
        pseudo[name] = value
    else:
        regular = []
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise MalformedRequest("a request needs :method, :scheme and :path")
    for name, value in regular:
        if not name or name.translate(None, _NAME_BYTES):
            raise MalformedRequest("a header name with a character that none may have")
        if name in _HOP_BY_HOP or (name == b"te" and value != b"trailers"):
            raise MalformedRequest(f"connection-specific header {name.decode()}")  # section 8.2.2
    for _, value in fields:
        if any(bad in value for bad in _BAD_IN_VALUE) or value[:1] in (b" ", b"\t") or value[-1:] in (b" ", b"\t"):
            raise MalformedRequest("a header value with a character that none may have")  # section 8.2.1
    return pseudo, regular


def _content_length(regular: Fields) -> int | None:
    lengths = {value for name, value in regular if name == b"content-length"}
    if not lengths:
        return None
    value = lengths.pop()
    if lengths or not value.isdigit() or len(value) > 19:
        raise MalformedRequest("content-length")
    return int(value)


def _metadata(regular: Fields) -> list[tuple[str, str | bytes]]:
    """Custom metadata: what is not reserved. Binary values are base64, with or without padding, comma-joined."""
    found: list[tuple[str, str | bytes]] = []
    for raw, value in regular:
        name = raw.decode()
        if name.startswith("grpc-") or name in ("content-type", "te", "user-agent", "content-length"):
            continue
        if not name.endswith("-bin"):
            found.append((name, value.decode("latin-1")))
            continue
        try:
            found.extend(
                (name, binascii.a2b_base64(part + b"=" * (-len(part) % 4), strict_mode=True))
                for part in value.split(b",")
            )
        except binascii.Error:
            raise MalformedRequest(f"{name} is not base64") from None
    return found
