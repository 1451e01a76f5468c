"""Who a client is, by the certificate that it has shown (RFC 5280).

Owns:      what handlers and logs are told of a certificate.
Not here:  whether it is trusted: TLS has checked that before (tls.py), and may do what: handlers.
Threads:   none: plain data.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import NamedTuple, cast

NAME_MAX = 256

_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""RFC 4514, section 3."""
_Names = tuple[tuple[str, str], ...]
_ESCAPED = frozenset('"+,;<>\\=')


class Identity(NamedTuple):
    """What a trusted certificate says of who holds it. Text as the authority has signed it: it may be anything."""

    subject: str
    """As RFC 4514 writes it, the most specific part first: ``CN=orders,O=Example``. Often empty."""
    dns: tuple[str, ...]
    """Subject alternative names of each kind (RFC 5280, section 4.2.1.6), in order."""
    uris: tuple[str, ...]
    """Such as ``spiffe://example.org/orders``."""
    emails: tuple[str, ...]
    fingerprint: str
    """SHA-256 of the certificate in DER, in hexadecimal: of no other certificate."""

    @property
    def name(self) -> str:
        """One name for logs: the first of URIs, DNS names and e-mail addresses; the subject; else the fingerprint.

        What would act on a terminal is escaped, and a name of more than `NAME_MAX` characters is cut.
        """
        name = next(iter((*self.uris, *self.dns, *self.emails)), self.subject or f"sha256:{self.fingerprint}")
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name[:NAME_MAX])


def identity_of(session: ssl.SSLObject) -> Identity | None:
    """Return who is at the other end of a session whose handshake is done; None: it has shown no certificate."""
    der = session.getpeercert(binary_form=True)
    told = session.getpeercert()
    if not der or not told:  # without the second, nobody has checked it
        return None
    names = cast("_Names", told.get("subjectAltName", ()))
    return Identity(
        subject=_written(cast("tuple[_Names, ...]", told.get("subject", ()))),
        dns=tuple(name for kind, name in names if kind == "DNS"),
        uris=tuple(name for kind, name in names if kind == "URI"),
        emails=tuple(name for kind, name in names if kind == "email"),
        fingerprint=hashlib.sha256(der).hexdigest(),
    )


def _written(name: tuple[_Names, ...]) -> str:
    """Write a name as RFC 4514 does: the last part first, several attributes of a part joined by ``+``."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in reversed(name)
    )


def _escaped(value: str) -> str:
    """Escape what would look like the end of a value (section 2.4)."""
    escaped = "".join(f"\\{each}" if each in _ESCAPED else each for each in value)
    if escaped[:1] in ("#", " "):
        escaped = "\\" + escaped
    if len(value) > 1 and escaped.endswith(" "):
        escaped = escaped[:-1] + "\\ "
    return escaped
