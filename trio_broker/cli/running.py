"""Run a command on trio, and end it as the shell expects.

Owns:      exit codes, one line on stderr for what went wrong, quiet ends by Ctrl-C and a closed pipe.
Not here:  what the commands do; usage errors (trio_broker/cli/main.py).

Exit codes: 0 ok, 1 error, 2 usage, 3 not found or expired, 4 unavailable, 124 timeout; above 128 what a shell says of
the signal that ended it: 130 Ctrl-C, 141 a pipe that nobody reads.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, TypeVarTuple

import click

from trio_broker.errors import BrokerError, ConnectionLost, ExpiredId, InvalidId, NotApplied, OutcomeUnknown

ERROR, USAGE, NOT_FOUND, UNAVAILABLE, TIMEOUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 4, 124, 130, 141
SIGNALLED = 128
"""Plus the number of the signal."""

Ts = TypeVarTuple("Ts")


class Failure(Exception):
    """The command failed; the text is all that the user is told."""

    def __init__(self, text: str, exit_code: int = ERROR) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def run(command: Callable[[*Ts], Awaitable[int]], *args: *Ts) -> int:
    """Run ``command`` to its end; return the exit code. What is not a failure of a known kind is a bug, and raised."""
    import trio  # it takes longer to import than all else that tells of a wrong flag

    try:
        return trio.run(command, *args)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:
        failure = failed(error)
        if failure is None:
            raise
        exit_code, text = failure
        if text:
            say(text)
        return exit_code


def failed(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code for an error, and what the user is told, which may be nothing. None: it is a bug."""
    causes = list(leaves(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return INTERRUPTED, ""
    known = [cause for cause in causes if isinstance(cause, Failure | BrokerError | OSError)]
    if len(known) < len(causes):
        return None
    if any(isinstance(cause, BrokenPipeError) for cause in known):
        return PIPE_CLOSED, ""
    return exit_code_of(known[0]), getattr(known[0], "strerror", None) or str(known[0])


def exit_code_of(error: Failure | BrokerError | OSError) -> int:
    """Return the exit code for what the user asked and did not get."""
    match error:
        case Failure():
            return error.exit_code
        case InvalidId() | ExpiredId():
            return NOT_FOUND
        case NotApplied() | OutcomeUnknown():
            return TIMEOUT
        case BrokerError() if error.retryable or isinstance(error, ConnectionLost):
            return UNAVAILABLE
        case _:
            return ERROR


def say(text: str) -> None:
    """Tell the user, apart from the command's output."""
    click.echo(f"trio-broker: {text}", err=True)


def leave(exit_code: int) -> NoReturn:
    """End the process at once. Python would wait for threads that a driver leaves behind, and they for a database."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            exit_code = exit_code or PIPE_CLOSED
    os._exit(exit_code)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Return the errors of a group, however deep; of what is none, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
