"""How a call ends: statuses, their trailers, and the ones that the RPC layer itself gives.

Owns:      `DetailedStatus` (a purerpc Status with google.rpc details), the encoding of trailers, `Refusals`.
Not here:  which error of an application becomes which status.

The gRPC spec: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Responses".
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from google.protobuf.message import Message
from purerpc import Status, StatusCode

from trio_broker._proto.google.rpc.status_pb2 import Status as RichStatus
from trio_broker.rpc.hpack import literal

Metadata = Sequence[tuple[str, str | bytes]]

CODE_NAMES = tuple(code.name for code in StatusCode)
OK = Status(StatusCode.OK)
OK_TRAILERS = literal(b"grpc-status", b"0")

_MESSAGE_MAX_BYTES = 1024
"""Of grpc-message, before it is escaped: peers bound the size of a header list."""
_SHOWN_MAX = 100
"""Characters of what a peer sent that go back to it."""
_UNESCAPED = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")


def shown(text: str) -> str:
    """Return what a peer sent, for a text that goes back to it: cut, and in printable ASCII.

    A header costs the peer a byte to repeat; an answer with all of it would cost us its length and more.
    """
    return ascii(text[:_SHOWN_MAX])[1:-1][:_SHOWN_MAX]


class DetailedStatus(Status):  # type: ignore[misc] # purerpc is untyped
    """A status with details for programs: sent as google.rpc.Status in ``grpc-status-details-bin``.

    ``reason`` is that of the google.rpc.ErrorInfo among them: what logs and metrics call it.
    """

    def __init__(self, code: StatusCode, message: str, reason: str, details: Iterable[Message]) -> None:
        super().__init__(code, message)
        self.reason = reason
        rich = RichStatus(code=code.value, message=message)
        for detail in details:
            rich.details.add().Pack(detail)
        self.details = rich.SerializeToString()


def trailers(status: Status, metadata: Metadata = ()) -> bytes:
    """Return the trailer block that ends a call."""
    if status.int_value == 0 and not metadata:
        return OK_TRAILERS
    block = literal(b"grpc-status", b"%d" % status.int_value)
    if status.status_message:
        text = status.status_message.encode(errors="replace")[:_MESSAGE_MAX_BYTES].decode(errors="ignore")
        block += literal(b"grpc-message", quote(text, safe=_UNESCAPED).encode())
    if isinstance(status, DetailedStatus):
        metadata = [*metadata, ("grpc-status-details-bin", status.details)]
    return block + metadata_block(metadata)


def metadata_block(metadata: Metadata) -> bytes:
    """Encode custom metadata; values of ``-bin`` names are bytes, sent as unpadded base64."""
    block = b""
    for name, value in metadata:
        encoded = binascii.b2a_base64(value, newline=False).rstrip(b"=") if isinstance(value, bytes) else value.encode()
        block += literal(name.encode(), encoded)
    return block


class Refusals:
    """The statuses that the RPC layer gives by itself. An application may give better ones, with details."""

    def message_too_large(self, size: int, limit: int) -> Status:
        """A message larger than the limit; it was not received."""
        return Status(StatusCode.RESOURCE_EXHAUSTED, f"the message has {size} bytes; at most {limit} are accepted")

    def overloaded(self, text: str) -> Status:
        """More than is held for one connection; the same call may succeed later."""
        return Status(StatusCode.RESOURCE_EXHAUSTED, text)

    def malformed(self, expected: str) -> Status:
        """A message that does not parse as its type."""
        return Status(StatusCode.INVALID_ARGUMENT, f"the request is not a {expected}")

    def deadline_exceeded(self) -> Status:
        """The call's own deadline passed."""
        return Status(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")

    def request_too_slow(self, limit_s: float) -> Status:
        """A request of one message that took too long to arrive; nothing was done."""
        return Status(StatusCode.DEADLINE_EXCEEDED, f"the request did not arrive in whole within {limit_s:g} s")

    def stopping(self) -> Status:
        """The server stops, and the call's time is over."""
        return Status(StatusCode.UNAVAILABLE, "the server is stopping")

    def retired(self) -> Status:
        """The connection has reached its age, and the call's time is over."""
        return Status(StatusCode.UNAVAILABLE, "the connection has reached its age: connect again")

    def turned_away(self, limit: int) -> Status:
        """As many clients are connected as may be."""
        return Status(StatusCode.RESOURCE_EXHAUSTED, f"{limit} clients are connected; no more may be")

    def crowded(self, limit: float) -> Status:
        """As many clients of one address are connected as may be."""
        return Status(
            StatusCode.RESOURCE_EXHAUSTED, f"{limit:.0f} clients of this address are connected; no more may be"
        )

    def internal(self) -> Status:
        """A bug in a handler: logged there, and not described here."""
        return Status(StatusCode.INTERNAL, "internal error")
