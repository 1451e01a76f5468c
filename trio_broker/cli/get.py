"""``trio-broker get``: fetch one message."""

import sys

import click
import trio

from trio_broker.cli.connecting import connected
from trio_broker.cli.jsonlines import to_json
from trio_broker.cli.options import Parsed, Server, server_options, utf8
from trio_broker.cli.running import run
from trio_broker.cli.standard import write


@click.command("get")
@click.argument("subject", type=Parsed("subject", utf8))
@click.argument("id", type=click.IntRange(min=-(2**63), max=2**63 - 1), metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of the body.")
@server_options
def command(*, subject: str, id: int, as_json: bool, server: Server, timeout: float) -> int:  # noqa: A002  the argument
    """Print the body of message ID of SUBJECT, byte for byte (on a terminal a newline follows).

    Exit code 3: the id was never assigned, or its message is no longer kept.
    """
    return run(_get, subject, id, as_json, server, timeout)


async def _get(subject: str, id: int, as_json: bool, server: Server, timeout_s: float) -> int:  # noqa: A002, FBT001
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s):
            message = await client.fetch(subject, id)
    if as_json:
        await write(to_json(message))
    else:
        await write(message.body + b"\n" * sys.stdout.isatty())
    return 0
