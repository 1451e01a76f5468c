"""``trio-broker pub``: publish one message, or every line of stdin.

Owns:      the arguments and options; publishing one message.
Not here:  publishing lines (trio_broker/cli/publishing.py), how a line is read (trio_broker/cli/jsonlines.py), the
           connection (trio_broker/client/).
"""

import os

import click
import trio

from trio_broker.cli.connecting import connected, no_answer
from trio_broker.cli.jsonlines import expiration_of, from_json
from trio_broker.cli.options import Parsed, Server, server_options, utf8
from trio_broker.cli.publishing import publish_lines
from trio_broker.cli.running import TIMEOUT, Failure, run
from trio_broker.cli.standard import write
from trio_broker.message import Draft

_FROM_STDIN = (None, "-")

_HEADER_HELP = "A header, without the white space after its colon. May be repeated."

_EXPECTED_HELP = "Publish BODY only if this is the last id of SUBJECT; 0: if it has none."

_KEY_HELP = "The idempotency key of BODY: the same command again prints the same id, and publishes nothing."


def _header(text: str) -> tuple[str, bytes]:
    name, colon, value = text.partition(":")
    if not name or not colon:
        raise ValueError(f"{text!r} is not a header: write name:value")
    return utf8(name), os.fsencode(value).lstrip()  # "name: value" as curl reads it


def _key(text: str) -> str:
    if not text:
        raise ValueError("it is empty: leave --key out to publish without one")  # a variable that a script did not set
    return utf8(text)


@click.command("pub")
@click.argument("subject", type=Parsed("subject", utf8), required=False)
@click.argument("body", required=False)
@click.option(
    "--expiration",
    type=Parsed("expiration", expiration_of),
    default=0,
    help="How long the message can be fetched: 60s, 1h, or seconds. Default: it only reaches those subscribed now.",
)
@click.option("--keep", is_flag=True, help="Keep the message until it is deleted.")
@click.option("-H", "--header", "headers", type=Parsed("name:value", _header), multiple=True, help=_HEADER_HELP)
@click.option("--key", type=Parsed("key", _key), help=_KEY_HELP)
@click.option("--expected-last-id", type=click.IntRange(0, 2**63 - 1), metavar="ID", help=_EXPECTED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Read JSON objects, one a line.")
@server_options
def command(
    *,
    subject: str | None,
    body: str | None,
    expiration: int,
    keep: bool,
    headers: tuple[tuple[str, bytes], ...],
    key: str | None,
    expected_last_id: int | None,
    as_json: bool,
    server: Server,
    timeout: float,
) -> int:
    """Publish BODY on SUBJECT and print its id. Without BODY, or with "-": every line of stdin is a message.

    Ids are printed one a line, in the order of the lines, as soon as the messages are durable. The first line that
    cannot be published ends it; what was sent by then is still waited for. So does Ctrl-C, which tells how many were
    published; a second one waits for nothing. On a terminal a bar shows how far it is.

    With --json the lines are objects: subject (SUBJECT if missing), body or body_base64, headers, headers_base64,
    expiration (seconds), keep, idempotency_key. What "sub --json" prints can be published so. Blank lines are passed
    over.
    What a line says goes before --expiration and --keep; its headers go before those of -H with the same name.
    """
    if as_json and subject == "-" and body is None:
        subject = None
    if subject is None and not as_json:
        raise click.UsageError("which SUBJECT?")
    if as_json and body not in _FROM_STDIN:
        raise click.UsageError("with --json the messages come from stdin: leave BODY out")
    if keep and expiration:
        raise click.UsageError("give either --keep or --expiration")
    if key and body in _FROM_STDIN:
        raise click.UsageError("--key is for one message: give BODY, or with --json idempotency_key in each line")
    if expected_last_id is not None and body in _FROM_STDIN:
        raise click.UsageError("--expected-last-id is for one message: give BODY")
    if len(dict(headers)) < len(headers):
        name = next(name for place, (name, _) in enumerate(headers) if name in dict(headers[:place]))
        raise click.UsageError(f"a header is given twice: {name!r}")
    seconds = None if keep else expiration
    draft = Draft(subject or "", os.fsencode(body or ""), seconds, dict(headers), key or "", expected_last_id)
    if body not in _FROM_STDIN:
        return run(_publish_one, draft, server, timeout)
    read = from_json if as_json else _from_line
    return run(publish_lines, lambda line: read(line, draft), server, timeout)


def _from_line(line: bytes, default: Draft) -> Draft:
    return default._replace(body=line)


async def _publish_one(draft: Draft, server: Server, timeout_s: float) -> int:
    async with connected(server, timeout_s) as client:
        with trio.move_on_after(timeout_s) as waiting:
            subject, body, expiration, headers, key, expected_last_id = draft
            id_ = await client.publish(
                subject,
                body,
                expiration,
                headers=headers,
                idempotency_key=key,
                expected_last_id=expected_last_id,
            )
        if waiting.cancelled_caught:
            raise Failure(f"{no_answer(server, timeout_s)}; not known whether it is published", TIMEOUT)
    await write(b"%d\n" % id_)
    return 0
