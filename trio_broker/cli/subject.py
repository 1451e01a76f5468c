"""``trio-broker subject``: what subjects there are, and what to do away with.

Owns:      the subcommands ls, info, purge and rm; their tables and JSON.
Not here:  the calls (trio_broker/client/).
"""

import sys
from collections.abc import Awaitable, Callable, Sequence

import click
import trio

from trio_broker.cli.connecting import connected
from trio_broker.cli.jsonlines import dump, write_time
from trio_broker.cli.options import Parsed, Server, server_options, utf8
from trio_broker.cli.running import run
from trio_broker.cli.standard import write
from trio_broker.client import Client
from trio_broker.message import SubjectInfo

PAGE_SIZE = 500

_ID = click.IntRange(min=1, max=2**63 - 1)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line instead of a table.")
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
_subject_argument = click.argument("subject", type=Parsed("subject", utf8))

_TITLES = ("SUBJECT", "FIRST ID", "LAST ID", "FIRST PUBLISHED", "LAST PUBLISHED", "SUBSCRIBERS")
_NUMBERS = (False, True, True, False, False, True)
_NOTHING = "-"


@click.group("subject")
def command() -> None:
    """List subjects, look at one, drop messages.

    A broker with --no-admin refuses all of it.
    """


@command.command("ls")
@click.option("--prefix", type=Parsed("prefix", utf8), default="", help="Only subjects that begin with it.")
@click.option("--limit", type=click.IntRange(min=1), help="Print so many at most.")
@_json_option
@server_options
def _ls(*, prefix: str, limit: int | None, as_json: bool, server: Server, timeout: float) -> int:
    """Print the subjects, in the order of their UTF-8 bytes.

    FIRST ID is the first that is kept, LAST ID the last that was given; SUBSCRIBERS are those of the broker
    asked. Times are in UTC.
    """
    return run(_list, prefix, limit, as_json, server, timeout)


async def _list(prefix: str, limit: int | None, as_json: bool, server: Server, timeout_s: float) -> int:  # noqa: FBT001
    async with connected(server, timeout_s) as client:
        left, token, first = limit if limit is not None else sys.maxsize, "", True
        while left:
            with trio.fail_after(timeout_s):
                page = await client.list_subjects(prefix, page_size=min(left, PAGE_SIZE), page_token=token)
            if page.subjects or first:
                await write(_lines(page.subjects, as_json=as_json, titles=first))
            left, token, first = left - len(page.subjects), page.next_token, False
            if not token:
                break
    return 0


@command.command("info")
@_subject_argument
@_json_option
@server_options
def _info(*, subject: str, as_json: bool, server: Server, timeout: float) -> int:
    """Print what is known of SUBJECT, also if nothing was ever published to it."""
    return run(_show, lambda client: client.get_subject(subject), as_json, server, timeout)


@command.command("purge")
@_subject_argument
@click.option("--until", type=_ID, metavar="ID", help="Up to this id. Default: all that are there now.")
@_yes_option
@_json_option
@server_options
def _purge(*, subject: str, until: int | None, yes: bool, as_json: bool, server: Server, timeout: float) -> int:
    """Drop the messages of SUBJECT, and print what is known of it then.

    Nobody can fetch or replay them any more; ids go on from the last one. It cannot be undone.
    """
    what = f"all messages of {subject!r}" if until is None else f"the messages of {subject!r} up to id {until}"
    _ask(f"Drop {what} at {server} for good?", yes=yes)
    return run(_show, lambda client: client.purge_subject(subject, until or 0), as_json, server, timeout)


@command.command("rm")
@_subject_argument
@click.option(
    "--expected-last-id", type=click.IntRange(0, 2**63 - 1), metavar="ID", help="Only if this is its last id."
)
@_yes_option
@_json_option
@server_options
def _rm(*, subject: str, expected_last_id: int | None, yes: bool, as_json: bool, server: Server, timeout: float) -> int:
    """Drop SUBJECT with all its messages; it is not listed until something is published to it.

    Its last id is kept: ids go on from there, so that none is ever given twice. It cannot be undone.
    """
    _ask(f"Drop {subject!r} with all its messages at {server} for good?", yes=yes)
    return run(_show, lambda client: client.delete_subject(subject, expected_last_id), as_json, server, timeout)


def _ask(question: str, *, yes: bool) -> None:
    """Go on if the user means it.

    Raises:
        click.UsageError: nobody can be asked.
        click.Abort: it was not meant.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: pass --yes if it is meant")
    click.confirm(question, abort=True, err=True)


async def _show(
    ask: Callable[[Client], Awaitable[SubjectInfo]],
    as_json: bool,  # noqa: FBT001
    server: Server,
    timeout_s: float,
) -> int:
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s):
            info = await ask(client)
    await write(_lines([info], as_json=as_json, titles=True))
    return 0


def _lines(subjects: Sequence[SubjectInfo], *, as_json: bool, titles: bool) -> bytes:
    if as_json:
        return b"".join(dump(_object(info)) for info in subjects)
    rows = [_TITLES] * titles + [_row(info) for info in subjects]
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, _NUMBERS, strict=True)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells))
    return "".join(f"{line.rstrip()}\n" for line in lines).encode()


def _row(info: SubjectInfo) -> tuple[str, ...]:
    first_at, last_at = [
        at.strftime("%Y-%m-%d %H:%M:%S") if at else _NOTHING for at in (info.first_published_at, info.last_published_at)
    ]
    first_id = str(info.first_id) if info.first_id <= info.last_id else _NOTHING
    return info.subject, first_id, str(info.last_id), first_at, last_at, str(info.subscribers)


def _object(info: SubjectInfo) -> dict[str, object]:
    return {
        **info._asdict(),
        "first_published_at": info.first_published_at and write_time(info.first_published_at),
        "last_published_at": info.last_published_at and write_time(info.last_published_at),
    }
