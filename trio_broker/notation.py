"""How durations, sizes and addresses are written: in settings, on the command line, in a banner.

Owns:      text to value and back.
Not here:  which settings there are (trio_broker/config.py). Clients import this: nothing heavy.
"""

import ipaddress
import math
import re
from typing import NamedTuple

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

_UNIX_PATH_MAX_BYTES = 107  # sockaddr_un on Linux


def seconds(value: object) -> float:
    """Read ``250ms``, ``5s``, ``10m``, ``1h``, ``7d`` or plain seconds.

    Raises:
        ValueError: with the forms that are understood.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|m|h|d|)\s*", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a duration: {value!r}; write 250ms, 5s, 10m, 1h, 7d or plain seconds")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def size(value: object) -> int:
    """Read ``64KiB``, ``4MiB``, ``10MB`` or plain bytes.

    Raises:
        ValueError: with the forms that are understood.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*([0-9]+)\s*([kKMG]i?B|B|)\s*", value) if isinstance(value, str) else None
    if match is None or (match[2] or "B") not in _BYTES:
        raise ValueError(f"not a size: {value!r}; write 64KiB, 4MiB, 1GiB or plain bytes")
    return int(match[1]) * _BYTES[match[2] or "B"]


def write_seconds(value: float) -> str:
    """Write a duration in the largest unit that divides it: ``10s``, ``250ms``, ``1.5s``."""
    for unit in ("d", "h", "m"):
        if value and value % _SECONDS[unit] == 0:
            return f"{value / _SECONDS[unit]:.0f}{unit}"
    number, unit = (value * 1000, "ms") if 0 < value < 1 else (value, "s")
    return f"{number:.3f}".rstrip("0").rstrip(".") + unit


def write_size(value: int) -> str:
    """Write a size in the largest binary unit that divides it: ``4MiB``, ``4032KiB``, ``1000B``."""
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]}{unit}"
    return f"{value}B"


PORT_MAX = 65535


class TcpAddress(NamedTuple):
    """Where to listen, or to connect."""

    host: str
    """A name or an address; without brackets."""
    port: int
    """0: any free one."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """A socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_listen(text: str) -> Address:
    """Read ``HOST:PORT``, ``[V6]:PORT`` or ``unix:/path``.

    Raises:
        ValueError: with what is wrong and how to write it.
    """
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        if not text.startswith("unix:/") or path == "/":
            raise ValueError(f"{text!r} needs an absolute path: unix:/run/trio-broker.sock")
        if len(path.encode()) > _UNIX_PATH_MAX_BYTES or "\0" in path:
            raise ValueError(f"{text!r} is too long for a unix socket: {_UNIX_PATH_MAX_BYTES} bytes at most")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not host or (":" in host) != bracketed or re.search(r"[\s/\[\]]", host):
        raise ValueError(f"{text!r} is not an address; write 127.0.0.1:50051, [::1]:50051 or unix:/path")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > PORT_MAX:
        raise ValueError(f"{text!r} has no valid port: a number from 0 (any free one) to {PORT_MAX}")
    return TcpAddress(host, int(port))


def parse_tcp(text: str) -> TcpAddress:
    """Read ``HOST:PORT`` or ``[V6]:PORT``, where HTTP is served or asked.

    Raises:
        ValueError: as `parse_listen` does, also for a unix socket.
    """
    address = parse_listen(text)
    if isinstance(address, UnixAddress):
        raise ValueError(f"{text!r} is a unix socket, and only HOST:PORT will do")  # noqa: TRY004 - click and pydantic
    return address


def parse_reachable(text: str) -> TcpAddress:
    """Read ``HOST:PORT`` or ``[V6]:PORT`` where somebody is to be found.

    Raises:
        ValueError: as `parse_tcp` does, also for port 0 and for an address that means all of a machine.
    """
    address = parse_tcp(text)
    if not address.port:
        raise ValueError(f"{text!r}: nobody can connect to port 0; say which it is")
    if is_all_of_a_machine(address):
        raise ValueError(f"{text!r} is where to listen; say an address where others can connect")
    return address


def is_all_of_a_machine(address: TcpAddress) -> bool:
    """Say whether ``address`` is where to listen on all of a machine's addresses, and nobody can connect."""
    return address.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound to


def is_loopback(address: Address) -> bool:
    """Say whether only this machine can reach ``address``. A name other than localhost counts as reachable."""
    if isinstance(address, UnixAddress) or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False
