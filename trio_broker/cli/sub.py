"""``trio-broker sub``: print what is published, and what was."""

import math
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click
import trio

from trio_broker.cli.connecting import connected
from trio_broker.cli.jsonlines import to_json
from trio_broker.cli.options import Parsed, Server, server_options, utf8
from trio_broker.cli.running import UNAVAILABLE, Failure, run
from trio_broker.cli.standard import write
from trio_broker.message import Gap, Message
from trio_broker.notation import seconds
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, Start

_LAST_ID = 2**63 - 1


def _ago(text: str) -> datetime:
    duration_s = seconds(text)
    try:
        return datetime.now(UTC) - timedelta(seconds=duration_s)
    except OverflowError:
        raise ValueError(f"there is no date so long ago: {text!r}") from None


@click.command("sub")
@click.argument("subject", type=Parsed("subject", utf8))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--raw", is_flag=True, help="Print the bodies byte for byte, without the newline after each.")
@click.option("--all", "from_earliest", is_flag=True, help="Begin with the first message that is kept.")
@click.option("--from", "from_id", type=click.IntRange(1, _LAST_ID), metavar="ID", help="Begin with this id.")
@click.option("--last", type=click.IntRange(0, _LAST_ID), metavar="N", help="Begin with the last N ids.")
@click.option("--since", type=Parsed("duration", _ago), help="Begin so long ago, by this machine's clock: 90s, 1h.")
@click.option("--exit-at-end", is_flag=True, help="End after the last message there is now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@server_options
def command(
    *,
    subject: str,
    as_json: bool,
    raw: bool,
    from_earliest: bool,
    from_id: int | None,
    last: int | None,
    since: datetime | None,
    exit_at_end: bool,
    count: int | None,
    server: Server,
    timeout: float,
) -> int:
    """Print the messages of SUBJECT that are published from now on, each body with a newline after it.

    With --all, --from, --last or --since, those that are kept from there on come first. "subscribed to SUBJECT" on
    stderr means that no message acknowledged later is missed; what cannot be had any more is told there too.
    --timeout is for getting there; then messages are waited for until Ctrl-C, --count, --exit-at-end, or an error.
    """
    if raw and as_json:
        raise click.UsageError("give either --raw or --json")
    starts: list[Start] = []
    if from_earliest:
        starts.append(Earliest())
    if from_id is not None:
        starts.append(After(from_id - 1))
    if last is not None:
        starts.append(Last(last))
    if since is not None:
        starts.append(At(since))
    if len(starts) > 1:
        raise click.UsageError("give one of --all, --from, --last and --since")
    asked = _Asked(
        subject, starts[0] if starts else New(), at_end=exit_at_end, messages=sys.maxsize if count is None else count
    )
    form = to_json if as_json else _raw if raw else _line
    return run(_subscribe, asked, form, server, timeout)


class _Asked(NamedTuple):
    subject: str
    start: Start
    at_end: bool
    messages: int


async def _subscribe(asked: _Asked, form: Callable[[Message], bytes], server: Server, timeout_s: float) -> int:
    subject, start, at_end, count = asked
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s) as subscribing:
            until = AtEnd() if at_end else None
            async with client.subscribe(subject, start=start, until=until, report_gaps=True) as stream:
                subscribing.deadline = math.inf
                click.echo(f"subscribed to {subject}", err=True)
                while count > 0:
                    received = await stream.receive_some()
                    if not received and at_end:
                        break
                    if not received:
                        raise Failure("the broker ended the subscription", UNAVAILABLE)
                    count -= await _print(received, form, count)
    return 0


async def _print(received: Sequence[Message | Gap], form: Callable[[Message], bytes], count: int) -> int:
    """Print at most ``count`` messages, and the gaps before them where they are; return how many."""
    out: list[bytes] = []
    printed = 0
    for item in received:
        if printed == count:
            break
        if isinstance(item, Message):
            out.append(form(item))
            printed += 1
            continue
        await write(b"".join(out))
        out.clear()
        click.echo(_told(item), err=True)
    await write(b"".join(out))
    return printed


def _told(gap: Gap) -> str:
    if gap.first_id == gap.last_id:
        return f"id {gap.first_id} is missing: {gap.reason}"
    return f"ids {gap.first_id} to {gap.last_id} are missing: {gap.reason}"


def _raw(message: Message) -> bytes:
    return message.body


def _line(message: Message) -> bytes:
    return message.body + b"\n"
