"""Publish lines of standard input over one stream.

Owns:      how much is in flight, ids printed in the order of the lines, and an honest end: whatever happens, every id
           that was acknowledged is printed, and the rest is accounted for.
Not here:  how a line is read (trio_broker/cli/jsonlines.py), the stream (trio_broker/client/publishing.py).
Threads:   the trio thread only.

Lines are sent as they come, all that one read brought together: one that comes alone does not wait for others.
"""

import math
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import trio

from trio_broker.cli.connecting import connected, no_answer
from trio_broker.cli.options import Server
from trio_broker.cli.progress import Progress
from trio_broker.cli.running import ERROR, INTERRUPTED, TIMEOUT, Failure, exit_code_of
from trio_broker.cli.standard import read_lines
from trio_broker.client.publishing import PublishStream, Result
from trio_broker.errors import BrokerClosed, BrokerError, ConnectionLost, Draining, NotApplied, OutcomeUnknown
from trio_broker.message import Draft

IN_FLIGHT = 10_000
"""Lines that may wait for their ids: enough to fill the broker's flushes, little enough to account for."""
PIECE = 1_000
"""Lines that are sent together: none is sent after the piece in which one is found to fail."""

DraftOf = Callable[[bytes], Draft | None]
"""Reads a line; None: it is no message. A ValueError says what is wrong with it."""


async def publish_lines(draft_of: DraftOf, server: Server, timeout_s: float) -> int:
    """Publish every line of stdin, up to the first that fails; return the exit code. A checkpoint.

    ``timeout_s``: how long to wait for each next id.

    Raises:
        Failure: with what became of the lines.
    """
    account = Account(server, timeout_s)
    progress = Progress()
    async with connected(server, timeout_s) as client:
        with trio.fail_after(timeout_s) as opening:
            async with client.publish_stream() as stream:
                opening.deadline = math.inf
                lines = Lines(stream, draft_of, account, progress)
                with trio.open_signal_receiver(signal.SIGINT) as interrupts:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(lines.send)
                        nursery.start_soon(lines.stop_when, interrupts)
                        await lines.print_ids()
                        nursery.cancel_scope.cancel()
                lines.settle()
    await progress.wipe()
    if account.failed or account.interrupted:
        raise account.failure()
    return 0


@dataclass
class Account:
    """What became of the lines."""

    server: Server
    timeout_s: float
    published: int = 0
    unknown: int = 0
    failed: list[tuple[int, str, int]] = field(default_factory=list)
    """Number, why, exit code."""
    interrupted: bool = False

    def fail(self, number: int, error: Exception, *, unknown: bool = False) -> None:
        """Note that a line has no id. ``unknown``: its message may be published all the same."""
        text, code = str(error), ERROR
        if isinstance(error, trio.TooSlowError):
            text, code = no_answer(self.server, self.timeout_s), TIMEOUT
        elif isinstance(error, BrokerError):
            code = exit_code_of(error)
        self.failed.append((number, text, code))
        self.unknown += unknown

    def failure(self) -> Failure:
        """One line about everything, and the exit code of the first line that failed."""
        parts, code = ["interrupted"] * self.interrupted, INTERRUPTED
        if self.failed:
            (number, text, code), *more = sorted(self.failed)
            parts.append(f"line {number}: {text}")
            if more:
                parts.append(f"{len(more)} more lines up to {more[-1][0]} failed")
        parts.append(f"published {self.published}")
        if self.unknown:
            parts.append(f"not known whether published: {self.unknown}")
        return Failure("; ".join(parts), code)


class Lines:
    """The lines on their way: `send` in one task, `print_ids` in another, `settle` after both."""

    def __init__(self, stream: PublishStream, draft_of: DraftOf, account: Account, progress: Progress) -> None:
        self._stream = stream
        self._draft_of = draft_of
        self._account = account
        self._progress = progress
        self._in_flight: deque[tuple[int, int]] = deque()
        """Of each line without a result: its number, and where in stdin it ends."""
        self._room = trio.lowlevel.ParkingLot()
        self._number = 1
        """Of the next line."""
        self._offset = 0
        self._reading = trio.CancelScope()
        self._stopped = False
        self._all_sent = False
        self._patience = trio.CancelScope()
        self._end: Exception | None = None
        """Why there is no result for what is still in flight; None: it was not waited for."""
        self._hurried = False

    async def send(self) -> None:
        """Send the lines, until the end of stdin, or `stop`. A checkpoint."""
        try:
            async with read_lines() as some:
                while lines := await self._next(some):
                    for start in range(0, len(lines), PIECE):
                        if not self._stopped:
                            await self._send_piece(lines[start : start + PIECE])
        except ValueError as error:
            self._account.fail(self._number, error)
        self._all_sent = not self._stopped
        await self._stream.finish()

    async def stop_when(self, interrupts: AsyncIterator[int]) -> None:
        """Read no more at the first Ctrl-C, and wait for nothing at the second."""
        async for _ in interrupts:
            if self._account.interrupted:
                self._hurried = True
                self._patience.cancel()
            self._account.interrupted = True
            self._stop()

    async def print_ids(self) -> None:
        """Print the ids as they come, until the stream ends, or for as long as it moves. A checkpoint."""
        try:
            with self._patience:
                while results := await self._stream.receive_some():
                    await self._print(results)
                self._end = ConnectionLost("the broker ended the stream")
        except BrokerError as error:
            self._end = error
        if self._patience.cancelled_caught and not self._hurried:
            self._end = trio.TooSlowError()

    def settle(self) -> None:
        """Account for what has no result. Nothing is sent or received any more."""
        error = self._end
        if error is None:
            self._account.unknown += len(self._in_flight)
            return
        nothing_more = isinstance(error, Draining | BrokerClosed | NotApplied) or getattr(error, "retryable", False)
        for number, _ in self._in_flight:
            self._account.fail(number, error, unknown=not nothing_more)
        if not self._in_flight and not self._all_sent and not self._account.failed and not self._account.interrupted:
            self._account.fail(self._number, error)  # while it waited for this line

    def _stop(self) -> None:
        self._stopped = True
        self._reading.cancel()

    async def _next(self, some: trio.abc.ReceiveChannel[list[bytes]]) -> Sequence[bytes]:
        """Wait for lines; none: there are no more, or no more are to be sent."""
        with trio.CancelScope() as self._reading:
            if not self._stopped:
                async for lines in some:
                    return lines
        return ()

    async def _send_piece(self, lines: Sequence[bytes]) -> None:
        drafts, sent = [], []
        try:
            for line in lines:
                self._offset += len(line) + 1
                if (draft := self._draft_of(line)) is not None:
                    drafts.append(draft)
                    sent.append((self._number, self._offset))
                self._number += 1
        except ValueError as error:
            self._account.fail(self._number, error)
            self._stop()
        while self._in_flight and len(self._in_flight) + len(drafts) > IN_FLIGHT:
            await self._room.park()
        first = not self._in_flight
        self._in_flight.extend(sent)
        if first:
            self._expect()
        await self._stream.send(drafts)
        if first:
            self._expect()  # it may have taken long to send

    def _expect(self) -> None:
        """Wait for the next result for so long; for as long as it takes, if nothing is in flight."""
        timeout_s = self._account.timeout_s if self._in_flight else math.inf
        self._patience.deadline = trio.current_time() + timeout_s

    async def _print(self, results: Sequence[Result]) -> None:
        ids = bytearray()
        done_bytes = 0
        for result in results:
            number, done_bytes = self._in_flight.popleft()
            if isinstance(result, BrokerError):
                unknown = isinstance(result, ConnectionLost | OutcomeUnknown) and not result.retryable
                self._account.fail(number, result, unknown=unknown)
                self._stop()
            else:
                self._account.published += 1
                ids += b"%d\n" % result
        self._room.unpark_all()
        self._patience.deadline = math.inf  # whoever reads the ids has time
        await self._progress.print(bytes(ids), self._account.published, done_bytes)
        self._expect()
