"""Real clients: purerpc, grpcio and grpcio's asyncio, each with calls of every cardinality."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import grpc
import grpc.aio
import purerpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from purerpc.client import Client
from toy import MEBIBYTE, SIGNATURES, Toy, serving

from trio_broker.rpc import time_limits
from trio_broker.rpc.control import Control
from trio_broker.rpc.limits import Limits

BIG = bytes(range(256)) * 4096 * 3
"""Three mebibytes: larger than every window and frame."""


def value(body):
    return BytesValue(value=body)


# purerpc


@asynccontextmanager
async def purerpc_channel(port):
    """A channel of purerpc, which itself leaves its socket open."""
    async with purerpc.insecure_channel("127.0.0.1", port) as channel:
        stream = channel._grpc_socket._socket._stream
        yield channel
    await stream.aclose()


async def each(*messages):
    for message in messages:
        yield message


async def test_purerpc():
    async with serving(Toy()) as server, purerpc_channel(server.port) as channel:
        stub = {name: Client("toy.Toy", channel).get_method_stub(name, SIGNATURES[name]) for name in SIGNATURES}
        for method in ("Echo", "Group"):
            for body in (b"", b"hello", BIG):
                assert await stub[method](value(body)) == value(body)
        assert [message async for message in stub["Repeat"](value(BIG))] == [value(BIG)] * 3
        assert await stub["Collect"](each(value(BIG), value(b""), value(b"end"))) == value(BIG + b"end")
        assert [message async for message in stub["Chat"](each(value(b"1"), value(BIG)))] == [value(b"1"), value(BIG)]
        for order, error in ((b"bug", purerpc.InternalError), (b"refuse", purerpc.AbortedError)):
            with pytest.raises(error):
                await stub["Echo"](value(order))


# grpcio, in a thread of its own


def stubs(channel, kinds):
    return {
        name: getattr(channel, kinds.get(name, "unary_unary"))(
            f"/toy.Toy/{name}",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )
        for name in SIGNATURES
    }


KINDS = {"Repeat": "unary_stream", "Drain": "unary_stream", "Collect": "stream_unary", "Chat": "stream_stream"}
OPTIONS = [("grpc.max_receive_message_length", 4 * MEBIBYTE)]


def use_grpcio(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        stub = stubs(channel, KINDS)
        for method in ("Echo", "Group"):
            for body in (b"", b"hello", BIG):
                assert stub[method](value(body), timeout=60) == value(body)
        assert list(stub["Repeat"](value(BIG))) == [value(BIG)] * 3
        assert stub["Collect"](iter([value(BIG), value(b""), value(b"end")])) == value(BIG + b"end")
        assert list(stub["Chat"](iter([value(b"1"), value(BIG)]))) == [value(b"1"), value(BIG)]
        draining = stub["Drain"](value(b"hello"))
        assert [next(draining) for _ in range(3)] == [value(b"hello")] * 3
        draining.cancel()
        futures = [stub["Echo"].future(value(b"%d" % number)) for number in range(200)]
        assert [future.result() for future in futures] == [value(b"%d" % number) for number in range(200)]
        for order, code in ((b"bug", grpc.StatusCode.INTERNAL), (b"refuse", grpc.StatusCode.ABORTED)):
            with pytest.raises(grpc.RpcError) as caught:
                stub["Echo"](value(order))
            assert caught.value.code() is code
        with pytest.raises(grpc.RpcError) as caught:
            stub["Echo"](value(b"wait"), timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError) as caught:
            stub["Echo"](value(bytes(4 * MEBIBYTE)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/toy.Toy/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            stub["Echo"](value(bytes(1000)), compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def use_grpcio_aio(port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        stub = stubs(channel, KINDS)
        for method in ("Echo", "Group"):
            bodies = [b"%d" % number for number in range(200)]
            answers = await asyncio.gather(*[stub[method](value(body)) for body in bodies])
            assert answers == [value(body) for body in bodies]
        assert [message async for message in stub["Repeat"](value(BIG))] == [value(BIG)] * 3
        assert await stub["Collect"](each(value(BIG), value(b"end"))) == value(BIG + b"end")
        assert [message async for message in stub["Chat"](each(value(b"1"), value(b"2")))] == [value(b"1"), value(b"2")]
        draining = stub["Drain"](value(b"hello"))
        assert [await draining.read() for _ in range(3)] == [value(b"hello")] * 3
        draining.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            await stub["Echo"](value(b"wait"), timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("use", [use_grpcio, lambda port: asyncio.run(use_grpcio_aio(port))], ids=["sync", "asyncio"])
async def test_grpcio(use):
    toy = Toy()
    async with serving(toy) as server:
        await trio.to_thread.run_sync(partial(use, server.port))
        await toy.until("closed Drain")
        for call in toy.log:
            if call.startswith("began"):
                await toy.until(call.replace("began", "ended"), toy.log.count(call))


async def test_grpcio_survives_a_drain():
    """Its calls in flight end well, and it connects again by itself."""
    toy = Toy()
    answers = []

    def call(channel, order):
        answers.append(stubs(channel, KINDS)["Drain"](value(order), timeout=60))

    async with serving(toy) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            await trio.to_thread.run_sync(call, channel, b"idle")
            await toy.until("began Drain")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain)
                while not toy.sources:
                    await trio.lowlevel.checkpoint()
                toy.sources[0].push(b"last")
                assert await trio.to_thread.run_sync(next, answers[0]) == value(b"last")
                toy.sources[0].call.finish(server.refusals.stopping())
                code = await trio.to_thread.run_sync(answers[0].code)
                assert code is grpc.StatusCode.UNAVAILABLE


# keepalive: seconds where the libraries' least is ten of them


KEEPALIVE = {
    "none": [],
    "of the client": [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ],
}


@pytest.mark.parametrize("options", KEEPALIVE.values(), ids=KEEPALIVE)
async def test_a_quiet_grpcio_client_and_the_server_ping_each_other_and_stay(options, monkeypatch):
    """The server asks a hundred times as often as by default, the client as it allows itself."""
    monkeypatch.setattr(time_limits, "LOOK_S", 0.01)
    limits = Limits(keepalive_s=0.05, keepalive_timeout_s=30, ping_burst=3, pings_per_s=100)
    pings = []
    real = Control.ping
    monkeypatch.setattr(Control, "ping", lambda self: (pings.append(self), real(self)))

    def client(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1), *options]) as channel:
            stub = stubs(channel, {"Drain": "unary_stream"})
            stream = stub["Drain"](value(b"idle"))
            stream.initial_metadata()
            while len(pings) < 20:
                trio.from_thread.run(trio.lowlevel.checkpoint)
            assert stub["Echo"](value(b"hello")) == value(b"hello")
            assert stream.is_active()

    async with serving(Toy(), limits=limits) as server:
        await trio.to_thread.run_sync(client, server.port)
        assert server.connections_opened == 1


async def test_purerpc_answers_pings(monkeypatch):
    monkeypatch.setattr(time_limits, "LOOK_S", 0.01)
    async with (
        serving(Toy(), limits=Limits(keepalive_s=0.02, keepalive_timeout_s=30)) as server,
        purerpc_channel(server.port) as channel,
    ):
        echo = Client("toy.Toy", channel).get_method_stub("Echo", SIGNATURES["Echo"])
        assert await echo(value(b"hello")) == value(b"hello")
        (transport,) = server.transports
        before = transport.read_at
        while transport.read_at == before:
            await trio.lowlevel.checkpoint()
        assert await echo(value(b"hello")) == value(b"hello")
