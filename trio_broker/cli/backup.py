"""``trio-broker backup``: copy the file of a running broker.

Owns:      the command and what it prints.
Not here:  the copying (persistence/).
"""

import signal
from pathlib import Path

import click
import trio

from trio_broker.cli.running import SIGNALLED
from trio_broker.cli.standard import write
from trio_broker.cli.storing import run_on_store, store_options


@click.command("backup")
@click.argument("destination", type=click.Path(path_type=Path), metavar="DEST")
@click.option("--force", is_flag=True, help="Replace DEST if it is there.")
@store_options
def command(*, destination: Path, force: bool, store: str | None, file: Path | None) -> int:
    """Copy the broker's SQLite file to DEST, also while the broker runs.

    DEST has every message that was acknowledged before the command began. It is checked, and appears whole or not at
    all. docs/DEPLOY.md says how to restore it, so that no id that was given since is given again.
    """
    return run_on_store(_back_up, store, file, destination, force)


async def _back_up(url: str, destination: Path, force: bool) -> int:  # noqa: FBT001
    from persistence import back_up

    copying = trio.CancelScope()
    ended_by = 0

    async def stop_on_signal() -> None:
        nonlocal ended_by
        async for ended_by in signals:  # noqa: B007
            copying.cancel()

    ends = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    with trio.open_signal_receiver(*ends) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal)
            with copying:
                size_bytes = await back_up(url, destination, replace=force)
            nursery.cancel_scope.cancel()
    if copying.cancelled_caught:
        return SIGNALLED + ended_by
    await write(f"{destination}: {size_bytes} bytes, checked\n".encode())
    return 0
