"""``trio-broker sub``: print what is published."""

import math
import sys
from collections.abc import Callable

import click
import trio

from trio_broker.cli.connecting import connected
from trio_broker.cli.jsonlines import to_json
from trio_broker.cli.options import Parsed, server_options, utf8
from trio_broker.cli.running import UNAVAILABLE, Failure, run
from trio_broker.cli.standard import write
from trio_broker.message import Message


@click.command("sub")
@click.argument("subject", type=Parsed("subject", utf8))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--raw", is_flag=True, help="Print the bodies byte for byte, without the newline after each.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@server_options
def command(*, subject: str, as_json: bool, raw: bool, count: int | None, server: str, timeout: float) -> int:
    """Print the messages of SUBJECT that are published from now on, each body with a newline after it.

    "subscribed to SUBJECT" on stderr means that no message acknowledged later is missed. --timeout is for getting
    there; then messages are waited for until Ctrl-C, --count, or an error.
    """
    if raw and as_json:
        raise click.UsageError("give either --raw or --json")
    form = to_json if as_json else _raw if raw else _line
    return run(_subscribe, subject, form, sys.maxsize if count is None else count, server, timeout)


async def _subscribe(subject: str, form: Callable[[Message], bytes], count: int, server: str, timeout_s: float) -> int:
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s) as subscribing:
            async with client.subscribe(subject) as messages:
                subscribing.deadline = math.inf
                click.echo(f"subscribed to {subject}", err=True)
                while count > 0:
                    received = await messages.receive_some()
                    if not received:
                        raise Failure("the broker ended the subscription", UNAVAILABLE)
                    await write(b"".join(map(form, received[:count])))
                    count -= len(received)
    return 0


def _raw(message: Message) -> bytes:
    return message.body


def _line(message: Message) -> bytes:
    return message.body + b"\n"
