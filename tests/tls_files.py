"""Certificates of the tests' own, as PEM files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import trustme


class Files:
    """An authority, a server's certificate for localhost, and a client's, as PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client-key.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.renew()
        self.issue_client("someone@example.org")

    def renew(self, *names: str, expires: datetime | None = None) -> None:
        """Write a new certificate of the server, and its key, over the ones before."""
        server = self.authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=expires)
        write(server, self.cert, self.key)

    def issue_client(self, *names: str, common_name: str | None = None, expires: datetime | None = None) -> None:
        """Write a new certificate of the client, and its key, over the ones before."""
        client = self.authority.issue_cert(*names, common_name=common_name, not_after=expires)
        write(client, self.client_cert, self.client_key)

    def credentials(self, *, of_client: bool = False) -> grpc.ChannelCredentials:
        """What a client in grpcio needs: the authority, and its own certificate if it is to show one."""
        own = (self.client_key.read_bytes(), self.client_cert.read_bytes()) if of_client else (None, None)
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), *own)


def write(issued: trustme.LeafCert, cert: Path, key: Path) -> None:
    """Write a certificate with its chain, and its key."""
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))


def days_from_now(days: float) -> datetime:
    """When a certificate may expire; whole seconds, as it says them."""
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
