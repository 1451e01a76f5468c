"""Who a client is by its certificate, as handlers of each kind and the log are told."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import purerpc
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from google.protobuf.wrappers_pb2 import BytesValue
from purerpc import Cardinality, RPCSignature
from tls_files import Files, days_from_now, write

from trio_broker.rpc.call import Call
from trio_broker.rpc.handlers import Context, drained, fed, grouped
from trio_broker.rpc.identity import NAME_MAX, Identity, identity_of
from trio_broker.rpc.server import Server
from trio_broker.rpc.tls import server_context

METHODS = {
    "Task": Cardinality.UNARY_UNARY,
    "Stream": Cardinality.STREAM_STREAM,
    "Grouped": Cardinality.UNARY_UNARY,
    "Drained": Cardinality.UNARY_STREAM,
    "Fed": Cardinality.STREAM_STREAM,
}
NOBODY = Identity("", (), (), (), "ab12")


class Names:
    """Answers each call with the name of who calls; it is a source and a feed of one message, too."""

    def service(self) -> purerpc.Service:
        @grouped()
        async def in_group(calls: list[Call], request: None = None) -> None:
            for call in calls:
                call.reply(named(call.identity).SerializeToString())

        @drained()
        async def in_source(message: BytesValue, request: Context) -> OneAnswer:
            return OneAnswer(request.call)

        @fed()
        def in_feed(call: Call, request: None = None) -> OneAnswer:
            return OneAnswer(call)

        service = purerpc.Service("toy.Names")
        handlers = {"Task": in_task, "Stream": in_stream, "Grouped": in_group, "Drained": in_source, "Fed": in_feed}
        for name, cardinality in METHODS.items():
            service.add_method(name, handlers[name], RPCSignature(cardinality, BytesValue, BytesValue))
        return service


async def in_task(message: BytesValue, request: Context) -> BytesValue:
    return named(request.identity)


async def in_stream(messages: AsyncIterator[BytesValue], request: Context) -> AsyncIterator[BytesValue]:
    async for _ in messages:
        yield named(request.identity)


class OneAnswer:
    def __init__(self, call: Call) -> None:
        call.send(framed_name(call))
        call.finish(purerpc.Status())

    def take(self, call: Call, credit: int) -> bytes:
        return b""

    def feed(self) -> None: ...

    def retire(self) -> None: ...

    def close(self) -> None: ...


def framed_name(call: Call) -> bytes:
    message = named(call.identity).SerializeToString()
    return b"\0" + len(message).to_bytes(4) + message


def named(identity: Identity | None) -> BytesValue:
    return BytesValue(value=b"nobody" if identity is None else identity.name.encode())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(files: Files, *, client_ca: bool = True) -> AsyncGenerator[int]:
    server = Server(tls=server_context(files.cert, files.key, files.ca if client_ca else None))
    server.add_service(Names().service())
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.serve_async)
        nursery.cancel_scope.cancel()


def ask(port: int, credentials: grpc.ChannelCredentials, method: str = "Task") -> str:
    """Call once from a thread; return the name that came back, or the status."""
    cardinality = METHODS[method]
    kinds = {
        Cardinality.UNARY_UNARY: "unary_unary",
        Cardinality.UNARY_STREAM: "unary_stream",
        Cardinality.STREAM_STREAM: "stream_stream",
    }
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        path = f"/toy.Names/{method}"
        call = getattr(channel, kinds[cardinality])(path, BytesValue.SerializeToString, BytesValue.FromString)
        argument = iter([BytesValue()]) if cardinality is Cardinality.STREAM_STREAM else BytesValue()
        try:
            answer = call(argument, timeout=30)
            return (answer if cardinality is Cardinality.UNARY_UNARY else next(answer)).value.decode()
        except grpc.RpcError as error:
            return str(error.code().name)


@pytest.mark.parametrize("method", METHODS)
async def test_handlers_of_every_kind_are_told_who_calls(files: Files, method: str) -> None:
    async with serving(files) as port:
        for who in ("orders.example.org", "billing.example.org"):
            files.issue_client(who)
            credentials = files.credentials(of_client=True)
            assert await trio.to_thread.run_sync(ask, port, credentials, method) == who


async def test_without_a_client_authority_nobody_is_known(files: Files) -> None:
    async with serving(files, client_ca=False) as port:
        assert await trio.to_thread.run_sync(ask, port, files.credentials(of_client=True)) == "nobody"


async def test_a_certificate_that_is_not_to_be_trusted_makes_no_calls(files: Files) -> None:
    async with serving(files) as port:
        files.issue_client("late.example.org", expires=days_from_now(-1))
        assert await trio.to_thread.run_sync(ask, port, files.credentials(of_client=True)) == "UNAVAILABLE"
        write(trustme.CA().issue_cert("foreign.example.org"), files.client_cert, files.client_key)
        assert await trio.to_thread.run_sync(ask, port, files.credentials(of_client=True)) == "UNAVAILABLE"
        assert await trio.to_thread.run_sync(ask, port, files.credentials()) == "UNAVAILABLE"


def revocation_list(files: Files, *certificates: Path) -> bytes:
    """Return the authority's list of the certificates that it has revoked, in PEM."""
    authority = x509.load_pem_x509_certificate(files.ca.read_bytes())
    key = serialization.load_pem_private_key(files.authority.private_key_pem.bytes(), None)
    listed = x509.CertificateRevocationListBuilder().issuer_name(authority.subject)
    listed = listed.last_update(days_from_now(-1)).next_update(days_from_now(1))
    for certificate in certificates:
        number = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(days_from_now(-1)).build()
        listed = listed.add_revoked_certificate(revoked)
    return listed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def test_a_certificate_that_was_revoked_makes_no_calls(files: Files) -> None:
    files.ca.write_bytes(files.ca.read_bytes() + revocation_list(files, files.client_cert))
    async with serving(files) as port:
        assert await trio.to_thread.run_sync(ask, port, files.credentials(of_client=True)) == "UNAVAILABLE"
        files.issue_client("other.example.org")
        assert await trio.to_thread.run_sync(ask, port, files.credentials(of_client=True)) == "other.example.org"


def session(told: dict[str, object] | None) -> SimpleNamespace:
    """As much of a session of `ssl` as is looked at."""
    return SimpleNamespace(getpeercert=lambda binary_form=False: (b"DER" if binary_form else told) if told else None)


def test_what_a_certificate_says() -> None:
    told = {
        "subject": (
            (("countryName", "SE"),),
            (("organizationName", "Sm\u00f6rg\u00e5s, Inc."),),
            (("commonName", "#1"), ("serialNumber", "7 ")),
        ),
        "subjectAltName": (
            ("DNS", "a.example.org"),
            ("URI", "spiffe://example.org/a"),
            ("email", "a@example.org"),
            ("DNS", "b.example.org"),
            ("IP Address", "10.0.0.7"),
        ),
    }
    identity = identity_of(session(told))
    assert identity is not None
    assert identity.subject == "CN=\\#1+serialNumber=7\\ ,O=Sm\u00f6rg\u00e5s\\, Inc.,C=SE"
    assert identity.dns == ("a.example.org", "b.example.org")
    assert identity.uris == ("spiffe://example.org/a",)
    assert identity.emails == ("a@example.org",)
    assert len(identity.fingerprint) == 64


def test_a_name_for_logs_is_the_most_telling_one() -> None:
    full = Identity("CN=s", ("d",), ("u",), ("e",), "ab12")
    fields = [{}, {"uris": ()}, {"dns": ()}, {"emails": ()}, {"subject": ""}]
    names = []
    for each in fields:
        full = full._replace(**each)
        names.append(full.name)
    assert names == ["u", "d", "e", "CN=s", "sha256:ab12"]


def test_a_name_for_logs_acts_on_no_terminal_and_has_an_end() -> None:
    name = NOBODY._replace(uris=("\x1b[31m\n" + "x" * 9999,)).name
    assert name.startswith("\\x1b[31m\\nxx")
    assert len(name) == NAME_MAX + 4


def test_who_shows_nothing_is_nobody() -> None:
    assert identity_of(session(None)) is None
    assert identity_of(session({})) is None
