"""``trio-broker import``: bring what ``export`` printed into a store, under the same ids.

Owns:      what goes to the store at once, that doing it again does no harm, and that nothing is mixed with a log that
           is another one.
Not here:  the lines (trio_broker/cli/loglines.py); the store (persistence/).
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trio_broker.cli.running import Failure
from trio_broker.cli.standard import read_lines, write
from trio_broker.cli.storing import run_on_store, store_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistence import ExpiredId, InvalidId, Key, Record, Store
    from trio_broker.cli.loglines import Line

CHUNK_MESSAGES = 1000
CHUNK_BYTES = 4 * 1024 * 1024


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False), metavar="FILE")
@click.option("--continue", "goes_on", is_flag=True, help="Also add to subjects of which FILE repeats no message.")
@store_options
def command(*, source: Path, goes_on: bool, store: str | None, file: Path | None) -> int:
    """Bring what "trio-broker export" printed to FILE into the store, under the same ids; "-" is standard input.

    What the store has already is compared and passed over, so that an import that was interrupted can be done again.
    Nothing is changed where the store has other messages under the same ids, or others before those in FILE. Stop
    whatever publishes to these subjects in this store meanwhile; brokers may run if they are on a database server.
    """
    return run_on_store(_import, store, file, source, goes_on)


async def _import(url: str, source: Path, goes_on: bool) -> int:  # noqa: FBT001
    from persistence import open_store
    from trio_broker.cli.loglines import read_line

    descriptor = 0 if str(source) == "-" else os.open(source, os.O_RDONLY)
    size_bytes = os.fstat(descriptor).st_size
    number = 1
    async with open_store(url, exclusive=True) as store:
        importing = _Importing(store, goes_on=goes_on)
        hidden = not sys.stderr.isatty()
        with click.progressbar(length=size_bytes, label="import", file=sys.stderr, hidden=hidden) as bar:
            try:
                async with read_lines(descriptor) as some:
                    async for lines in some:
                        for line in lines:
                            await importing.add(read_line(line))
                            number += 1
                        bar.update(sum(map(len, lines)) + len(lines))
                await importing.finish()
            except ValueError as error:
                raise Failure(f"line {number}: {error}; {importing.so_far()}") from error
            except Failure as failure:
                raise Failure(f"{failure}; {importing.so_far()}", failure.exit_code) from None
    await write(f"{importing.so_far()}\n".encode())
    return 0


class _Importing:
    """The lines of one file, on their way into the store."""

    def __init__(self, store: "Store", *, goes_on: bool) -> None:
        limits = store.limits()
        self._store = store
        self._goes_on = goes_on
        self._max_messages = min(CHUNK_MESSAGES, limits.flush_messages_max)
        self._max_bytes = min(CHUNK_BYTES, limits.flush_bytes_max)
        self._subject = ""
        self._seen: set[str] = set()
        self._chunk: list[Record] = []
        self._chunk_bytes = 0
        self._read_id = 0
        self._is_known = False
        """What the store has of the subject is the beginning of what the file has, or it may go on from there."""
        self._imported = self._repeated = 0

    def so_far(self) -> str:
        """Say what has been done."""
        return f"imported {self._imported} messages of {len(self._seen)} subjects, {self._repeated} were there already"

    async def add(self, line: "Line") -> None:
        """Take a line; what fills a chunk goes to the store.

        Raises:
            ValueError: it cannot come after those before it.
            Failure: the store has something else.
        """
        if line.subject != self._subject:
            await self._flush()
            if line.subject in self._seen:
                raise ValueError(f"{line.subject!r} has ended before")
            self._subject, self._read_id, self._is_known = line.subject, 0, False
            self._seen.add(line.subject)
        if line.record is None:
            if line.last_id < self._read_id:
                raise ValueError(f"last_id {line.last_id} is below that of a message, {self._read_id}")
            await self._flush()
            await self._check([], line.last_id)
            await self._store.restore(line.subject, [], line.last_id)
            self._read_id = line.last_id
            return
        if line.last_id <= self._read_id:
            raise ValueError(f"id {line.last_id} comes after {self._read_id}")
        size_bytes = len(line.record.body)
        if len(self._chunk) == self._max_messages or self._chunk_bytes + size_bytes > self._max_bytes:
            await self._flush()
        self._chunk.append(line.record)
        self._chunk_bytes += size_bytes
        self._read_id = line.last_id

    async def finish(self) -> None:
        """Bring what is left into the store."""
        await self._flush()

    async def _flush(self) -> None:
        if not self._chunk:
            return
        chunk, self._chunk, self._chunk_bytes = self._chunk, [], 0
        await self._check(chunk, chunk[-1].id)
        imported = await self._store.restore(self._subject, chunk, chunk[-1].id)
        self._imported += imported
        self._repeated += len(chunk) - imported

    async def _check(self, chunk: "Sequence[Record]", until_id: int) -> None:
        """Compare a chunk with what the store has up to its end.

        Raises:
            Failure: that is something else.
        """
        from persistence import Key, Record

        last_id = (await self._store.head(self._subject)).last_id
        there = [record for record in chunk if record.id <= last_id]
        for record, found in zip(there, await self._get([Key(self._subject, each.id) for each in there]), strict=True):
            if isinstance(found, Record) and found != record:
                raise Failure(
                    f"{self._subject!r} has another message with id {record.id} in the store: nothing is mixed"
                )
        if 0 < last_id < until_id and not (there or self._is_known or self._goes_on):
            raise Failure(
                f"{self._subject!r} has messages up to id {last_id} in the store, of which the file has none; "
                "if what the file has shall come after them, pass --continue"
            )
        self._is_known = True

    async def _get(self, keys: "Sequence[Key]") -> "Sequence[Record | InvalidId | ExpiredId]":
        return await self._store.get(keys) if keys else ()
