"""TLS without I/O, between the socket's bytes and the connection's (RFC 9113, section 9.2; RFC 7301).

Owns:      the server's TLS settings, the handshake, encryption and decryption of one connection.
Not here:  sockets (transport.py), HTTP/2, which does not know whether it is encrypted.
Threads:   the trio thread; nothing here waits.
"""

import ssl
from contextlib import suppress
from pathlib import Path

from trio_broker.rpc.identity import Identity, identity_of

_RECORD_BYTES = 16 * 1024
"""The most that is in a record (RFC 8446, section 5.1), and so in what is read at once."""
_CIPHERS_OF_TLS_1_2 = ":".join(
    f"ECDHE-{signed}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for signed in ("ECDSA", "RSA")
)
"""Those with forward secrecy that HTTP/2 allows (RFC 9113, section 9.2.2): Mozilla's "intermediate" but for DHE, which
nobody needs who speaks HTTP/2 (https://wiki.mozilla.org/Security/Server_Side_TLS). TLS 1.3 has no others."""


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """Return the settings of a gRPC server: TLS 1.2 or later, ALPN ``h2``; with ``client_ca``, mutual.

    Args:
        certificate: the server's own, then those of the authorities between it and a root.
        key: of the first one, without a password.
        client_ca: whose clients are served. If it has revocation lists too (``X509 CRL``), it has to have one of every
            authority that issues to clients, and none may be out of date: else its clients are refused (RFC 5280, 5).

    Raises:
        OSError: a file cannot be read, or does not hold what it should; the text names it.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION  # section 9.2.1
    context.set_ciphers(_CIPHERS_OF_TLS_1_2)
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except OSError as error:
        raise OSError(f"cannot use the certificate {certificate} with the key {key}: {why_unusable(error)}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise OSError(f"cannot use the client CA {client_ca}: {why_unusable(error)}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        if context.cert_store_stats()["crl"]:
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _refuse_to_ask() -> str:
    """OpenSSL would ask on the terminal."""
    raise OSError("the key is encrypted: nobody is there to type its password; store it without one")


def why_unusable(error: OSError) -> str:
    """Return why a PEM file cannot be used, where OpenSSL names no file."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is not PEM"
    return error.strerror or str(error)


class Tls:
    """The server's end of one encrypted connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early: list[bytes] = []
        """What is to be sent once the handshake is done."""
        self.shaken = False
        """The handshake is done."""
        self.identity: Identity | None = None
        """Who the peer is; None: it has shown no certificate, or not yet."""

    @property
    def agreed(self) -> tuple[str, str]:
        """The version and the cipher, once the handshake is done."""
        name, _, _ = self._session.cipher() or ("", "", 0)
        return self._session.version() or "", name

    def decrypt(self, data: bytes) -> bytes:
        """Take bytes from the socket; return what was in them. `encrypt` may have something to send afterwards.

        Raises:
            ssl.SSLError: the peer does not speak TLS, or is not trusted, or does not speak HTTP/2.
        """
        self._incoming.write(data)
        plain = []
        try:
            if not self.shaken:
                self._session.do_handshake()
                if self._session.selected_alpn_protocol() != "h2":  # RFC 9113, section 3.2
                    raise ssl.SSLError("the peer did not offer HTTP/2 (ALPN h2)")
                self.identity = identity_of(self._session)
                self.shaken = True
            # Asked first whether there is anything: to be told by an exception takes longer than to decrypt a record.
            while self._incoming.pending or self._session.pending():
                chunk = self._session.read(_RECORD_BYTES)
                if not chunk:  # the peer has closed its half
                    break
                plain.append(chunk)
        except ssl.SSLWantReadError:
            pass
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def encrypt(self, data: bytes) -> bytes:
        """Return what is to be sent: ``data`` encrypted, and whatever TLS itself has to say.

        What comes after `close`, or after `decrypt` has failed, is dropped: the session is over.
        """
        if data:
            self._early.append(data)
        if self.shaken:
            with suppress(ssl.SSLError):
                for each in self._early:
                    self._session.write(each)
            self._early.clear()
        return self._outgoing.read()

    def close(self) -> bytes:
        """Return the closing alert (RFC 8446, section 6.1)."""
        with suppress(ssl.SSLError):  # it wants the peer's alert too, for which we do not wait
            self._session.unwrap()
        return self._outgoing.read()
