"""``trio-broker health``: ask the broker beside us whether it is ready. Made for health checks of containers.

Owns:      the question and the exit code.
Not here:  the answer (metrics/pages.py); asking over HTTP (trio_broker/cli/pages.py).
"""

from http import HTTPStatus
from pathlib import Path

import click

from trio_broker.cli.options import Parsed
from trio_broker.cli.pages import get, pages_address, pages_options
from trio_broker.cli.running import UNAVAILABLE, Failure
from trio_broker.notation import seconds


@click.command("health")
@pages_options
@click.option(
    "--timeout", type=Parsed("duration", seconds), default="2s", show_default=True, help="How long to wait for it."
)
def command(*, metrics_listen: str | None, file: Path | None, timeout: float) -> int:
    """Ask the broker on this machine whether it is ready, over HTTP where it serves its metrics.

    Exit code 0: it is. 4: it is not, or does not answer; the text says why.
    """
    page = get(pages_address(metrics_listen, file), "/readyz", timeout)
    if page.status != HTTPStatus.OK:
        raise Failure(page.text.partition("\n")[0] or page.refusal, UNAVAILABLE)
    click.echo(page.text.strip())
    return 0
