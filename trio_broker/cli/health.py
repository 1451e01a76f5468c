"""``trio-broker health``: ask the broker beside us whether it is ready. Made for health checks of containers.

Owns:      the question and the exit code.
Not here:  the answer (metrics/pages.py); asking over HTTP (trio_broker/cli/pages.py).
"""

from http import HTTPStatus
from pathlib import Path

import click

from trio_broker.cli.options import Parsed, config_option
from trio_broker.cli.pages import get
from trio_broker.cli.running import UNAVAILABLE, Failure
from trio_broker.cli.settings import load_one
from trio_broker.notation import TcpAddress, parse_tcp, seconds


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
    where = _reachable(parse_tcp(load_one("metrics_listen", metrics_listen, file)))
    page = get(where, "/readyz", timeout)
    if page.status != HTTPStatus.OK:
        raise Failure(page.text.partition("\n")[0] or page.refusal, UNAVAILABLE)
    click.echo(page.text.strip())
    return 0


def _reachable(listening: TcpAddress) -> TcpAddress:
    """Return where a broker can be asked that listens on an address: nobody can connect to "any"."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here
    return TcpAddress(loopback.get(listening.host, listening.host), listening.port)
