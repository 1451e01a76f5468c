"""The ``trio-broker`` command.

Owns:      which subcommands there are, and usage errors.
Not here:  each subcommand (its own module, imported when it is used, so that ``pub`` loads nothing of the server).
"""

import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

import click

from trio_broker._version import __version__
from trio_broker.cli.running import ERROR, INTERRUPTED, USAGE, Failure, leave, say

_COMMANDS = (
    "serve",
    "pub",
    "sub",
    "get",
    "subject",
    "top",
    "health",
    "migrate",
    "backup",
    "export",
    "import",
    "version",
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of a first encounter, not of the alphabet."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand; say which may be meant by another name."""
        if cmd_name not in _COMMANDS:
            if meant := get_close_matches(cmd_name, _COMMANDS, n=1):
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {meant[0]!r}?")
            return None
        module = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command: click.Command = import_module(f"trio_broker.cli.{module}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, message="trio-broker %(version)s")
def cli() -> None:
    """A message broker that any gRPC client can use without an SDK."""


def main() -> NoReturn:
    """Run the command line of this process."""
    # What a broker is doing may be asked while it starts or stops: that must not end it, as it does by default.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    leave(run_command_line(sys.argv[1:]))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code. Errors are told in one line on stderr."""
    try:
        return int(cli.main(arguments, prog_name="trio-broker", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "trio-broker"
        text = error.format_message()
        say(text + ("" if text.endswith((".", "?", ")")) else ".") + f" Try '{command} --help'.")
        return USAGE
    except click.ClickException as error:
        say(error.format_message())
        return ERROR
    except Failure as error:
        say(str(error))
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
