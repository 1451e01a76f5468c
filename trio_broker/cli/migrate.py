"""``trio-broker migrate``: the schema of the store, apart from running a broker.

Owns:      the subcommands up, status and sql.
Not here:  the schemas (persistence/), which store it is (trio_broker/cli/storing.py).
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from trio_broker.cli.running import ERROR
from trio_broker.cli.standard import write
from trio_broker.cli.storing import run_on_store, store_options
from trio_broker.logs import redact_url


@click.group("migrate")
def command() -> None:
    """Create or upgrade the tables of the store.

    A broker does it by itself when it starts, unless it runs with --no-migrate. A store is read by the release that
    upgraded it and by later ones.
    """


def _subcommand(fn: Callable[[str], Awaitable[int]]) -> click.Command:
    """Make a subcommand of a function that gets the store's URL, as ``serve`` would."""

    @store_options
    def subcommand(*, store: str | None, file: Path | None) -> int:
        return run_on_store(fn, store, file)

    name = fn.__name__.removeprefix("_")
    made: click.Command = command.command(name, help=fn.__doc__)(subcommand)
    return made


@_subcommand
async def _up(url: str) -> int:
    """Create the tables, or bring them to the version that this release needs. Brokers may run meanwhile."""
    from persistence import migrate

    await write(_line(url, await migrate(url)))
    return 0


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


def _line(url: str, schema: Any) -> bytes:  # noqa: ANN401 - a Schema of persistence, which is imported when needed
    done = "as this release needs" if schema.version == schema.latest else f"and this release needs {schema.latest}"
    return f"{redact_url(url)} has schema version {schema.version}, {done}\n".encode()
