"""``trio-broker version``."""

import json
import platform

import click

from trio_broker._version import __version__


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(*, as_json: bool) -> int:
    """Print the version."""
    if as_json:
        click.echo(json.dumps({"version": __version__, "python": platform.python_version()}))
    else:
        click.echo(f"trio-broker {__version__}")
    return 0
