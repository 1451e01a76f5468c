"""The PEM files of a server, followed when they change: a renewed certificate is used without a restart.

Owns:      noticing that a file has changed, what becomes of files that cannot be used, when a certificate expires.
Not here:  the TLS settings that are made of the files (tls.py), connections: those that there are keep theirs.
Threads:   the trio thread, but for reading the files, which is done in a worker thread.

Files are compared by what is in them. So it is the same whether a file was written over, renamed into its place, or is
reached by a symbolic link that was changed (a Secret that Kubernetes mounts, certbot's ``live``).
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import trio

from trio_broker.rpc.tls import server_context

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 2.0
"""How often the files are looked at. A pair that does not fit has so long to become whole before it is an error."""

_HINT = "the certificate that was loaded before is served"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s(.+?)-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME = 0x17
_VERSION = 0xA0

_Content = tuple[bytes | str, ...]
"""Of each file its digest, or why it cannot be read."""


class _Loaded(NamedTuple):
    content: _Content
    context: ssl.SSLContext
    expires_at: float | None


class Certificates:
    """The certificate, key and client authority of a server, as TLS settings that are made anew when they change."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Load them.

        Raises:
            OSError: as `server_context` does.
        """
        self._files = (certificate, key, client_ca)
        self._used = self._content()
        self._doubted: _Content = ()
        """What could not be used when it was seen first; nobody was told of it yet."""
        self._refused: _Content = ()
        """What could not be used, and was told."""
        self._asked = trio.Event()
        self.context: ssl.SSLContext = server_context(*self._files)
        """The settings for new connections."""
        self.expires_at = _expires_at(certificate)
        """When the first certificate of the chain in use expires, in seconds since 1970; None: it could not be read."""
        self.reloads = 0
        """How often the settings were made anew."""

    @property
    def usable(self) -> bool:
        """What the files hold can be used, as far as is known: it is what is in use, or about to be."""
        return not self._refused

    def reload(self) -> None:
        """Look at the files now, and load them in any case. `keep_looking` does it. Not a checkpoint."""
        self._asked.set()

    async def keep_looking(self, renewed: Callable[[ssl.SSLContext], None]) -> None:
        """Look at the files, until cancelled; tell of the settings each time that they were made anew. A checkpoint."""
        while True:
            with trio.move_on_after(LOOK_INTERVAL_S):
                await self._asked.wait()
            asked, self._asked = self._asked.is_set(), trio.Event()
            # a file system may hang: that must keep neither calls nor the end of the process
            loaded = await trio.to_thread.run_sync(self._load, asked, abandon_on_cancel=True)
            if loaded is not None:
                self._use(loaded)
                renewed(self.context)

    def look(self, *, asked: bool = False) -> bool:
        """Make the settings anew if the files have changed, or always if that was ``asked`` for; say whether they were.

        Files that cannot be used change nothing. They are an error, told once, if somebody asked, or when they are
        still the same at the next look: a certificate is often written a moment before its key.
        """
        loaded = self._load(asked)
        if loaded is not None:
            self._use(loaded)
        return loaded is not None

    def _load(self, asked: bool) -> _Loaded | None:  # noqa: FBT001 - a thread is given no names
        content = self._content()
        if not asked:
            if content == self._used:
                self._doubted = self._refused = ()
                return None
            if content == self._refused:
                return None
        try:
            return _Loaded(content, server_context(*self._files), _expires_at(self._files[0]))
        except OSError as error:
            if asked or content == self._doubted:
                log.error("tls_not_reloaded why=%s hint=%s", error, _HINT)  # noqa: TRY400 - no bug of ours
                self._refused = content
            self._doubted = content
            return None

    def _use(self, loaded: _Loaded) -> None:
        self._used, self.context, self.expires_at = loaded
        self._doubted = self._refused = ()
        self.reloads += 1
        log.info("tls_reloaded expires=%s", "unknown" if self.expires_at is None else _written(self.expires_at))

    def _content(self) -> _Content:
        return tuple(_digest(file) for file in self._files if file is not None)


def _digest(file: Path) -> bytes | str:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        return str(error)


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _expires_at(certificate: Path) -> float | None:
    try:
        ends = [not_after(ssl.PEM_cert_to_DER_cert(pem[0].decode())) for pem in _PEM.finditer(certificate.read_bytes())]
    except (ValueError, IndexError):  # OpenSSL reads what is no plain X.509, such as "TRUSTED CERTIFICATE"
        return None
    return min(ends, default=None)


def not_after(certificate: bytes) -> float:
    """Return when a certificate in DER expires, in seconds since 1970 (RFC 5280, section 4.1.2.5).

    Raises:
        ValueError, IndexError: it is no certificate.
    """
    ((_, whole),) = _elements(certificate)
    (_, signed), *_ = _elements(whole)
    fields = [content for tag, content in _elements(signed) if tag != _VERSION]
    _serial, _signature, _issuer, validity, *_ = fields
    _, (tag, time) = _elements(validity)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(time.decode(), form).replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Split elements that stand one after the other into tags and contents (X.690, section 8.1)."""
    position = 0
    while position < len(der):
        tag, length = der[position : position + 2]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[position : position + size])
            position += size
        yield tag, der[position : position + length]
        position += length
