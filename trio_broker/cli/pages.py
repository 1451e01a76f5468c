"""A broker's pages over HTTP, for commands: where they are, one request, and what is said when there is no answer.

Owns:      `pages_options`, `pages_address`, `get`. It asks the broker itself, whatever proxy the environment names.
Not here:  what is on the pages (metrics/pages.py, docs/METRICS.md).
Threads:   any; it blocks.
"""

from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from trio_broker.cli.options import config_option
from trio_broker.cli.running import UNAVAILABLE, Failure
from trio_broker.cli.settings import load_one
from trio_broker.notation import TcpAddress, parse_tcp

F = TypeVar("F", bound=Callable[..., object])

PAGE_MAX_BYTES = 16 * 1024 * 1024
"""More is no page of a broker; the rest is not read."""


class Page(NamedTuple):
    """What was answered."""

    status: int
    text: str
    refusal: str
    """What to say if ``status`` is not what was hoped for."""


def pages_options(command: F) -> F:
    """Add ``--metrics-listen`` and ``--config``, for `pages_address`."""
    where = click.option(
        "--metrics-listen", metavar="HOST:PORT", help="where the broker listens  [TRIO_BROKER_METRICS_LISTEN]"
    )
    return where(config_option(command))


def pages_address(metrics_listen: str | None, file: Path | None) -> TcpAddress:
    """Return where the pages of a broker are that has these settings.

    Raises:
        ConfigError: they cannot be read.
    """
    host, port = parse_tcp(load_one("metrics_listen", metrics_listen, file))
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nobody can connect to "any"
    return TcpAddress(loopback.get(host, host), port)


def get(where: TcpAddress, path: str, timeout_s: float) -> Page:
    """Ask for a page.

    Raises:
        Failure: nobody answers, or not by HTTP.
    """
    connection = HTTPConnection(where.host, where.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        text = response.read(PAGE_MAX_BYTES).decode(errors="replace")
    except TimeoutError as error:
        raise Failure(f"no answer from {where} within {timeout_s:g} s", UNAVAILABLE) from error
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise Failure(f"cannot ask the broker on {where}: {why}", UNAVAILABLE) from error
    finally:
        connection.close()
    return Page(response.status, text, f"http://{where}{path} answers {response.status} {response.reason}")
