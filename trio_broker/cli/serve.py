"""``trio-broker serve``: run a broker.

Owns:      a flag for each field of `Config`, and what is said when the broker cannot start.
Not here:  the settings (trio_broker/config.py) and where they come from (trio_broker/cli/settings.py); the broker's
           process (trio_broker/serve.py).
"""

from pathlib import Path
from typing import get_args

import click
import structlog
from click.core import ParameterSource
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from trio_broker.cli.options import config_option
from trio_broker.cli.running import Failure, leaves, run
from trio_broker.cli.settings import Settings, flag, load
from trio_broker.config import Config
from trio_broker.line_budget import LineBudget
from trio_broker.logs import configure_logging
from trio_broker.notation import seconds, size, write_seconds, write_size
from trio_broker.own_packages import require_own

log = structlog.get_logger(__name__)


def _option(name: str, field: FieldInfo) -> click.Option:
    """Make the flag of a setting. Values stay text: all sources are checked together, in settings.py."""
    about = field.description or ""
    if field.annotation is bool:
        undo = flag(name.removeprefix("no_") if name.startswith("no_") else f"no_{name}")  # of a variable, or the file
        return click.Option([f"{flag(name)}/{undo}", name], default=None, help=about)
    read = [validator.func for validator in field.metadata if isinstance(validator, BeforeValidator)]
    if seconds in read:
        metavar, default = "DURATION", write_seconds(field.default)
    elif size in read:
        metavar, default = "SIZE", write_size(field.default)
    elif isinstance(field.default, tuple):
        metavar, default = "WORDS", " ".join(field.default)
    else:
        metavar, default = "|".join(get_args(field.annotation)) or "VALUE", str(field.default)
    about += f"  [default: {default}]" if default else ""
    return click.Option([flag(name), name], metavar=metavar, help=about)


@click.command("serve")
@config_option
@click.pass_context
def command(context: click.Context, /, *, file: Path | None, **values: object) -> int:
    """Run a broker until SIGTERM or Ctrl-C.

    Every flag is also a variable (--metrics-listen: TRIO_BROKER_METRICS_LISTEN) and a key of the TOML file
    (metrics_listen). Flags go before variables, variables before the file.
    """
    given = {
        name: value
        for name, value in values.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return run(_serve, load(given, file), file)


command.params += [_option(name, field) for name, field in Config.model_fields.items()]


async def _serve(settings: Settings, file: Path | None) -> int:
    # The server's packages are imported here: a wrong flag is told at once.
    try:
        require_own("persistence")
        require_own("metrics")
    except ImportError as error:
        raise Failure(str(error)) from error
    if settings.config.traces:
        try:
            import trio_broker.tracing  # noqa: F401 - told before anything is started
        except ImportError as error:
            raise Failure(f'--traces needs more packages ({error}): pip install "trio-broker[otel]"') from error
    budget = configure_logging(settings.config.log_format, settings.config.log_level)
    if file is not None:
        log.info("settings_read", file=str(file))
    for name, meant in settings.unknown_variables.items():
        log.warning("variable_unknown", name=name, **({"did_you_mean": meant} if meant else {}))
    if settings.config.workers > 1:
        return await _serve_by_workers(settings.config, budget)
    return await _serve_alone(settings.config, budget)


async def _serve_alone(config: Config, budget: LineBudget) -> int:
    from persistence import CannotOpen
    from trio_broker.serve import serve

    try:
        return await serve(config, budget)
    except* CannotOpen as group:
        failure = next(leaves(group))
    raise Failure(str(failure)) from failure


async def _serve_by_workers(config: Config, budget: LineBudget) -> int:
    from trio_broker.workers.member import WorkerFailed
    from trio_broker.workers.supervisor import supervise  # it needs nothing of what serves

    try:
        return await supervise(config, budget)
    except WorkerFailed as failure:
        raise Failure(str(failure), failure.exit_code) from failure
