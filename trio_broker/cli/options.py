"""What several commands have in common.

Owns:      ``--server``, ``--tls`` and ``--timeout`` of those that call a broker, ``--config``, how arguments are read.
Not here:  the settings of ``serve`` (trio_broker/cli/settings.py).
"""

import ssl
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click

from trio_broker.cli.running import USAGE, Failure
from trio_broker.notation import parse_listen, seconds

F = TypeVar("F", bound=Callable[..., object])

DEFAULT_SERVER = "127.0.0.1:50051"


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """An argument that a function reads; its ValueError is a usage error."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Read what was typed; what was read before, as a default may have been, is as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def utf8(text: str) -> str:
    """Check an argument that is text on the wire: a shell can pass any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8") from None
    return text


def config_option(command: F) -> F:
    """Add ``--config``."""
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="TRIO_BROKER_CONFIG",
        help="a TOML file with settings  [TRIO_BROKER_CONFIG]",
    )(command)


def _server(text: str) -> str:
    parse_listen(text)
    return text


class Server(NamedTuple):
    """The broker that a command is for."""

    address: str
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    name: str | None = None
    """What its certificate has to be for, if not its host."""

    def __str__(self) -> str:
        return self.address

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS settings; None: plaintext.

        Raises:
            Failure: a file cannot be used; the text names it.
        """
        if not self.tls:
            return None
        from trio_broker.client import client_context  # it takes longer to import than all else that tells of a flag

        try:
            return client_context(self.ca, self.cert, self.key)
        except OSError as error:
            raise Failure(str(error), USAGE) from error


_TLS_OPTIONS = (
    ("tls", "TLS", {"is_flag": True, "help": "Encrypt, and trust whom the system trusts."}),
    ("tls-ca", "TLS_CA", {"metavar": "FILE", "help": "Encrypt, and trust this authority (PEM)."}),
    ("tls-cert", "TLS_CERT", {"metavar": "FILE", "help": "Show this certificate (PEM), with its chain."}),
    ("tls-key", "TLS_KEY", {"metavar": "FILE", "help": "Its key (PEM), if that is not in the same file."}),
    ("tls-server-name", "TLS_SERVER_NAME", {"metavar": "NAME", "help": "What the broker's certificate is for."}),
)
"""Each with its variable, after TRIO_BROKER_CLIENT_: without CLIENT_ they are those of ``serve``."""


def server_options(command: F) -> F:
    """Add ``--server``, ``--tls`` and others, and ``--timeout``; the command gets a `Server` and the time-out."""

    @wraps(command)
    def with_server(*, server: str, timeout: float, **values: Any) -> object:  # noqa: ANN401 - as the options are
        tls, ca, cert, key, name = (values.pop(flag.replace("-", "_")) for flag, _, _ in _TLS_OPTIONS)
        if key is not None and cert is None:
            raise click.UsageError("--tls-key is the key of a certificate: give --tls-cert too")
        asked = Server(server, tls or any((ca, cert, name)), ca, cert, key, name)
        return command(server=asked, timeout=timeout, **values)

    decorated = cast("F", with_server)
    for flag, variable, how in reversed(_TLS_OPTIONS):
        decorated = click.option(f"--{flag}", envvar=f"TRIO_BROKER_CLIENT_{variable}", show_envvar=True, **how)(
            decorated
        )
    return _server_option(decorated)


def _server_option(command: F) -> F:
    command = click.option(
        "--timeout",
        type=Parsed("duration", seconds),
        default="10s",
        show_default=True,
        help="How long to wait for the broker's answer.",
    )(command)
    return click.option(
        "--server",
        type=Parsed("host:port", _server),
        envvar="TRIO_BROKER_SERVER",
        show_envvar=True,
        default=DEFAULT_SERVER,
        show_default=True,
        help="Where the broker listens.",
    )(command)
