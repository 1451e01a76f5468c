"""Where the search begins: for each target some inputs that get far, written as choices.

Owns:      `SEEDS`.
Not here:  what a search has found (found/).
"""

import random

from grpc_peer import GrpcPeer
from h2_peer import data, settings

from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed

from .choices import Script
from .client import TELLS
from .client import Session as ClientSession
from .server import LIMITS, MOVES, Session

RANDOM = 6
"""So many inputs of random bytes for each target, always the same."""


def move(script: Script, name: str, *choices: int) -> Script:
    """Add a move of a server's session, and what it chooses."""
    return script.choose(MOVES.index(getattr(Session, name)), *choices)


def tell(script: Script, name: str, *choices: int) -> Script:
    """Add what a server tells a client: after its own choices, where it is cut."""
    return script.choose(TELLS.index(getattr(ClientSession, name)), *choices)


def _server() -> list[bytes]:
    unary = Script().choose(0, 0)
    move(unary, "request", 0x18, 0, 2)  # Later, a message of 100 bytes, complete
    move(unary, "reply", 0, 2)
    move(unary, "request", 0x1D, 1, 3, 4, 1)  # Now, indexed fields, odd ones
    move(unary, "read")
    streams = Script().choose(2, 0)
    move(streams, "request", 0x18, 2, 2)  # Drain
    move(streams, "settings", 3, 1, 2)
    for _ in range(3):
        move(streams, "push", 0, 3)
    move(streams, "read")
    move(streams, "open_window", 0, 0, 3)
    move(streams, "read")
    move(streams, "retire")
    move(streams, "read")
    feeds = Script().choose(0, 0)
    move(feeds, "request", 0x08, 4, 2)  # Feed, not ended
    move(feeds, "body", 0x01, 0, 3)
    move(feeds, "read")
    move(feeds, "request", 0x28, 3, 2, 3)  # Collect, its headers in parts
    move(feeds, "body", 0x04, 1, 5, 128)
    move(feeds, "take_message", 1)
    move(feeds, "reset", 1)
    move(feeds, "other_side")
    move(feeds, "request", 0x08, 3, 5)
    move(feeds, "lose")
    packed = Script().choose(0, 0)
    for number, (path, which) in enumerate([(0, 1), (3, 2), (4, 1), (0, 4), (3, 3)]):
        move(packed, "request", 0x80, path)
        move(packed, "body", 0x22, number, 0, which)
        move(packed, "body", 0x23, number, 0, which)
        move(packed, "work_aside")
        move(packed, "reply", 0, 3)
        move(packed, "take_message", 0)
    ending = Script().choose(5, 0)
    move(ending, "request", 0x00, 0)
    move(ending, "drain", 0)
    move(ending, "ping", 0, 1)
    move(ending, "trailers", 0, 0)
    move(ending, "send_frame", 7, 0, 0).piece(bytes(8))
    move(ending, "header_block", 1, 0).piece(b"\x83\x86\x44\x01/\x5f\x03abc")
    move(ending, "finish", 0, 1)
    move(ending, "shed", 0)
    move(ending, "stall")
    move(ending, "time_passes", 100)
    return [each.data for each in (unary, streams, feeds, packed, ending)]


def _pieces() -> list[bytes]:
    """A client that does a little of everything, by the `hpack` library; the same, cut elsewhere; HTTP/1."""
    client = GrpcPeer()
    client.encoder.header_table_size = LIMITS.header_table_bytes
    message = framed(bytes(1000))
    session = b"".join(
        (
            settings({frames.INITIAL_WINDOW_SIZE: 100_000}),
            client.request(1, b"hello", method="Now", more=[("x-new", "entry")]),
            client.request(3, b"hello", b"world", method="Collect", more=[("x-new", "entry")]),
            client.request(5, end=False, method="Later", more=[("grpc-timeout", "5S")]),
            frames.frame(frames.PING, 0, 0, bytes(8)),
            data(5, message[:100]),
            client.request(7, b"x", method="Nothing"),
            data(5, message[100:], end=True),
            frames.window_update(0, 1000),
            client.request(9, b"echo", end=False, method="Feed"),
            frames.reset(9, frames.CANCEL),
        )
    )
    whole = Script().choose(0, 0)
    whole.data += session
    cut = Script().choose(5, 3, 50, 100, 150, 254, 0)
    cut.data += session
    other = Script().choose(1, 100, 3)
    other.data += b"GET / HTTP/1.1\r\n\r\n"
    return [each.data for each in (whole, cut, other)]


def _header_blocks() -> list[bytes]:
    encoded = Script().choose(0)
    for _ in range(3):
        encoded.choose(1, 2).piece(b"name").piece(b"value").piece(b"x").piece(b"www.example.com").choose(1, 0)
    pieces = Script().choose(3, 2, 5)
    pieces.choose(4, 0, 64).choose(1, 0, 0, 0).piece(b"name").choose(2).piece(b"value").choose(0, 0, 62)
    pieces.choose(3, 0, 62, 1).piece(b"\xff\xff\xff\xfc").choose(2, 0, 4, 0).piece(b"/index.html")
    raw = Script().choose(0, 0).piece(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")).choose(0).piece(b"\xbe\x5f")
    return [each.data for each in (encoded, pieces, raw)]


def _client() -> list[bytes]:
    act = len(TELLS)
    unary = Script().choose(0, 0, 2, 0, 0)  # greeted, not cut; two calls
    unary.choose(act, 1, 0, 1, 1)
    tell(unary, "headers", 0, 1, 1, 0, 0, 128)
    tell(unary, "data", 2, 255, 0, 0, 0, 40)
    unary.choose(act, 2, 0)
    tell(unary, "headers", 1, 3, 6, 8, 9, 0, 0, 0, 0)
    ending = Script().choose(0, 0, 3, 1, 2, 0)
    tell(ending, "reset", 1, 7, 0)
    tell(ending, "settings", 4, 1, 0)
    tell(ending, "open_window", 1, 0, 2, 0)
    tell(ending, "goaway", 1, 0, 0)
    ending.choose(act, 3, 0, act, 4, 1, act, 5, 0, act, 0, 0)
    tell(ending, "any_frame", 6, 0, 0).piece(bytes(8)).choose(0)
    return [each.data for each in (unary, ending)]


def _requests() -> list[bytes]:
    section = Script().choose(0, 1, 1)
    for name, value in [(6, 5), (10, 6), (9, 8), (4, 3)]:
        section.choose(name, value)
    section.choose(16).piece(b"traceparent").choose(10).piece(b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")
    timeout = Script().choose(1)
    timeout.data += b"12345678n"
    metadata = Script().choose(2, 1).piece(b"\0\1\2").piece(b"").choose(0)
    texts = Script().choose(3, 1)
    texts.data += "ü%\n\u2028".encode() * 5
    return [each.data for each in (section, timeout, metadata, texts)]


def _with_random(name: str, seeds: list[bytes]) -> list[bytes]:
    dice = random.Random(name)
    return seeds + [dice.randbytes(dice.randrange(20, 400)) for _ in range(RANDOM)]


SEEDS: dict[str, list[bytes]] = {
    name: _with_random(name, made())
    for name, made in {
        "server": _server,
        "pieces": _pieces,
        "header_blocks": _header_blocks,
        "client": _client,
        "requests": _requests,
    }.items()
}
