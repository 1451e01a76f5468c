"""A node that asks for passwords and grants rights, encrypts, and syncs its commit log and takes TTLs as it comes."""

import logging
from collections.abc import AsyncGenerator, Iterator
from itertools import count
from pathlib import Path

import pytest
import trustme
from cassandra_keyspaces import connected
from cassandra_server import CassandraServer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from postgres_kit import ids, message

from persistence import CannotOpen, Head, Rejected, Store, open_store

YEAR_S = 365 * 24 * 3600
_numbers = count(1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def server(
    cassandra_installed: None, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CassandraServer]:
    certificate = authority.issue_cert("127.0.0.1")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    keystore = tmp_path_factory.mktemp("node") / "node.pem"
    keystore.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    )
    with CassandraServer(
        authenticator="PasswordAuthenticator",
        authorizer="CassandraAuthorizer",
        permissions_validity="0ms",  # a right that is granted counts at once
        commitlog_sync="periodic",
        storage_compatibility_mode="CASSANDRA_4",
        client_encryption_options={
            "enabled": True,
            "optional": True,
            "keystore": str(keystore),
            "ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"},
        },
    ) as server:
        yield server


@pytest.fixture
def url(server: CassandraServer) -> str:
    """The superuser's, in a keyspace that is not there yet."""
    return server.url(f"guarded_{next(_numbers)}")


@pytest.fixture
async def store(url: str) -> AsyncGenerator[Store]:
    async with open_store(url) as store:
        yield store


async def refusal(url: str, **options: bool) -> str:
    with pytest.raises(CannotOpen) as refused:
        async with open_store(url, **options):
            pass
    return str(refused.value)


async def test_a_wrong_password_and_none(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = await refusal(url.replace(":cassandra@", ":wr0ng@"))
    assert text.endswith("check the user and the password in the URL")
    assert "wr0ng" not in text + caplog.text
    text = await refusal(url.replace("cassandra:cassandra@", ""))
    assert text.endswith("write user:password@ in the URL")


async def test_a_password_in_a_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("cassandra\n")
    url = url.replace(":cassandra@", "@") + f"&password_file={tmp_path / 'password'}"
    async with open_store(url) as store:
        assert ids(await store.append([message()])) == [1]


async def test_a_role_that_may_make_nothing_and_one_that_may_use_what_was_made(url: str) -> None:
    keyspace = url.rpartition("/")[2].partition("?")[0]
    role_url = url.replace("cassandra:cassandra@", f"{keyspace}:pw@")
    with connected(url) as administrator:
        administrator.execute(f"CREATE ROLE {keyspace} WITH PASSWORD = 'pw' AND LOGIN = true")
        text = await refusal(role_url)
        assert "has no CREATE permission" in text
        assert text.endswith("let an administrator GRANT it, or run what `trio-broker migrate sql` prints")
        async with open_store(url):
            pass
        assert "has no SELECT permission" in await refusal(role_url)
        for right in ("SELECT", "MODIFY"):
            administrator.execute(f"GRANT {right} ON KEYSPACE {keyspace} TO {keyspace}")
    async with open_store(role_url) as store:
        assert ids(await store.append([message()])) == [1]
        assert store.durability().setting.endswith("commitlog_sync=unknown")  # it is not for it to see
        assert not store.durability().durable
    with connected(url) as administrator:
        administrator.execute(f"GRANT SELECT ON system_views.settings TO {keyspace}")
    async with open_store(role_url) as store:
        assert store.durability().setting.endswith("commitlog_sync=periodic")


async def test_encrypted(url: str, ca_file: Path) -> None:
    async with open_store(f"{url}&ca={ca_file}") as store:
        assert ids(await store.append([message(body=b"secret")])) == [1]


async def test_a_certificate_of_an_unknown_authority(url: str) -> None:
    text = await refusal(f"{url}&ssl=true")
    assert "certificate verify failed" in text
    assert text.endswith("name the authority that signed the nodes' certificates by ca= in the URL")


async def test_a_commit_log_that_is_synced_now_and_then_is_told(store: Store) -> None:
    durability = store.durability()
    assert durability.setting.endswith(" commitlog_sync=periodic")
    assert not durability.durable
    assert durability.meaning.startswith("durable but for the last seconds: a node that crashes loses them")


async def test_what_would_expire_too_late_for_the_node_is_refused_and_nothing_else(store: Store) -> None:
    batch = [message(expiration_s=seconds) for seconds in (60, 20 * YEAR_S, 60, 0)]
    first, refused, second, third, other = await store.append([*batch, message("other")])
    assert ids([first, second, third, other]) == [1, 2, 3, 1]
    assert isinstance(refused, Rejected)
    assert "2038" in refused.why
    assert isinstance((await store.append([message("new", expiration_s=20 * YEAR_S)]))[0], Rejected)
    assert await store.head("new") == Head(1, 0)
