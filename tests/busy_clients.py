"""Clients that keep a broker busy until they are stopped, whatever happens to it meanwhile.

Owns:      their connections and threads; failed calls are theirs to expect.
Not here:  clients that check what they are told (e2e/e2e_journal.py, benchmarks/).
Threads:   one per client; the methods may be called from any thread.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import grpc

from trio_broker._proto import broker_pb2 as pb

SAFETY_S = 30
"""What hangs fails after this long; nothing that works comes near."""
CALL_S = 5
"""The deadline of each call."""
SUBJECT = "orders"
BODY = bytes(100)
UNASSIGNED = 2**62

Call = Callable[[grpc.Channel], object]
"""Calls the broker in some way on a connection, once."""

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
"""Otherwise grpcio shares one connection among all channels to an address, and takes megabytes for one that does not
read."""


class BusyClients:
    """Clients of one broker; they stop when the ``with`` block ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._channels: list[grpc.Channel] = []
        self._stalled: list[grpc.Call] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._stop.set()
        for channel in self._channels:
            channel.close()  # ends the calls that are under way
        for thread in self._threads:
            thread.join(SAFETY_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def keep(self, call: Call, *, pause_s: float = 0.01, clients: int = 1) -> None:
        """Let so many clients call again and again, each with a pause between two calls."""
        for _ in range(clients):
            thread = threading.Thread(target=self._call_on, args=[call, self._connect(), pause_s], name="busy-client")
            self._threads.append(thread)
            thread.start()

    def stall(self, subject: str = SUBJECT) -> None:
        """Subscribe to be cut when the buffer is full, and never read; return when the broker has accepted it."""
        stream = subscribe(self._connect(), subject, slow="FAIL")
        stream.initial_metadata()
        self._stalled.append(stream)  # one that nobody has any more is cancelled

    def _connect(self) -> grpc.Channel:
        channel = grpc.insecure_channel(self._address, _OPTIONS)
        self._channels.append(channel)
        return channel

    def _call_on(self, call: Call, channel: grpc.Channel, pause_s: float) -> None:
        while not self._stop.is_set():
            with suppress(grpc.RpcError, ValueError):  # ValueError: the channel is closed
                call(channel)
            self._stop.wait(pause_s)


def publish(channel: grpc.Channel, subject: str = SUBJECT, body: bytes = BODY) -> int:
    """Publish what expires a second later; return its id."""
    call = channel.unary_unary(
        "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
    )
    return call(pb.PublishRequest(subject=subject, body=body, expirationSeconds=1), timeout=CALL_S).id


def fetch(channel: grpc.Channel, id_: int) -> None:
    call = channel.unary_unary("/broker.Broker/Fetch", pb.FetchRequest.SerializeToString, pb.MessageResponse.FromString)
    call(pb.FetchRequest(subject=SUBJECT, id=id_), timeout=CALL_S)


def publish_and_fetch(channel: grpc.Channel) -> None:
    """Fetch what was just published."""
    fetch(channel, publish(channel))


def fetch_unassigned(channel: grpc.Channel) -> None:
    fetch(channel, UNASSIGNED)


def subscribe(channel: grpc.Channel, subject: str = SUBJECT, **fields: object) -> grpc.Call:
    call = channel.unary_stream(
        "/broker.Broker/Subscribe", pb.SubscribeRequest.SerializeToString, pb.MessageResponse.FromString
    )
    return call(pb.SubscribeRequest(subject=subject, **fields))


def read_on(channel: grpc.Channel) -> None:
    """Subscribe and read until the stream ends."""
    for _ in subscribe(channel):
        pass


def read_one(channel: grpc.Channel) -> None:
    """Subscribe, read one message, and cancel."""
    stream = subscribe(channel)
    next(stream)
    stream.cancel()


def call_wrong_method(channel: grpc.Channel) -> None:
    """Call a method that there is not."""
    channel.unary_unary("/broker.Broker/Nothing", bytes, bytes)(b"", timeout=CALL_S)
