"""The client over TLS: whom it trusts, what it shows, and what it says when it gets no answer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from tls_files import Files, days_from_now, write

from trio_broker.broker import open_broker
from trio_broker.client import client_context, connect
from trio_broker.errors import ConnectionLost
from trio_broker.rpc.server import Server
from trio_broker.rpc.tls import server_context
from trio_broker.service.servicer import BrokerService


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(files: Files, *, client_ca: bool = False, tls: bool = True) -> AsyncGenerator[str]:
    """Serve a broker; its certificate is for localhost and 127.0.0.1 unless it was renewed."""
    context = server_context(files.cert, files.key, files.ca if client_ca else None) if tls else None
    async with open_broker("memory:") as broker, trio.open_nursery() as nursery:
        server = Server(tls=context)
        server.add_service(BrokerService(broker).service)
        port = await nursery.start(server.serve_async)
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def failure(address: str, *args: Path, **named: str) -> str:
    """Try to connect and call; return what is said."""
    with pytest.raises(ConnectionLost) as lost:
        async with connect(address, tls=client_context(*args), **named) as client:
            await client.fetch("s", 1)
    return str(lost.value)


async def test_messages_are_published_and_heard_over_tls(files: Files) -> None:
    async with serving(files, client_ca=True) as address:
        context = client_context(files.ca, files.client_cert, files.client_key)
        async with connect(address, tls=context) as client, client.subscribe("s") as messages:
            large = bytes(1_000_000)
            assert await client.publish("s", large, None) == 1
            assert (await anext(messages)).body == large
            assert (await client.fetch("s", 1)).body == large


async def test_a_key_may_be_in_the_file_of_its_certificate(files: Files) -> None:
    both = files.folder / "both.pem"
    both.write_bytes(files.client_cert.read_bytes() + files.client_key.read_bytes())
    async with (
        serving(files, client_ca=True) as address,
        connect(address, tls=client_context(files.ca, both)) as client,
    ):
        assert await client.publish("s", b"") == 1


async def test_a_broker_that_is_not_to_be_trusted_is_not_called(files: Files) -> None:
    other = files.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with serving(files) as address:
        assert "its certificate is not trusted: unable to get local issuer" in await failure(address, other)
        mismatch = await failure(address, files.ca, server_name="broker.example.org")
        assert "Hostname mismatch, certificate is not valid for 'broker.example.org'" in mismatch
    files.renew(expires=days_from_now(-1))
    async with serving(files) as address:
        assert "its certificate is not trusted: certificate has expired" in await failure(address, files.ca)


async def test_a_name_is_checked_instead_of_the_host_if_it_is_given(files: Files) -> None:
    files.renew("broker.example.org")
    async with serving(files) as address:
        assert "IP address mismatch" in await failure(address, files.ca)
        async with connect(address, tls=client_context(files.ca), server_name="broker.example.org") as client:
            assert await client.publish("s", b"") == 1


async def test_who_is_not_trusted_is_told_why(files: Files) -> None:
    async with serving(files, client_ca=True) as address:
        assert "it serves only clients that show a certificate" in await failure(address, files.ca)
        own = (files.client_cert, files.client_key)
        files.issue_client("late.example.org", expires=days_from_now(-1))
        assert "our certificate has expired" in await failure(address, files.ca, *own)
        write(trustme.CA().issue_cert("foreign.example.org"), *own)
        assert "it does not trust the authority of our certificate" in await failure(address, files.ca, *own)


async def test_at_the_wrong_door_it_says_which_one_is_right(files: Files) -> None:
    async with serving(files, tls=False) as address:
        assert await failure(address, files.ca) == f"no broker answers at {address} by TLS: it speaks no TLS"
    async with serving(files) as address:
        with pytest.raises(ConnectionLost, match="This port speaks TLS, and you do not"):
            async with connect(address):
                pass


def test_files_that_do_not_fit_are_named(files: Files) -> None:
    gone = files.folder / "gone.pem"
    with pytest.raises(OSError, match=r"the authority .*gone\.pem: No such file"):
        client_context(gone)
    with pytest.raises(OSError, match=r"the certificate .*client\.pem with the key .*key\.pem: KEY_VALUES_MISMATCH"):
        client_context(files.ca, files.client_cert, files.key)
    with pytest.raises(OSError, match=r"the certificate .*client\.pem with the key in it"):
        client_context(files.ca, files.client_cert)
