"""Clients that speak something else than the port does: told so in words that they understand.

Owns:      who they are by their first bytes, and what each is answered.
Not here:  reading and writing (transport.py); peers that begin right and go on wrong (connection.py).
Threads:   none: plain data.

The answer is HTTP/1.1 for all of them. Whoever speaks HTTP/1 shows it; TLS libraries know plaintext and say so, where
an alert would let them blame versions or ciphers; gRPC libraries say that they have met HTTP/1, where SETTINGS and
GOAWAY would let them connect again at once, and again.

All of it is courtesy: who is not recognised, such as one whose first bytes come one by one, fails later on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trio_broker.rpc import frames

BEGIN_BYTES = len(frames.PREFACE)
"""As much as is looked at."""

_HTTP1 = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) ")  # RFC 9110, section 9.3; RFC 5789
_TLS = re.compile(rb"\x16\x03[\0-\x04]")  # a handshake record, of any version (RFC 8446, section 5.1)
_NEEDS_TLS = "This port speaks TLS, and you do not: connect with TLS."
_NEEDS_HTTP2 = "This port speaks gRPC, over HTTP/2, and you speak HTTP/1: call it with a gRPC client."
_HAS_NO_TLS = "This port speaks no TLS: connect in plaintext, or let the server have a certificate."


class Stranger(NamedTuple):
    """Somebody who is at the wrong door."""

    why: str
    """For the log."""
    answer: bytes


def recognise(begin: bytes, *, tls: bool) -> Stranger | None:
    """Say who begins like this on a port that speaks ``tls``, or not; None: nobody that is known as a stranger."""
    if begin[:4] == frames.PREFACE[:4]:
        return Stranger("HTTP/2 without TLS, where TLS is spoken", _bad_request(_NEEDS_TLS)) if tls else None
    if _HTTP1.match(begin):
        if tls:
            return Stranger("HTTP/1 without TLS, where TLS is spoken", _bad_request(_NEEDS_TLS))
        return Stranger("HTTP/1, where HTTP/2 is spoken", _bad_request(_NEEDS_HTTP2))
    if _TLS.match(begin) and not tls:
        return Stranger("TLS, where plaintext is spoken", _bad_request(_HAS_NO_TLS))
    return None


def _bad_request(text: str) -> bytes:
    body = f"{text}\n".encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
