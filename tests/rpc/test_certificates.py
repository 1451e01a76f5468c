"""A certificate that is renewed while a server runs: used for new connections, and those that are open go on."""

import logging
import os
import socket
import ssl
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
import trio
import trustme
from google.protobuf.wrappers_pb2 import BytesValue
from tls_files import Files, days_from_now, write
from toy import Toy

from trio_broker.rpc import certificates
from trio_broker.rpc.certificates import Certificates, not_after
from trio_broker.rpc.server import Server


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def loaded(files: Files) -> Certificates:
    return Certificates(files.cert, files.key, files.ca)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_files_that_have_not_changed_are_not_loaded_again(files: Files, loaded: Certificates) -> None:
    before = loaded.context
    assert not loaded.look()
    os.utime(files.cert)
    assert not loaded.look()
    assert (loaded.context, loaded.reloads) == (before, 0)


@pytest.mark.parametrize("which", ["pair", "client authority"])
def test_what_has_changed_is_loaded(files: Files, loaded: Certificates, which: str) -> None:
    before = loaded.context
    if which == "pair":
        files.renew()
    else:
        trustme.CA().cert_pem.write_to_path(str(files.ca))
    assert loaded.look()
    assert loaded.context is not before
    assert not loaded.look(), "once"
    assert loaded.reloads == 1


def test_a_link_that_is_changed_is_followed(files: Files) -> None:
    """As Kubernetes does for a Secret that is mounted: the files stay, and ..data points to another folder."""
    data = files.folder / "..data"
    for version in ("first", "second"):
        (files.folder / version).mkdir()
        write(files.authority.issue_cert("localhost"), *(files.folder / version / name for name in ("crt", "key")))
    data.symlink_to("first")
    for name in ("crt", "key"):
        (files.folder / name).symlink_to(f"..data/{name}")
    loaded = Certificates(files.folder / "crt", files.folder / "key")
    assert not loaded.look()
    (files.folder / "..new").symlink_to("second")
    (files.folder / "..new").rename(data)
    assert loaded.look()


def test_a_certificate_that_waits_for_its_key_changes_nothing(
    files: Files, loaded: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    before, key = loaded.context, files.key.read_bytes()
    files.renew()
    renewed, _ = files.key.read_bytes(), files.key.write_bytes(key)
    assert not loaded.look()
    assert (errors(caplog), loaded.usable) == ([], True), "it may become whole in a moment"
    files.key.write_bytes(renewed)
    assert loaded.look()
    assert loaded.context is not before
    assert errors(caplog) == []


def test_a_pair_that_does_not_fit_is_told_once_and_the_one_before_stays(
    files: Files, loaded: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    before, good = loaded.context, files.key.read_bytes()
    files.key.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert [loaded.look() for _ in range(4)] == [False] * 4
    assert (loaded.context, loaded.usable) == (before, False)
    (error,) = errors(caplog)
    assert str(files.cert) in error
    assert "KEY_VALUES_MISMATCH" in error
    assert not loaded.look(asked=True)
    assert len(errors(caplog)) == 2, "who asks is answered"
    files.key.write_bytes(good)
    assert not loaded.look()
    assert (loaded.context, loaded.usable) == (before, True), "as it was: nothing to load"


def test_a_file_that_is_gone_is_told(files: Files, loaded: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    files.ca.unlink()
    assert not loaded.look()
    assert not loaded.look()
    assert [str(files.ca) in error for error in errors(caplog)] == [True]


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(files: Files) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(OSError, match="the key is encrypted"):
        Certificates(files.cert, files.key)


def test_when_a_certificate_expires(files: Files) -> None:
    for days in (1, 30, 40 * 365):  # the last beyond 2049, where certificates write years in full
        expires = days_from_now(days)
        files.renew(expires=expires)
        assert Certificates(files.cert, files.key).expires_at == expires.timestamp()


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x03abc", b"\x30\x82\xff"])
def test_what_is_no_certificate_has_no_end(der: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        not_after(der)


def serial(port: int, ca: Path) -> str:
    """Return the number of the certificate that a server shows."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), 30) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as encrypted,
    ):
        return str(encrypted.getpeercert()["serialNumber"])


async def test_new_connections_get_the_renewed_certificate_and_open_streams_go_on(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_INTERVAL_S", 0.01)
    loaded = Certificates(files.cert, files.key)
    server = Server(tls=loaded.context)
    server.add_service(Toy().service())
    renewed = trio.Event()

    def use(context: ssl.SSLContext) -> None:
        server.encrypt_with(context)
        renewed.set()

    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_async)
        nursery.start_soon(loaded.keep_looking, use)
        before = await trio.to_thread.run_sync(serial, port, files.ca)
        words: SimpleQueue[BytesValue | None] = SimpleQueue()
        channel = grpc.secure_channel(f"localhost:{port}", files.credentials())
        chat = channel.stream_stream("/toy.Toy/Chat", BytesValue.SerializeToString, BytesValue.FromString)
        answers = chat(iter(words.get, None), timeout=60)
        words.put(BytesValue(value=b"before"))
        assert (await trio.to_thread.run_sync(next, answers)).value == b"before"
        files.renew()
        await renewed.wait()
        after = await trio.to_thread.run_sync(serial, port, files.ca)
        assert after != before
        words.put(BytesValue(value=b"after"))
        assert (await trio.to_thread.run_sync(next, answers)).value == b"after"
        words.put(None)
        await trio.to_thread.run_sync(channel.close)
        nursery.cancel_scope.cancel()


async def test_who_asks_does_not_wait_for_the_next_look(files: Files, autojump_clock: None) -> None:
    loaded = Certificates(files.cert, files.key)
    renewed = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loaded.keep_looking, lambda _: renewed.set())
        loaded.reload()
        await renewed.wait()
        nursery.cancel_scope.cancel()
    assert loaded.reloads == 1, "though nothing has changed"
