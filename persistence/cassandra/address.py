"""The URL of a store, read.

Owns:      `Address`, which alone knows a password; what may be written in a URL, and the texts for what may not.
Not here:  connecting (connection.py).
Threads:   any; nothing waits, but files that the URL names are read.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from persistence.errors import CannotOpen

PORT = 9042
SERIAL_OF: Mapping[str, str] = {"LOCAL_QUORUM": "LOCAL_SERIAL", "QUORUM": "SERIAL"}
"""Which serial consistency goes with which consistency: only majorities of the same replicas always meet."""

_PARAMETERS = (
    "dc",
    "consistency",
    "serial",
    "replication_factor",
    "password_file",
    "ssl",
    "ca",
    "check_hostname",
)
_KEYSPACE = re.compile(r"[a-z][a-z0-9_]{0,47}")
_USERINFO = re.compile(r"[\w.~!$&'()*+,;=:%-]*", re.ASCII)
"""What may stand before ``@`` as it is (RFC 3986, section 3.2.1)."""
_BOOLEANS = {"true": True, "false": False}


class Login(NamedTuple):
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, ...)"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the cluster is, and how it is to be used. Its ``str`` is for texts, and holds no password."""

    hosts: tuple[tuple[str, int], ...]
    keyspace: str
    login: Login | None = field(repr=False)
    dc: str | None
    """None: that of the hosts."""
    consistency: str
    serial: str
    replication_factor: int
    """Of a keyspace that is to be made."""
    tls: ssl.SSLContext | None = field(repr=False)

    def __str__(self) -> str:
        return f"Cassandra at {','.join(f'{host}:{port}' for host, port in self.hosts)}/{self.keyspace}"


def read_url(url: str) -> Address:
    """Read ``cassandra://user:password@host1:9042,host2/keyspace?parameters``.

    Raises:
        CannotOpen: with what is wrong, and never with the URL: it may hold a password.
    """
    parts = urlsplit(url)
    if "@" in parts.path or not _USERINFO.fullmatch(parts.netloc.rpartition("@")[0]):
        raise _cannot_read("percent-encode special characters in the user and the password: %2F for /, %20 for a space")
    given = _parameters(parts.query)
    keyspace = parts.path.removeprefix("/")
    if not _KEYSPACE.fullmatch(keyspace):
        raise _cannot_read(f"{keyspace!r} is no name of a keyspace; it has a-z, 0-9 and _, at most 48 of them")
    consistency = given.get("consistency", "LOCAL_QUORUM").upper()
    if consistency not in SERIAL_OF:
        raise _cannot_read(
            f"consistency={consistency} does not keep what it acknowledges; choose {' or '.join(SERIAL_OF)}"
        )
    serial = given.get("serial", SERIAL_OF[consistency]).upper()
    if serial != SERIAL_OF[consistency]:
        raise _cannot_read(f"consistency={consistency} goes with serial={SERIAL_OF[consistency]}, not {serial}")
    factor = given.get("replication_factor", "3")
    if not factor.isdecimal() or int(factor) < 1:
        raise _cannot_read(f"replication_factor={factor} is no number of replicas")
    return Address(
        hosts=tuple(_hosts(parts.netloc.rpartition("@")[2])),
        keyspace=keyspace,
        login=_login(parts, given),
        dc=given.get("dc"),
        consistency=consistency,
        serial=serial,
        replication_factor=int(factor),
        tls=_tls(given),
    )


def _parameters(query: str) -> dict[str, str]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for name in given:
        if name not in _PARAMETERS:
            (close, *_) = [*get_close_matches(name, _PARAMETERS, 1), None]
            advice = f"did you mean {close}?" if close else f"there are {', '.join(_PARAMETERS)}"
            raise _cannot_read(f"it has no parameter {name!r}; {advice}")
    return given


def _hosts(netloc: str) -> list[tuple[str, int]]:
    """Read the hosts. All nodes of a cluster listen on one port, which need not be said of each."""
    names: list[str] = []
    ports: list[int] = []
    for place in netloc.split(","):
        try:
            parts = urlsplit(f"//{place}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _cannot_read(f"{place!r} is no host: {error}") from None
        if host is None:
            raise _cannot_read("it names no host")
        names.append(host)
        ports += [port] if port else []
    if len(set(ports)) > 1:
        raise _cannot_read(f"the nodes of a cluster listen on one port, and it names {', '.join(map(str, ports))}")
    return [(name, ports[0] if ports else PORT) for name in names]


def _login(parts: SplitResult, given: Mapping[str, str]) -> Login | None:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    path = given.get("password_file")
    if path and (not user or password):
        raise _cannot_read("password_file= goes with a user, and without a password: user@host")
    if not user:
        return None
    if path:
        try:
            password = Path(path).read_text().strip()
        except OSError as error:
            raise _cannot_read(f"password_file={path}: {error.strerror}") from None
        return Login(unquote(user), password)
    return Login(unquote(user), unquote(password))


def _tls(given: Mapping[str, str]) -> ssl.SSLContext | None:
    path = given.get("ca")
    wanted, check_hostname = (_boolean(given, name) for name in ("ssl", "check_hostname"))
    if wanted is False or (wanted is None and path is None):
        return None
    try:
        context = ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise _cannot_read(f"ca={path}: {error.strerror or error.args[0]}") from None
    context.check_hostname = check_hostname is not False
    return context


def _boolean(given: Mapping[str, str], name: str) -> bool | None:
    text = given.get(name)
    if text is not None and text not in _BOOLEANS:
        raise _cannot_read(f"{name}={text} is neither true nor false")
    return _BOOLEANS.get(text or "")


def _cannot_read(why: str) -> CannotOpen:
    return CannotOpen(f"the Cassandra URL cannot be read: {why}")
