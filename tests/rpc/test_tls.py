"""TLS with real certificates and a real client: who gets in, who does not, and that plaintext stays out."""

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
import trio
import trustme
from google.protobuf.wrappers_pb2 import BytesValue
from tls_files import Files
from toy import Toy

from trio_broker.rpc.server import Server
from trio_broker.rpc.tls import Tls, server_context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncGenerator[int]:
    server = Server(tls=context)
    server.add_service(Toy().service())
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.serve_async)
        nursery.cancel_scope.cancel()


def echo(port: int, credentials: grpc.ChannelCredentials | None) -> str:
    """Call once from a thread; return the status."""
    address = f"localhost:{port}"
    with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/toy.Toy/Group", BytesValue.SerializeToString, BytesValue.FromString)
        try:
            call(BytesValue(value=b"hello" * 100_000), timeout=30)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


async def test_a_client_that_trusts_the_authority_is_served(files: Files) -> None:
    async with serving(server_context(files.cert, files.key)) as port:
        trusting = grpc.ssl_channel_credentials(files.ca.read_bytes())
        doubting = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        assert await trio.to_thread.run_sync(echo, port, trusting) == "OK"
        assert await trio.to_thread.run_sync(echo, port, doubting) == "UNAVAILABLE"


async def test_with_a_client_authority_only_its_clients_are_served(files: Files) -> None:
    async with serving(server_context(files.cert, files.key, files.ca)) as port:
        known = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), files.client_key.read_bytes(), files.client_cert.read_bytes()
        )
        stranger = trustme.CA().issue_cert("someone@example.org")
        other = grpc.ssl_channel_credentials(
            files.ca.read_bytes(), stranger.private_key_pem.bytes(), stranger.cert_chain_pems[0].bytes()
        )
        nobody = grpc.ssl_channel_credentials(files.ca.read_bytes())
        assert await trio.to_thread.run_sync(echo, port, known) == "OK"
        assert await trio.to_thread.run_sync(echo, port, other) == "UNAVAILABLE"
        assert await trio.to_thread.run_sync(echo, port, nobody) == "UNAVAILABLE"


async def test_plaintext_is_not_served_on_a_tls_port(files: Files) -> None:
    async with serving(server_context(files.cert, files.key)) as port:
        assert await trio.to_thread.run_sync(echo, port, None) == "UNAVAILABLE"
        credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
        assert await trio.to_thread.run_sync(echo, port, credentials) == "OK", "others are served as before"


def handshake(port: int, context: ssl.SSLContext) -> bytes:
    """Shake hands from a thread; return what the server says first."""
    with (
        socket.create_connection(("127.0.0.1", port), 30) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as encrypted,
    ):
        return encrypted.recv(9)


@pytest.mark.parametrize("alpn", [["http/1.1"], []])
async def test_a_client_that_does_not_offer_http2_is_refused(files: Files, alpn: list[str]) -> None:
    context = ssl.create_default_context(cafile=str(files.ca))
    if alpn:
        context.set_alpn_protocols(alpn)
    async with serving(server_context(files.cert, files.key)) as port:
        with suppress(OSError):  # a reset says the same as an end
            assert await trio.to_thread.run_sync(handshake, port, context) == b""
        context.set_alpn_protocols(["h2"])
        first = await trio.to_thread.run_sync(handshake, port, context)
        assert first[3] == 4, "SETTINGS"


async def test_tls_before_1_2_is_refused(files: Files) -> None:
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(["h2"])
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(server_context(files.cert, files.key)) as port:
        with pytest.raises(ssl.SSLError):
            await trio.to_thread.run_sync(handshake, port, context)


def shaken_hands(files: Files) -> Tls:
    """The server's end of a session without sockets, after its handshake."""
    ours = Tls(server_context(files.cert, files.key))
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while theirs.version() is None:
        with suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
        ours.decrypt(outgoing.read())
        incoming.write(ours.encrypt(b""))
    return ours


def test_what_is_to_be_sent_after_a_session_is_over_is_dropped(files: Files) -> None:
    """Calls may end then and have something to say: no error, and no bug, is that nobody can hear it."""
    closed = shaken_hands(files)
    assert closed.encrypt(b"heard")
    assert closed.close()
    assert closed.encrypt(b"not heard") == b""
    broken = shaken_hands(files)
    with pytest.raises(ssl.SSLError):
        broken.decrypt(b"this is no record of TLS")
    broken.encrypt(b"not heard")


def test_files_that_do_not_fit_are_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.pem.*No such file"):
        server_context(tmp_path / "gone.pem", files.key)
    with pytest.raises(OSError, match=r"the certificate .*ca\.pem with the key .*key\.pem"):
        server_context(files.ca, files.key)
    (tmp_path / "text.pem").write_text("not PEM")
    with pytest.raises(OSError, match=r"the client CA .*text\.pem"):
        server_context(files.cert, files.key, tmp_path / "text.pem")
