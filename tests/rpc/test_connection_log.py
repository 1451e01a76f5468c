"""What the debug log says of connections: one line when each opens, one when it is closed, with the reason."""

import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from h2_peer import ping
from tls_files import Files
from toy import Toy, Wire, connected, serving

from trio_broker.rpc import frames
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.server import Server
from trio_broker.rpc.tls import server_context

HTTP1 = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLIENT_HELLO_BEGINS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(99)


@pytest.fixture(autouse=True)
def debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_broker.rpc.transport")


async def until_closed(server: Server) -> None:
    while server.transports:
        await trio.testing.wait_all_tasks_blocked()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The events, each with its values."""
    found = []
    for record in caplog.records:
        event, *keys = [part.partition("=")[0] for part in record.msg.split()]
        found.append({"event": event, **dict(zip(keys, record.args, strict=True))})
    return found


def cuts(server: Server) -> dict[str, int]:
    return {limit: count for limit, count in server.connections_cut.items() if count}


async def leave(server: Server, wire: Wire) -> None:
    await wire.stream.aclose()


async def say_goodbye(server: Server, wire: Wire) -> None:
    await wire.write(frames.goaway(0, frames.ENHANCE_YOUR_CALM, "too_many_pings\x1b" + "\0" * 1000))
    await wire.stream.aclose()


async def break_a_rule(server: Server, wire: Wire) -> None:
    await wire.write(frames.frame(frames.PING, 0, 1, bytes(8)))
    await wire.to_the_end()


async def break_off(server: Server, wire: Wire) -> None:
    wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await wire.stream.aclose()


async def be_drained(server: Server, wire: Wire) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain)
        while not any(frame.stream_id == 0 and frame.type == frames.PING for frame in wire.frames):
            assert await wire.read()
        await wire.write(ping(b"draining", frames.ACK))
        await wire.to_the_end()


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (leave, "the client closed"),
        (
            say_goodbye,
            f"the client closed, after GOAWAY ENHANCE_YOUR_CALM {b'too_many_pings' + bytes([27]) + bytes(85)!r}",
        ),
        (break_a_rule, "GOAWAY PROTOCOL_ERROR: PING on a stream"),
        (break_off, "[Errno 104] Connection reset by peer"),
        (be_drained, "drained"),
    ],
)
async def test_why_a_connection_was_closed(
    end: Callable[[Server, Wire], Awaitable[None]], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Toy()) as server, connected(server) as wire:
        host, port = wire.stream.socket.getsockname()
        await end(server, wire)
        await until_closed(server)
    assert cuts(server) == {}, "for no limit"
    opened, closed = lines(caplog)
    assert opened == {
        "event": "connection_opened",
        "peer": f"{host}:{port}",
        "connection_id": opened["connection_id"],
    }
    assert closed == {**opened, "event": "connection_closed", "why": why}


async def test_a_flood_is_cut_for_a_limit() -> None:
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(ping() * 200)
        assert (await wire.to_the_end())[-1] == "GOAWAY 0 ENHANCE_YOUR_CALM"
        await until_closed(server)
    assert cuts(server) == {"flood": 1}


async def test_a_server_that_stops_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Toy()) as server, connected(server):
        pass
    assert lines(caplog)[-1]["why"] in ("the server stops", "the client closed")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("begin", [b"", frames.PREFACE[:9], frames.PREFACE])
async def test_a_client_that_does_not_come_to_speak_http2(
    begin: bytes, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
    begin = CLIENT_HELLO_BEGINS[: len(begin)] if tls else begin
    async with serving(Toy(), tls=context, limits=Limits(handshake_s=0.01)) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            if begin:
                await stream.send_all(begin)
            while await stream.receive_some():
                pass
        await until_closed(server)
    assert lines(caplog)[-1]["why"] == "no HTTP/2 within 0.01 s"
    assert cuts(server) == {"handshake": 1}


async def test_a_client_that_speaks_http2_has_all_time() -> None:
    async with serving(Toy()) as server, connected(server):
        (transport,) = server.transports
        assert transport._reader.deadline == math.inf


@pytest.mark.parametrize(
    ("tls", "begin", "why"),
    [
        (True, frames.PREFACE, "HTTP/2 without TLS, where TLS is spoken"),
        (True, HTTP1, "HTTP/1 without TLS, where TLS is spoken"),
        (True, b"\0" * 99, "TLS failed: "),
        (False, HTTP1, "HTTP/1, where HTTP/2 is spoken"),
        (False, CLIENT_HELLO_BEGINS, "TLS, where plaintext is spoken"),
        (False, b"\0" * 99, "GOAWAY PROTOCOL_ERROR: this port speaks HTTP/2 (gRPC) only"),
    ],
)
async def test_a_client_at_the_wrong_door_is_one_line(
    tls: bool, begin: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
    async with serving(Toy(), tls=context) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(begin)
            while await stream.receive_some():
                pass
        await until_closed(server)
    opened, closed = lines(caplog)
    assert opened["event"] == "connection_opened"
    assert str(closed["why"]).startswith(why)


async def test_a_client_with_a_certificate_is_named_once_it_is_encrypted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)
    files.issue_client("someone@example.org")
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.client_cert, files.client_key)
    context.set_alpn_protocols(["h2"])
    async with serving(Toy(), tls=server_context(files.cert, files.key, files.ca)) as server:
        stream = await trio.open_ssl_over_tcp_stream("localhost", server.port, ssl_context=context)
        async with stream:
            assert await stream.receive_some(), "SETTINGS"
        await until_closed(server)
    _, encrypted, _ = lines(caplog)
    assert (encrypted["event"], encrypted["version"]) == ("connection_encrypted", "TLSv1.3")
    assert encrypted["client"] == "someone@example.org"
