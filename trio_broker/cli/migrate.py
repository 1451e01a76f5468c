"""``trio-broker migrate``: the schema of the store, apart from running a broker.

Owns:      the subcommands up, status and sql.
Not here:  the schemas (persistence/), where the store's URL comes from (trio_broker/cli/settings.py).
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from trio_broker.cli.running import ERROR, UNAVAILABLE, USAGE, Failure, run, say
from trio_broker.cli.settings import ConfigError, load
from trio_broker.cli.standard import write
from trio_broker.logs import redact_url
from trio_broker.own_packages import require_own


@click.group("migrate")
def command() -> None:
    """Create or upgrade the tables of the store.

    A broker does it by itself when it starts, unless it runs with --no-migrate. A store is read by the release that
    upgraded it and by later ones.
    """


def _subcommand(fn: Callable[[str], Awaitable[int]]) -> click.Command:
    """Make a subcommand of a function that gets the store's URL, as ``serve`` would."""

    @click.option("--store", metavar="URL", help="the store, as for serve  [TRIO_BROKER_STORE]")
    @click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="TRIO_BROKER_CONFIG",
        help="a TOML file with settings  [TRIO_BROKER_CONFIG]",
    )
    def subcommand(*, store: str | None, file: Path | None) -> int:
        try:
            url = load({} if store is None else {"store": store}, file).config.store
        except ConfigError as error:
            say(str(error))
            return USAGE
        return run(_reported, fn, url)

    name = fn.__name__.removeprefix("_")
    made: click.Command = command.command(name, help=fn.__doc__)(subcommand)
    return made


async def _reported(fn: Callable[[str], Awaitable[int]], url: str) -> int:
    try:
        require_own("persistence")
    except ImportError as error:
        raise Failure(str(error)) from error
    from persistence import CannotOpen, StoreUnavailable

    try:
        return await fn(url)
    except CannotOpen as error:
        raise Failure(str(error)) from error
    except StoreUnavailable as error:
        raise Failure(str(error), UNAVAILABLE) from error


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
