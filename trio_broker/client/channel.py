"""One connection to a broker, with many calls at once on it.

Owns:      the socket, its two tasks (one reads, one writes), the wait for a free stream, and waking the callers.
Not here:  HTTP/2 and gRPC as bytes (trio_broker/client/wire.py); what is called (trio_broker/client/client.py).
Threads:   the trio thread only.
"""

import os
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager

import trio

from trio_broker.client.exchange import Exchange, frame
from trio_broker.client.statuses import raise_for
from trio_broker.client.tls import Stream, encrypt, reason_of
from trio_broker.client.wire import Wire, never_reached
from trio_broker.errors import ConnectionLost
from trio_broker.notation import Address, TcpAddress, parse_listen

_RECEIVE_BYTES = 256 * 1024
_SHOWN_BYTES = 200  # of what a server says that is no broker

# A peer that vanished without a word (power, network) is noticed after 60 + 3 * 10 seconds of silence.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@asynccontextmanager
async def open_channel(
    server: str, *, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> AsyncGenerator["Channel"]:
    """Connect to ``HOST:PORT`` or ``unix:/path`` for the length of the block. A checkpoint.

    ``tls`` and ``server_name``: as for `trio_broker.client.connect`.

    Calls that are still open at the end of the block are left.

    Raises:
        ValueError: ``server`` is not an address.
        ConnectionLost: nobody is there, or nobody who speaks HTTP/2. Retryable.
    """
    address = parse_listen(server)
    dialled = await _dial(address)
    with closing(dialled.socket), _bare_errors():
        stream = dialled if tls is None else await encrypt(dialled, address, tls, server_name)
        async with trio.open_nursery() as nursery:
            channel = Channel(stream, address)
            await channel.greet()
            nursery.start_soon(channel.read)
            nursery.start_soon(channel.write)
            yield channel
            nursery.cancel_scope.cancel(reason="the channel is closed")
    channel.lose("the client was closed")


class Channel:
    """An open connection; made by `open_channel`."""

    def __init__(self, stream: Stream, address: Address) -> None:
        self._stream = stream
        self._address = address
        scheme = "https" if isinstance(stream, trio.SSLStream) else "http"
        self._wire = Wire(str(address) if isinstance(address, TcpAddress) else "localhost", scheme)
        self._calls: dict[Exchange, Call] = {}
        self._slots = trio.CapacityLimiter(1)  # `greet` learns how many
        self._windows = trio.lowlevel.ParkingLot()
        self._something_to_write = trio.Event()

    async def start(self, path: str, message: bytes, *, timeout_s: float | None = None) -> "Call":
        """Begin a call; return when its whole request is on its way. A checkpoint.

        Calls that are started one after the other reach the server in that order. Waits while the server lets no
        more calls be open, and for flow control. ``timeout_s`` is for the server: it bounds nothing here.

        Raises:
            ConnectionLost: the connection takes no new calls. Retryable.
        """
        call = await self.open(path, timeout_s=timeout_s)
        try:
            await self.send(call.exchange, message)
        except BaseException:
            call.close()
            raise
        return call

    async def open(self, path: str, *, timeout_s: float | None = None) -> "Call":
        """Begin a call whose request is to be sent, by `Call.send`. A checkpoint. See `start`."""
        call = Call(self)
        await self._slots.acquire_on_behalf_of(call)
        try:
            call.exchange = self._wire.request(path, timeout_s)
        except BaseException:
            self._slots.release_on_behalf_of(call)
            raise
        self._calls[call.exchange] = call
        self._something_to_write.set()
        return call

    async def send(self, exchange: Exchange, message: bytes, *, last: bool = True) -> None:
        """Send a message of a call, the last one by default; wait for flow control. Returns early if the call ends."""
        data = frame(message)
        while exchange.end is None:
            data = data[self._wire.send(exchange, data, last=last) :]
            self._something_to_write.set()
            if not data:
                return
            await self._windows.park()

    def end(self, exchange: Exchange) -> None:
        """End the request of a call. Not a checkpoint."""
        self._wire.end(exchange)
        self._something_to_write.set()

    def take(self, exchange: Exchange) -> list[bytes]:
        """Take the messages of a call that have arrived. Not a checkpoint."""
        messages = self._wire.take(exchange)
        self._something_to_write.set()
        return messages

    def leave(self, exchange: Exchange) -> None:
        """Give up a call's stream; the server hears of it unless it has ended the call. Not a checkpoint."""
        self._wire.leave(exchange)
        self._something_to_write.set()
        if call := self._calls.pop(exchange, None):
            self._slots.release_on_behalf_of(call)
            call.changed.unpark_all()

    async def greet(self) -> None:
        """Exchange the first frames; who does not answer in HTTP/2 is no broker. A checkpoint."""
        try:
            await self._stream.send_all(self._wire.outgoing())
            while not self._wire.greeted:
                data = await self._receive_some()
                _refuse_http1(data)
                self._receive(data)
        except (trio.BrokenResourceError, ConnectionLost) as error:
            raise never_reached(f"no broker answers at {self._address}: {error}") from error

    async def read(self) -> None:
        """Hand what arrives to the calls, until the connection is lost. A checkpoint."""
        try:
            while True:
                self._receive(await self._receive_some())
        except ConnectionLost as error:
            self.lose(f"connection to {self._address} lost: {error}")

    async def write(self) -> None:
        """Write what all calls have to send, as one piece for each time around the event loop. A checkpoint."""
        try:
            while True:
                await self._something_to_write.wait()
                self._something_to_write = trio.Event()
                await self._stream.send_all(self._wire.outgoing())
        except trio.BrokenResourceError:
            return  # the reader says so: the broker may have sent something before it went away

    def lose(self, why: str) -> None:
        """End every call: nothing more will come. Not a checkpoint."""
        self._wake(self._wire.lose(why))

    async def _receive_some(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionLost(_reason(error)) from error
        if not data:
            raise ConnectionLost("closed by the broker")
        return data

    def _receive(self, data: bytes) -> None:
        changed = self._wire.receive(data)
        self._slots.total_tokens = max(1, self._wire.calls_max)
        self._wake(changed)
        self._something_to_write.set()  # acknowledgements

    def _wake(self, changed: list[Exchange]) -> None:
        for exchange in changed:
            if exchange.end is not None:
                self.leave(exchange)  # its stream is free for the next call, whoever reads it out
            elif call := self._calls.get(exchange):
                call.changed.unpark_all()
        self._windows.unpark_all()


class Call:
    """One call on a channel. Whoever starts it closes it."""

    exchange: Exchange

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.changed = trio.lowlevel.ParkingLot()

    async def wait_started(self) -> None:
        """Wait for the response headers. A checkpoint.

        Raises:
            BrokerError: how the call ended instead.
        """
        await trio.lowlevel.checkpoint()
        while not self.exchange.started and self.exchange.end is None:
            await self.changed.park()
        if self.exchange.end is not None and not self.exchange.started:
            raise_for(self.exchange.end)

    async def receive_some(self) -> list[bytes]:
        """Wait for messages and return all that are there; none: the call has ended well. A checkpoint.

        Raises:
            BrokerError: how the call ended, once everything before it was received.
        """
        await trio.lowlevel.checkpoint()
        while not self.exchange.messages and self.exchange.end is None:
            await self.changed.park()
        messages = self._channel.take(self.exchange)
        if not messages and self.exchange.end is not None:
            raise_for(self.exchange.end)
        return messages

    async def receive_one(self) -> bytes:
        """Wait for the one message of a unary call, and its good end. A checkpoint.

        Raises:
            BrokerError: how the call ended instead.
        """
        await trio.lowlevel.checkpoint()
        while self.exchange.end is None:
            await self.changed.park()
        raise_for(self.exchange.end)
        messages = self._channel.take(self.exchange)
        if len(messages) != 1:
            raise ConnectionLost(f"the broker answered with {len(messages)} messages instead of one")
        return messages[0]

    async def send(self, message: bytes) -> None:
        """Send one message of a request that streams; wait for flow control. A checkpoint.

        One task at a time. It does nothing once the call has ended: receiving says how. When it is cancelled, the call
        is of no more use: part of the message may be sent.
        """
        await trio.lowlevel.checkpoint()
        await self._channel.send(self.exchange, message, last=False)

    def end_sending(self) -> None:
        """Say that the request has ended. Not a checkpoint."""
        self._channel.end(self.exchange)

    def close(self) -> None:
        """Leave the call: the server is told at once, unless it has ended it. Not a checkpoint."""
        self._channel.leave(self.exchange)


async def _dial(address: Address) -> trio.SocketStream:
    try:
        if not isinstance(address, TcpAddress):
            return await trio.open_unix_socket(address.path)
        stream = await trio.open_tcp_stream(address.host, address.port)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):  # not all on macOS
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except (OSError, ValueError) as error:  # ValueError: a name of which nobody can be asked, as with a label too long
        raise never_reached(f"cannot connect to {address}: {_reason(error)}") from error
    return stream


def _refuse_http1(answer: bytes) -> None:
    """Say what a server says that speaks HTTP/1: the first line of its text if it is plain, or else its status."""
    if not answer.startswith(b"HTTP/1."):
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    line = body.splitlines()[0] if body and b"content-type: text/plain" in head.lower() else head.splitlines()[0]
    raise ConnectionLost(f"it answers in HTTP/1: {line[:_SHOWN_BYTES].decode(errors='replace')!a}")


def _reason(error: BaseException) -> str:
    """Find the system's own words for a failure, below what trio says of it."""
    if (why := reason_of(error)) is not None:
        return why
    deepest = error
    while cause := deepest.exceptions[0] if isinstance(deepest, BaseExceptionGroup) else deepest.__cause__:
        deepest = cause
    if isinstance(deepest, OSError) and deepest.errno and deepest.errno > 0:
        return os.strerror(deepest.errno)
    return getattr(deepest, "strerror", None) or str(deepest)  # strerror: of a name that is not found


@contextmanager
def _bare_errors() -> Generator[None]:
    """Let the body's error out as it is. The tasks beside it do not fail: a nursery's group around it says nothing."""
    alone = None
    try:
        yield
    except BaseExceptionGroup as group:
        # those tasks are cancelled with the body, which may have failed just before it could notice
        _, failed = group.split(trio.Cancelled)
        if failed is None or len(failed.exceptions) > 1:
            raise
        alone = failed.exceptions[0]
    if alone is not None:
        raise alone
