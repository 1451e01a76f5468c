"""``trio-broker health``: ask the broker beside us whether it is ready. Made for health checks of containers.

Owns:      the question and the exit code.
Not here:  the answer (metrics/pages.py); where the broker's HTTP endpoint is (trio_broker/cli/settings.py).
"""

import http.client
from pathlib import Path

import click

from trio_broker.cli.options import Parsed
from trio_broker.cli.running import UNAVAILABLE, USAGE, say
from trio_broker.cli.settings import ConfigError, load_one
from trio_broker.cli.storing import config_option
from trio_broker.notation import TcpAddress, parse_listen, seconds

ANSWER_MAX_BYTES = 64 * 1024
"""More is no answer of a broker."""


@click.command("health")
@click.option("--metrics-listen", metavar="HOST:PORT", help="as for serve  [TRIO_BROKER_METRICS_LISTEN]")
@config_option
@click.option(
    "--timeout", type=Parsed("duration", seconds), default="2s", show_default=True, help="How long to wait for it."
)
def command(*, metrics_listen: str | None, file: Path | None, timeout: float) -> int:
    """Ask the broker on this machine whether it is ready, over HTTP where it serves its metrics.

    Exit code 0: it is. 4: it is not, or does not answer; the text says why.
    """
    try:
        address = load_one("metrics_listen", {} if metrics_listen is None else {"metrics_listen": metrics_listen}, file)
    except ConfigError as error:
        say(str(error))
        return USAGE
    where = parse_listen(address)
    assert isinstance(where, TcpAddress), "the settings see to that"
    return _ask(_reachable(where), timeout)


def _reachable(listening: TcpAddress) -> TcpAddress:
    """Return where a broker can be asked that listens on an address: nobody can connect to "any"."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here
    return TcpAddress(loopback.get(listening.host, listening.host), listening.port)


def _ask(where: TcpAddress, timeout_s: float) -> int:
    connection = http.client.HTTPConnection(where.host, where.port, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz", headers={"Connection": "close"})
        response = connection.getresponse()
        text = response.read(ANSWER_MAX_BYTES).decode(errors="replace").strip()
    except TimeoutError:
        say(f"no answer from {where} within {timeout_s:g} s (--timeout)")
        return UNAVAILABLE
    except (OSError, http.client.HTTPException) as error:
        say(f"cannot ask the broker on {where}: {getattr(error, 'strerror', None) or error or type(error).__name__}")
        return UNAVAILABLE
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        say(text.partition("\n")[0] or f"{where} answers {response.status} {response.reason}")
        return UNAVAILABLE
    click.echo(text)
    return 0
