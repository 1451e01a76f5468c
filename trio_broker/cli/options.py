"""What several commands have in common.

Owns:      ``--server`` and ``--timeout`` of those that call a broker, ``--config``, and how arguments are read.
Not here:  the settings of ``serve`` (trio_broker/cli/settings.py).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

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


def server_options(command: F) -> F:
    """Add ``--server`` and ``--timeout``."""
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
