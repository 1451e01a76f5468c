"""``trio-broker pub``: publish one message, or every line of stdin.

Owns:      many publishes in flight at once, ids printed in the order of the lines, and an honest end: whatever
           happens, every id that was acknowledged is printed, and the rest is accounted for.
Not here:  how a line is read (trio_broker/cli/jsonlines.py), the connection (trio_broker/client/).
"""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import click
import trio

from trio_broker.cli.connecting import connected, no_answer
from trio_broker.cli.jsonlines import Draft, expiration_of, from_json
from trio_broker.cli.options import Parsed, server_options, utf8
from trio_broker.cli.running import ERROR, TIMEOUT, Failure, exit_code_of, run
from trio_broker.cli.standard import read_lines, write
from trio_broker.client import Client, Publishing
from trio_broker.errors import BrokerError, ConnectionLost, OutcomeUnknown

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

IN_FLIGHT = 256
"""Publishes that may wait for their ids: enough to fill the broker's flushes, little enough to account for."""

PROGRESS_STEP = 100
"""Messages between two looks of the progress bar."""

_FROM_STDIN = (None, "-")

_HEADER_HELP = "A header, without the white space after its colon. May be repeated."

_KEY_HELP = "The idempotency key of BODY: the same command again prints the same id, and publishes nothing."


def _header(text: str) -> tuple[str, bytes]:
    name, colon, value = text.partition(":")
    if not name or not colon:
        raise ValueError(f"{text!r} is not a header: write name:value")
    return utf8(name), os.fsencode(value).lstrip()  # "name: value" as curl reads it


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
@click.option("--key", type=Parsed("key", utf8), default="", help=_KEY_HELP)
@click.option(
    "--expected-last-id",
    type=click.IntRange(0, 2**63 - 1),
    metavar="ID",
    help="Publish BODY only if this is the last id of SUBJECT; 0: it has none.",
)
@click.option("--json", "as_json", is_flag=True, help="Read JSON objects, one a line.")
@server_options
def command(
    *,
    subject: str | None,
    body: str | None,
    expiration: int,
    keep: bool,
    headers: tuple[tuple[str, bytes], ...],
    key: str,
    expected_last_id: int | None,
    as_json: bool,
    server: str,
    timeout: float,
) -> int:
    """Publish BODY on SUBJECT and print its id. Without BODY, or with "-": every line of stdin is a message.

    Ids are printed one a line, in the order of the lines, as soon as the messages are durable. Where they go to a file
    or a pipe, a terminal shows how many that are.

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
        raise click.UsageError("a header is given twice")
    draft = Draft(subject or "", os.fsencode(body or ""), None if keep else expiration, dict(headers), key)
    if body not in _FROM_STDIN:
        return run(_publish_one, draft, expected_last_id, server, timeout)
    read = from_json if as_json else _from_line
    return run(_publish_lines, lambda line: read(line, draft), server, timeout)


def _from_line(line: bytes, default: Draft) -> Draft:
    return default._replace(body=line)


async def _publish_one(draft: Draft, expected_last_id: int | None, server: str, timeout_s: float) -> int:
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s):
            id_ = await (await _started(client, draft, expected_last_id)).id()
    await write(b"%d\n" % id_)
    return 0


@dataclass
class _Account:
    """What became of the lines."""

    server: str
    timeout_s: float
    published: int = 0
    unknown: int = 0
    failed: list[tuple[int, str, int]] = field(default_factory=list)
    """Number, why, exit code."""

    def fail(self, number: int, error: Exception, *, sent: bool) -> None:
        """Note that a line has no id. ``sent``: the broker may have its message all the same."""
        text, code = str(error), ERROR
        if isinstance(error, trio.TooSlowError):
            text, code = no_answer(self.server, self.timeout_s), TIMEOUT
        elif isinstance(error, BrokerError):
            code = exit_code_of(error)
        self.failed.append((number, text, code))
        says_nothing = isinstance(error, trio.TooSlowError | ConnectionLost | OutcomeUnknown)
        if sent and says_nothing and not getattr(error, "retryable", False):
            self.unknown += 1

    def failure(self) -> Failure:
        """One line about everything, and the exit code of the first line that failed."""
        (number, text, code), *more = sorted(self.failed)
        parts = [f"line {number}: {text}"]
        if more:
            parts.append(f"{len(more)} more lines up to {more[-1][0]} failed")
        parts.append(f"published {self.published}")
        if self.unknown:
            parts.append(f"not known whether published: {self.unknown}")
        return Failure("; ".join(parts), code)


async def _publish_lines(draft_of: Callable[[bytes], Draft | None], server: str, timeout_s: float) -> int:
    account = _Account(server, timeout_s)
    send, receive = trio.open_memory_channel[tuple[int, Publishing]](IN_FLIGHT)
    window = trio.Semaphore(IN_FLIGHT)
    async with connected(server, timeout_s) as client, trio.open_nursery() as nursery:
        reading = trio.CancelScope()
        nursery.start_soon(_send_lines, client, draft_of, window, send, reading, account)
        with receive, _progress() as bar:
            await _print_ids(receive, window, reading, account, bar)
    if account.failed:
        raise account.failure()
    return 0


def _progress() -> "ProgressBar[int]":
    """Return what shows on a terminal how many are published, unless their ids are shown there."""
    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    # how many there will be is not known: the bar goes to and fro
    return click.progressbar(
        count(), label="published", show_pos=True, file=sys.stderr, hidden=hidden, update_min_steps=PROGRESS_STEP
    )


async def _send_lines(
    client: Client,
    draft_of: Callable[[bytes], Draft | None],
    window: trio.Semaphore,
    send: trio.MemorySendChannel[tuple[int, Publishing]],
    reading: trio.CancelScope,
    account: _Account,
) -> None:
    """Start one publish for each line that is a message, in order, until the end or the first line that fails."""
    number = 1
    with send, reading:
        try:
            async with read_lines() as some:
                async for lines in some:
                    for line in lines:
                        if (draft := draft_of(line)) is not None:
                            await window.acquire()
                            publishing = await _start(client, draft, account.timeout_s)
                            send.send_nowait((number, publishing))  # no checkpoint between: it is accounted for
                        number += 1
        except (ValueError, BrokerError, trio.TooSlowError) as error:
            account.fail(number, error, sent=False)
        except trio.BrokenResourceError:
            return  # nobody prints ids any more, and says why


async def _started(client: Client, draft: Draft, expected_last_id: int | None = None) -> Publishing:
    return await client.start_publish(
        draft.subject,
        draft.body,
        draft.expiration,
        headers=draft.headers,
        idempotency_key=draft.idempotency_key,
        expected_last_id=expected_last_id,
    )


async def _start(client: Client, draft: Draft, timeout_s: float) -> Publishing:
    with trio.fail_after(timeout_s):
        return await _started(client, draft)


async def _print_ids(
    receive: trio.MemoryReceiveChannel[tuple[int, Publishing]],
    window: trio.Semaphore,
    reading: trio.CancelScope,
    account: _Account,
    bar: "ProgressBar[int]",
) -> None:
    """Wait for the ids in order and print them as they come; after a failure, of what is in flight already."""
    ids = bytearray()
    give_up_at = math.inf
    async for number, publishing in receive:
        if ids and not publishing.done:
            await write(bytes(ids))
            ids.clear()
        late_at = math.inf if publishing.done else min(give_up_at, trio.current_time() + account.timeout_s)
        try:
            with trio.fail_at(late_at):
                ids += b"%d\n" % await publishing.id()
            account.published += 1
            bar.update(1)
        except (BrokerError, trio.TooSlowError) as error:
            account.fail(number, error, sent=True)
            reading.cancel()
            give_up_at = min(give_up_at, trio.current_time() + account.timeout_s)
        window.release()
        if not receive.statistics().current_buffer_used:
            await write(bytes(ids))
            ids.clear()
