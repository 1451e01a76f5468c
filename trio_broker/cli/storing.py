"""What the commands that open the broker's store themselves have in common.

Owns:      ``--store``, and how errors of a store end a command.
Not here:  where settings come from (trio_broker/cli/settings.py); the stores (persistence/).
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import click

from trio_broker.cli.options import config_option
from trio_broker.cli.running import ERROR, UNAVAILABLE, Failure, leaves, run
from trio_broker.cli.settings import load_one
from trio_broker.own_packages import require_own

F = TypeVar("F", bound=Callable[..., object])
Ts = TypeVarTuple("Ts")


def store_options(command: F) -> F:
    """Add ``--store`` and ``--config``."""
    return click.option("--store", metavar="URL", help="the store, as for serve  [TRIO_BROKER_STORE]")(
        config_option(command)
    )


def run_on_store(fn: Callable[[str, *Ts], Awaitable[int]], store: str | None, file: Path | None, *args: *Ts) -> int:
    """Run ``fn`` with the URL of the store that ``serve`` would open; return the exit code."""
    return run(_reported, fn, load_one("store", store, file), *args)


async def _reported(fn: Callable[[str, *Ts], Awaitable[int]], url: str, *args: *Ts) -> int:
    try:
        require_own("persistence")
    except ImportError as error:
        raise Failure(str(error)) from error
    from persistence import StoreError, StoreUnavailable

    try:
        return await fn(url, *args)
    except* StoreError as group:
        failure = next(leaves(group))
    raise Failure(str(failure), UNAVAILABLE if isinstance(failure, StoreUnavailable) else ERROR) from failure
