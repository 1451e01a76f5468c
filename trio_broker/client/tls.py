"""TLS of a client: whom it trusts, what it shows, and what went wrong in plain words.

Owns:      the settings, the handshake, and the texts of its failures.
Not here:  the connection that is encrypted (trio_broker/client/channel.py); the server's side (trio_broker/rpc/tls.py).
Threads:   the trio thread only.
"""

import ssl
from pathlib import Path
from typing import Final

import trio

from trio_broker.client.wire import never_reached
from trio_broker.errors import ConnectionLost
from trio_broker.notation import Address, TcpAddress
from trio_broker.rpc.tls import why_unusable

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

_PLAINTEXT: Final = "it speaks no TLS"
_WORDS: Final = {
    "WRONG_VERSION_NUMBER": _PLAINTEXT,
    "RECORD_LAYER_FAILURE": _PLAINTEXT,
    "PACKET_LENGTH_TOO_LONG": _PLAINTEXT,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it serves only clients that show a certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses us; it may want a certificate, or other TLS versions or ciphers",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no TLS version that we do: 1.2 or later",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "it does not speak HTTP/2 over TLS",
    "UNEXPECTED_EOF_WHILE_READING": "closed by the broker",
}
"""What OpenSSL's reasons mean to us; for others its own text has to do."""


def client_context(
    ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
) -> ssl.SSLContext:
    """Return TLS settings for `connect`: TLS 1.2 or later, the server's certificate and name are checked.

    Args:
        ca: a PEM file of the authorities to trust; None: those that the system trusts.
        certificate: a PEM file of the client's own certificate and its chain, for a broker that asks for one.
        key: a PEM file of its key, without a password; None: it is in the same file.

    Raises:
        OSError: a file cannot be read, or does not hold what it should; the text names it.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise OSError(f"cannot use the authority {ca}: {why_unusable(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_refuse_to_ask)
        except OSError as error:
            beside = f"with the key {key}" if key is not None else "with the key in it"
            raise OSError(f"cannot use the certificate {certificate} {beside}: {why_unusable(error)}") from error
    return context


async def encrypt(
    stream: trio.SocketStream, address: Address, context: ssl.SSLContext, server_name: str | None
) -> trio.SSLStream[trio.SocketStream]:
    """Shake hands; return the encrypted stream. A checkpoint.

    ``server_name`` is what the certificate has to be for; None: the host of the address.

    Raises:
        ConnectionLost: the server is not trusted, or speaks no TLS or no HTTP/2 over it. Retryable.
    """
    host = address.host if isinstance(address, TcpAddress) else "localhost"
    encrypted = trio.SSLStream(stream, context, server_hostname=server_name or host, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except trio.BrokenResourceError as error:
        raise _failed(address, reason_of(error) or "it ended the handshake") from error
    if encrypted.selected_alpn_protocol() != "h2":  # RFC 9113, section 3.2
        raise _failed(address, "it does not speak HTTP/2 over TLS")
    return encrypted


def reason_of(error: BaseException) -> str | None:
    """Return in plain words why TLS has failed; None: it was not TLS that has."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        return _WORDS.get(error.reason or "", error.reason or str(error))
    return None


def _failed(address: Address, why: str) -> ConnectionLost:
    return never_reached(f"no broker answers at {address} by TLS: {why}")


def _refuse_to_ask() -> str:
    """OpenSSL would ask on the terminal."""
    raise OSError("the key is encrypted, and its password cannot be given; store it without one")
