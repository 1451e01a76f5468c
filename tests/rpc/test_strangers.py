"""Who knocks at the wrong door, and what their own programs then say."""

import socket
import ssl
from pathlib import Path

import grpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from tls_files import Files
from toy import Toy, serving

from trio_broker.rpc import frames
from trio_broker.rpc.strangers import recognise
from trio_broker.rpc.tls import server_context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("begin", [b"", b"P", b"\x16", b"\x16\x03", b"get / HTTP/1.1", b"\0" * 24, b"A" * 24])
def test_who_may_be_anybody_is_no_stranger(begin: bytes) -> None:
    assert recognise(begin, tls=False) is None
    assert recognise(begin, tls=True) is None


def test_who_speaks_what_the_port_speaks_is_no_stranger() -> None:
    assert recognise(frames.PREFACE, tls=False) is None
    assert recognise(b"\x16\x03\x01\x02\x00\x01", tls=True) is None


def say(port: int, words: bytes) -> bytes:
    """Say something from a thread; return all that is answered."""
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        stream.sendall(words)
        return b"".join(iter(lambda: stream.recv(4096), b""))


@pytest.mark.parametrize(("tls", "told"), [(True, b"This port speaks TLS"), (False, b"This port speaks gRPC")])
async def test_http1_is_answered_in_http1(files: Files, tls: bool, told: bytes) -> None:
    context = server_context(files.cert, files.key) if tls else None
    async with serving(Toy(), tls=context) as server:
        answer = await trio.to_thread.run_sync(say, server.port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert body.startswith(told)


def call(port: int, credentials: grpc.ChannelCredentials | None) -> grpc.RpcError:
    """Call once from a thread; return how it failed."""
    address = f"localhost:{port}"
    with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
        echo = channel.unary_unary("/toy.Toy/Echo", BytesValue.SerializeToString, BytesValue.FromString)
        with pytest.raises(grpc.RpcError) as failure:
            echo(BytesValue(), timeout=30)
    return failure.value


async def test_grpcio_says_that_it_has_met_no_grpc_where_it_should_speak_tls(files: Files) -> None:
    async with serving(Toy(), tls=server_context(files.cert, files.key)) as server:
        error = await trio.to_thread.run_sync(call, server.port, None)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "HTTP status 400" in error.details()


async def test_tls_libraries_say_that_a_port_speaks_plaintext(files: Files) -> None:
    async with serving(Toy()) as server:
        error = await trio.to_thread.run_sync(call, server.port, files.credentials())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "WRONG_VERSION_NUMBER" in error.details()
        stream = await trio.open_ssl_over_tcp_stream("localhost", server.port)
        with pytest.raises(trio.BrokenResourceError) as failure:
            await stream.do_handshake()
        assert isinstance(failure.value.__cause__, ssl.SSLError)
        assert failure.value.__cause__.reason == "WRONG_VERSION_NUMBER"
        await trio.aclose_forcefully(stream)


async def test_a_client_that_waits_for_the_server_to_speak_first_is_served(files: Files) -> None:
    async with serving(Toy()) as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        first = await stream.receive_some()
        assert first[3] == frames.SETTINGS
