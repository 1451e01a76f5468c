"""``trio-broker backup``: copy the file of a running broker.

Owns:      the command and what it prints.
Not here:  the copying (persistence/).
"""

from pathlib import Path

import click

from trio_broker.cli.standard import write
from trio_broker.cli.storing import run_on_store, store_options


@click.command("backup")
@click.argument("destination", type=click.Path(path_type=Path), metavar="DEST")
@click.option("--force", is_flag=True, help="Replace DEST if it is there.")
@store_options
def command(*, destination: Path, force: bool, store: str | None, file: Path | None) -> int:
    """Copy the broker's SQLite file to DEST, also while the broker runs.

    DEST has every message that was acknowledged before the command began. It is checked, and appears whole or not at
    all. To restore it, stop the broker, remove its file and the -wal and -shm beside it, and put DEST in its place.
    """
    return run_on_store(_back_up, store, file, destination, force)


async def _back_up(url: str, destination: Path, force: bool) -> int:  # noqa: FBT001
    from persistence import back_up

    size_bytes = await back_up(url, destination, replace=force)
    await write(f"{destination}: {size_bytes} bytes, checked\n".encode())
    return 0
