"""Listening sockets, and where they listen."""

import os
import socket
import stat
from pathlib import Path

BACKLOG = 1024


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen on exactly this address; port 0: on any free one.

    Never with SO_REUSEPORT: a second server on the same port would start silently.

    Raises:
        OSError: the address cannot be resolved or is taken; the text names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"cannot resolve {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {format_address(address)}: {error.strerror}") from None
    return listener


def listen_unix(path: str) -> socket.socket:
    """Listen on a unix socket; a socket file that nobody listens on any more is replaced.

    Raises:
        OSError: somebody listens there, or the path is something else; the text names it.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if Path(path).exists() and stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):  # noqa: PTH116
            Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on unix:{path}: {error.strerror}") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def format_address(address: object) -> str:
    """Return a socket's address as one writes it: HOST:PORT, [V6]:PORT, unix:/path."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{address}" if address else "unix:"
