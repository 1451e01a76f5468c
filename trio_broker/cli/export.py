"""``trio-broker export``: print the log of subjects, for ``import`` into another store.

Owns:      what is read in which order, and what is told of it.
Not here:  the lines (trio_broker/cli/loglines.py); the store (persistence/).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trio_broker.cli.options import Parsed, utf8
from trio_broker.cli.running import NOT_FOUND, Failure, say
from trio_broker.cli.standard import write
from trio_broker.cli.storing import run_on_store, store_options

if TYPE_CHECKING:
    from persistence import Store

PAGE_MESSAGES = 1000
PAGE_BYTES = 1024 * 1024


@click.command("export")
@click.argument("subjects", type=Parsed("subject", utf8), nargs=-1, metavar="[SUBJECT]...")
@store_options
def command(*, subjects: tuple[str, ...], store: str | None, file: Path | None) -> int:
    """Print the messages that are kept of each SUBJECT, with ids and times, and its last id. Default: all subjects.

    "trio-broker import" brings them into another store, such as from SQLite to PostgreSQL, under the same ids. The
    store is opened directly, also while a broker uses it: what is published to a subject after its export began is not
    in it.

    A subject that was deleted is printed only if it is named: its last id, so that its ids go on elsewhere too.
    """
    return run_on_store(_export, store, file, subjects)


async def _export(url: str, subjects: tuple[str, ...]) -> int:
    from persistence import open_store

    messages = exported = 0
    async with open_store(url, migrate=False) as store:
        for subject in subjects:
            if not (await store.head(subject)).last_id:
                raise Failure(f"nothing was ever published to {subject!r} in this store", NOT_FOUND)
        names = [*dict.fromkeys(subjects)] if subjects else await store.subjects()
        while names:
            for subject in names:
                messages += await _export_subject(store, subject)
                exported += 1
            names = [] if subjects else await store.subjects(names[-1])
    say(f"exported {messages} messages of {exported} subjects")
    return 0


async def _export_subject(store: "Store", subject: str) -> int:
    """Print one subject up to its last id as it is now; return how many messages that were."""
    from trio_broker.cli.loglines import end_line, record_line

    messages = after_id = 0
    last_id = (await store.head(subject)).last_id
    while after_id < last_id:
        page = await store.read(subject, after_id, max_messages=PAGE_MESSAGES, max_bytes=PAGE_BYTES)
        lines = [record_line(subject, record) for record in page.records if record.id <= last_id]
        messages += len(lines)
        await write(b"".join(lines))
        after_id = page.scanned_to
    await write(end_line(subject, last_id))
    return messages
