"""``trio-broker migrate``: the schema of the store, apart from running a broker.

Owns:      the subcommands up, status and sql.
Not here:  the schemas (persistence/), which store it is (trio_broker/cli/storing.py).
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trio_broker.cli.options import Parsed
from trio_broker.cli.running import ERROR, say
from trio_broker.cli.standard import write
from trio_broker.cli.storing import run_on_store, store_options
from trio_broker.logs import redact_url
from trio_broker.notation import seconds, write_seconds

if TYPE_CHECKING:
    from persistence import Schema

AGAIN_S = 1.0
"""Pause before a store that could not be reached is tried again."""


@click.group("migrate")
def command() -> None:
    """Create or upgrade the tables of the store.

    A broker does it by itself when it starts, unless it runs with --no-migrate. A store is read by the release that
    upgraded it and by later ones.
    """


@command.command("up")
@click.option(
    "--wait",
    "wait_s",
    type=Parsed("duration", seconds),
    default="0s",
    show_default=True,
    help="How long to wait for a store that cannot be reached yet.",
)
@store_options
def _up_command(*, wait_s: float, store: str | None, file: Path | None) -> int:
    """Create the tables, or bring them to the version that this release needs.

    Brokers may serve meanwhile, and others may do the same at the same time.
    """
    return run_on_store(_up, store, file, wait_s)


async def _up(url: str, wait_s: float) -> int:
    await write(_line(url, await _migrate(url, wait_s)))
    return 0


async def _migrate(url: str, wait_s: float) -> "Schema":
    """Migrate; try again for so long if the store cannot be reached."""
    import trio

    from persistence import StoreUnavailable, migrate

    until, told = trio.current_time() + wait_s, False
    while True:
        try:
            return await migrate(url)
        except StoreUnavailable as error:
            if trio.current_time() >= until:
                raise
            if not told:
                say(f"{error}; trying again for {write_seconds(wait_s)}")
            told = True
        await trio.sleep(AGAIN_S)


def _subcommand(fn: Callable[[str], Awaitable[int]]) -> click.Command:
    """Make a subcommand of a function that gets the store's URL, as ``serve`` would."""

    @store_options
    def subcommand(*, store: str | None, file: Path | None) -> int:
        return run_on_store(fn, store, file)

    name = fn.__name__.removeprefix("_")
    made: click.Command = command.command(name, help=fn.__doc__)(subcommand)
    return made


@_subcommand
async def _status(url: str) -> int:
    """Say which version the tables have. Exit code 1 if it is not the one that this release needs."""
    from persistence import read_schema

    schema = await read_schema(url)
    await write(_line(url, schema))
    return 0 if schema.version == schema.latest else ERROR


@_subcommand
async def _sql(url: str) -> int:
    """Print the SQL that ``up`` would run now, for an administrator to read and run instead."""
    from persistence import migration_sql

    await write((await migration_sql(url)).encode())
    return 0


def _line(url: str, schema: "Schema") -> bytes:
    done = "as this release needs" if schema.version == schema.latest else f"and this release needs {schema.latest}"
    return f"{redact_url(url)} has schema version {schema.version}, {done}\n".encode()
