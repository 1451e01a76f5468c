"""What hostile clients do to a broker, one attack after another.

Owns:      the attacks, as frames on a socket.
Not here:  what must not come of them (__main__.py).
Threads:   each attacker has one; every wait is on its socket or on the end, and bounded.

An attack returns when it is over, or raises OSError when the broker has closed the connection, which is its right.
"""

import os
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from trio_broker._proto import broker_pb2 as pb
from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.hpack import literal

HOLD_S = 3.0
"""How long something is held open that never ends."""
DRIBBLE_S = 0.2
PAUSE_S = 0.1
SOCKET_S = 20.0
SUBJECT = "soak.hostile"
HOT = "soak.0"
"""A subject to which the ordinary clients publish."""
PING = frames.frame(frames.PING, 0, 0, bytes(8))
HUGE = 4 * 1024 * 1024 - 65_536 - 100
"""Bytes of a message that may still be sent, and is not."""


def block(method: str, *more: tuple[bytes, bytes]) -> bytes:
    """Return the header block of a call."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/broker.Broker/{method}".encode())]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]
    return b"".join(literal(*field) for field in fields)


def publish_body() -> bytes:
    return framed(pb.PublishRequest(subject=SUBJECT, body=bytes(100)).SerializeToString())


class Attacker:
    """One hostile client: a connection at a time."""

    def __init__(self, address: str, over: threading.Event, dice: random.Random) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._over = over
        self.dice = dice
        self._socket: socket.socket | None = None

    @property
    def socket(self) -> socket.socket:
        """The connection."""
        assert self._socket is not None
        return self._socket

    def connect(self, *, small: bool = False) -> None:
        """Open a connection; ``small``: the kernel shall take in as little as it can."""
        self._socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(SOCKET_S)
        self.socket.connect(self._address)

    def begin(self, settings: dict[int, int] | None = None, *, small: bool = False) -> None:
        """Connect, and be a client of HTTP/2."""
        self.connect(small=small)
        self.send(frames.PREFACE + frames.settings(settings or {}))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def flood(self, piece: bytes, times: int) -> None:
        """Send the same again and again, until the broker closes, and read what it says."""
        self.begin()
        for _ in range(times // 100):
            self.send(piece * 100)
        self.drink()

    def drink(self) -> None:
        """Read until the broker closes or says nothing for a second."""
        self.socket.settimeout(1)
        with suppress(TimeoutError):
            while self.socket.recv(65_536):
                pass

    def hold(self, seconds: float = HOLD_S) -> None:
        self._over.wait(seconds)

    def dribble(self, data: bytes) -> None:
        """Send a byte at a time for a while."""
        for at in range(min(len(data), int(HOLD_S / DRIBBLE_S))):
            self.send(data[at : at + 1])
            self._over.wait(DRIBBLE_S)

    def abort(self) -> None:
        """Leave with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def wrap(self, context: ssl.SSLContext) -> None:
        """Go on over TLS."""
        self._socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def run(self, attacks: list[Callable[["Attacker"], None]], done: Counter[str]) -> None:
        """Attack in some order until it is over; count in ``done``."""
        while not self._over.wait(PAUSE_S):
            attack = self.dice.choice(attacks)
            try:
                attack(self)
            except OSError:
                done[f"{attack.__name__}, cut off"] += 1
            finally:
                self.close()
            done[attack.__name__] += 1


# -- floods -------------------------------------------------------------------------------------------------------


def pings(attacker: Attacker) -> None:
    attacker.flood(PING, 10_000)


def pings_without_reading(attacker: Attacker) -> None:
    attacker.begin(small=True)
    for _ in range(50):
        attacker.send(PING * 100)
    attacker.hold()


def settings(attacker: Attacker) -> None:
    attacker.flood(frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}), 10_000)


def unknown_frames(attacker: Attacker) -> None:
    attacker.flood(frames.frame(0xBE, 0, 0), 10_000)


def empty_data(attacker: Attacker) -> None:
    attacker.begin()
    attacker.send(frames.headers(0, 1, block("Publish")))
    for _ in range(50):
        attacker.send(frames.frame(frames.DATA, 0, 1) * 100)
    attacker.drink()


def rapid_resets(attacker: Attacker) -> None:
    attacker.begin()
    head = block("Publish")
    for begin in range(1, 10_000, 200):
        ids = range(begin, begin + 200, 2)
        attacker.send(b"".join(frames.headers(0, each, head) + frames.reset(each, frames.CANCEL) for each in ids))
    attacker.drink()


def connections(attacker: Attacker) -> None:
    for _ in range(50):
        attacker.connect()
        if attacker.dice.random() < 0.5:
            attacker.abort()
        attacker.close()


def calls(attacker: Attacker) -> None:
    """More than may be open on one connection."""
    attacker.begin()
    head = block("Subscribe")
    body = framed(pb.SubscribeRequest(subject=SUBJECT).SerializeToString())
    for each in range(1, 4000, 2):
        attacker.send(frames.headers(0, each, head) + frames.frame(frames.DATA, frames.END_STREAM, each, body))
    attacker.hold(1)


# -- what never ends ----------------------------------------------------------------------------------------------


def half_a_preface(attacker: Attacker) -> None:
    attacker.connect()
    attacker.send(frames.PREFACE[: attacker.dice.randrange(len(frames.PREFACE))])
    attacker.hold()


def slow_headers(attacker: Attacker) -> None:
    attacker.begin()
    attacker.dribble(frames.headers(0, 1, block("Publish")))
    attacker.abort()


def continuations(attacker: Attacker) -> None:
    attacker.begin()
    attacker.send(frames.frame(frames.HEADERS, 0, 1, block("Publish")))
    for _ in range(1000):
        attacker.send(frames.frame(frames.CONTINUATION, 0, 1, literal(b"x", b"y" * 100)))
    attacker.drink()


def slow_bodies(attacker: Attacker) -> None:
    attacker.begin()
    attacker.send(frames.headers(0, 1, block("Publish")))
    for byte in (b"\0" + HUGE.to_bytes(4))[: int(HOLD_S / DRIBBLE_S)]:
        attacker.send(frames.frame(frames.DATA, 0, 1, bytes([byte])))
        attacker.hold(DRIBBLE_S)
    attacker.hold(1)


def unfinished_messages(attacker: Attacker) -> None:
    """A hundred of 4 MB each are announced; a little of each is sent."""
    attacker.begin()
    for each in range(1, 200, 2):
        begun = b"\0" + HUGE.to_bytes(4) + bytes(1000)
        attacker.send(frames.headers(0, each, block("PublishStream")) + frames.frame(frames.DATA, 0, each, begun))
    attacker.hold()


def never_reading(attacker: Attacker) -> None:
    attacker.begin(small=True)
    body = framed(pb.SubscribeRequest(subject=HOT).SerializeToString())
    for each in range(1, 20, 2):
        attacker.send(frames.headers(0, each, block("Subscribe")))
        attacker.send(frames.frame(frames.DATA, frames.END_STREAM, each, body))
    attacker.hold()


def zero_windows(attacker: Attacker) -> None:
    attacker.begin({frames.INITIAL_WINDOW_SIZE: 0})
    for each in range(1, 400, 2):
        attacker.send(frames.headers(0, each, block("Publish")))
        attacker.send(frames.frame(frames.DATA, frames.END_STREAM, each, publish_body()))
    attacker.hold()


# -- bombs and nonsense -------------------------------------------------------------------------------------------


def header_bomb(attacker: Attacker) -> None:
    """One entry of the table, named ten thousand times."""
    attacker.begin()
    entry = b"\x40" + literal(b"x", b"y" * 3900)[1:]
    attacker.send(frames.headers(frames.END_STREAM, 1, block("Publish") + entry + b"\xbe" * 10_000))
    attacker.send(frames.headers(frames.END_STREAM, 3, block("Publish") + b"\xbe" * 10_000))
    attacker.drink()


def compressed_bomb(attacker: Attacker) -> None:
    import gzip

    attacker.begin()
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    data = b"\1" + len(bomb).to_bytes(4) + bomb
    attacker.send(frames.headers(0, 1, block("Publish", (b"grpc-encoding", b"gzip"))))
    for at in range(0, len(data), 16_384):
        attacker.send(frames.frame(frames.DATA, 0, 1, data[at : at + 16_384]))
    attacker.drink()


def too_large(attacker: Attacker) -> None:
    attacker.begin()
    attacker.send(frames.headers(0, 1, block("Publish")))
    attacker.send(frames.frame(frames.DATA, 0, 1, b"\0\x7f\xff\xff\xff" + bytes(1000)))
    attacker.drink()


def http_1(attacker: Attacker) -> None:
    attacker.connect()
    attacker.send(b"GET /metrics HTTP/1.1\r\nHost: broker\r\n\r\n")
    attacker.drink()


def random_bytes(attacker: Attacker) -> None:
    attacker.connect()
    if attacker.dice.random() < 0.5:
        attacker.send(frames.PREFACE + frames.settings({}))
    attacker.send(attacker.dice.randbytes(attacker.dice.randrange(1, 5000)))
    attacker.drink()


def random_frames(attacker: Attacker) -> None:
    attacker.begin()
    dice = attacker.dice
    for _ in range(200):
        payload = dice.randbytes(dice.choice([0, 4, 5, 6, 8, 50]))
        attacker.send(frames.frame(dice.randrange(11), dice.randrange(256), dice.randrange(8), payload))


def broken_off(attacker: Attacker) -> None:
    """A call is cut anywhere, and the connection with it."""
    data = frames.PREFACE + frames.settings({}) + frames.headers(0, 1, block("Publish"))
    data += frames.frame(frames.DATA, frames.END_STREAM, 1, publish_body())
    attacker.connect()
    attacker.send(data[: attacker.dice.randrange(len(data) + 1)])
    if attacker.dice.random() < 0.5:
        attacker.abort()


ATTACKS = [
    *[pings, pings_without_reading, settings, unknown_frames, empty_data, rapid_resets, connections, calls],
    *[half_a_preface, slow_headers, continuations, slow_bodies, unfinished_messages, never_reading, zero_windows],
    *[header_bomb, compressed_bomb, too_large, http_1, random_bytes, random_frames, broken_off],
]


# -- at a listener of TLS -----------------------------------------------------------------------------------------


def tls_garbage(attacker: Attacker) -> None:
    """Records of a handshake that makes no sense."""
    attacker.connect()
    attacker.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(attacker.dice.randrange(600)))
    attacker.drink()


def tls_half_a_handshake(attacker: Attacker) -> None:
    hello = _client_hello()
    attacker.connect()
    attacker.send(hello[: attacker.dice.randrange(len(hello) + 1)])
    attacker.hold()


def tls_and_silence(attacker: Attacker) -> None:
    """A handshake, a preface perhaps, then nothing; or a flood."""
    attacker.connect()
    attacker.wrap(_context())
    match attacker.dice.randrange(3):
        case 0:
            attacker.hold()
        case 1:
            attacker.send(frames.PREFACE)
            attacker.hold()
        case _:
            attacker.send(frames.PREFACE + frames.settings({}) + PING * 10_000)
            attacker.drink()


def plaintext_at_tls(attacker: Attacker) -> None:
    attacker.begin()
    attacker.drink()


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _client_hello() -> bytes:
    to, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        _context().wrap_bio(to, out, server_hostname="localhost").do_handshake()
    return out.read()


TLS_ATTACKS = [tls_garbage, tls_half_a_handshake, tls_and_silence, plaintext_at_tls, connections, http_1, random_bytes]
