"""Lines on their way through a stream: what is in flight, what is waited for, what is told of the end."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import trio
from grpcio_broker import SAFETY_S, serving
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_broker.cli import publishing
from trio_broker.cli.progress import Progress
from trio_broker.cli.publishing import IN_FLIGHT, PIECE, Account, Lines
from trio_broker.client.publishing import PublishStream, Result
from trio_broker.errors import BrokerClosed, BrokerError, ConnectionLost, Draining, InvalidSubject, OutcomeUnknown
from trio_broker.message import Draft

COMMAND = [sys.executable, "-m", "trio_broker"]


class Stream:
    """A stream whose results a test gives."""

    def __init__(self) -> None:
        self.sent = self._answered = 0
        self.finished = trio.Event()
        self._results: deque[list[Result] | BrokerError] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    def give(self, *results: Result) -> None:
        self._results.append(list(results))
        self._changed.unpark_all()

    def end(self, error: BrokerError | None = None) -> None:
        self._results.append(error or [])
        self._changed.unpark_all()

    async def send(self, drafts: Sequence[Draft]) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += len(drafts)
        self._changed.unpark_all()

    async def finish(self) -> None:
        await trio.lowlevel.checkpoint()
        self.finished.set()

    async def receive_some(self) -> list[Result]:
        await trio.lowlevel.checkpoint()
        while not self._results:
            await self._changed.park()
        results = self._results.popleft()
        if isinstance(results, BrokerError):
            raise results
        self._answered += len(results)
        while self._answered > self.sent:
            await self._changed.park()
        return results


class Publishing:
    """`Lines` at work, on stdin that a test writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = Stream()
        self.account = Account("here:1", timeout_s=10)
        self.printed = b""
        self._send, self._receive = trio.open_memory_channel[list[bytes]](99)
        monkeypatch.setattr(publishing, "read_lines", lambda: self._receive)
        stream, ids = cast("PublishStream", self.stream), cast("Progress", self)
        self.lines = Lines(stream, lambda line: Draft("orders", line), self.account, ids)

    def read(self, count: int) -> None:
        self._send.send_nowait([b"x"] * count)

    def end_stdin(self) -> None:
        self._send.close()

    async def run(self) -> str:
        """Do as the command does; return what it tells."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.lines.send)
            await self.lines.print_ids()
            nursery.cancel_scope.cancel()
        self.lines.settle()
        return str(self.account.failure())

    async def print(self, output: bytes, messages: int, done_bytes: int) -> None:
        """Stand in for `Progress`: every line has two bytes."""
        await trio.lowlevel.checkpoint()
        self.printed += output
        assert messages == self.account.published
        assert done_bytes == 2 * (messages + len(self.account.failed))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Publishing:
    return Publishing(monkeypatch)


async def run(publishing: Publishing, said: list[str]) -> None:
    said.append(await publishing.run())


async def test_a_line_that_comes_alone_is_sent_at_once(told: Publishing, nursery: trio.Nursery) -> None:
    nursery.start_soon(told.run)
    for count in range(1, 4):
        told.read(1)
        await wait_all_tasks_blocked()
        assert told.stream.sent == count
        told.stream.give(count)
        await wait_all_tasks_blocked()
        assert told.printed.split()[-1] == b"%d" % count
    nursery.cancel_scope.cancel()


async def test_no_more_is_in_flight_than_can_be_accounted_for(told: Publishing, nursery: trio.Nursery) -> None:
    nursery.start_soon(told.run)
    told.read(2 * IN_FLIGHT)
    await wait_all_tasks_blocked()
    assert told.stream.sent == IN_FLIGHT
    told.stream.give(*range(1, PIECE))
    await wait_all_tasks_blocked()
    assert told.stream.sent == IN_FLIGHT
    told.stream.give(PIECE)
    await wait_all_tasks_blocked()
    assert told.stream.sent == IN_FLIGHT + PIECE
    nursery.cancel_scope.cancel()


async def test_the_first_line_that_fails_ends_it_once_the_rest_is_acknowledged(
    told: Publishing, nursery: trio.Nursery
) -> None:
    said: list[str] = []
    nursery.start_soon(run, told, said)
    told.read(4)
    await wait_all_tasks_blocked()
    told.stream.give(1, InvalidSubject("bad"))
    await told.stream.finished.wait()  # nothing more is read
    told.stream.give(2, OutcomeUnknown("who knows"))
    told.stream.end()
    await wait_all_tasks_blocked()
    assert said == ["line 2: bad; 1 more lines up to 4 failed; published 2; not known whether published: 1"]
    assert (told.printed, told.stream.sent) == (b"1\n2\n", 4)
    assert told.account.failure().exit_code == 1


async def test_each_result_is_waited_for_from_the_one_before(
    told: Publishing, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    said: list[str] = []
    nursery.start_soon(run, told, said)
    await trio.sleep(99)  # nothing is in flight
    told.read(4)
    await trio.sleep(9)
    told.read(1)
    told.stream.give(1)
    await trio.sleep(9)
    told.stream.give(2, 3)
    assert said == []
    await trio.sleep(11)
    (text,) = said
    assert text == (
        "line 4: no answer from here:1 within 10 s (--timeout); 1 more lines up to 5 failed; published 3; "
        "not known whether published: 2"
    )
    assert told.account.failure().exit_code == 124


async def test_lines_that_come_while_nothing_is_answered_do_not_make_it_wait_longer(
    told: Publishing, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    said: list[str] = []
    nursery.start_soon(run, told, said)
    for _ in range(5):
        told.read(1)
        await trio.sleep(2.1)
    (text,) = said
    assert text == (
        "line 1: no answer from here:1 within 10 s (--timeout); 4 more lines up to 5 failed; published 0; "
        "not known whether published: 5"
    )


@pytest.mark.parametrize(
    ("error", "code", "unknown"),
    [
        (Draining("stopping"), 4, ""),
        (BrokerClosed("closed"), 4, ""),
        (ConnectionLost("lost"), 4, "; not known whether published: 2"),
        (BrokerError("a bug"), 1, "; not known whether published: 2"),
    ],
)
async def test_what_is_in_flight_when_the_stream_ends_is_accounted_for(
    told: Publishing, error: BrokerError, code: int, unknown: str
) -> None:
    told.read(3)
    told.stream.give(1)
    told.stream.end(error)
    said = await told.run()
    assert said == f"line 2: {error}; 1 more lines up to 3 failed; published 1{unknown}"
    assert told.account.failure().exit_code == code


async def test_a_stream_that_ends_between_two_lines_fails_the_next(told: Publishing) -> None:
    told.read(1)
    told.stream.give(1)
    told.stream.end(Draining("stopping"))
    assert await told.run() == "line 2: stopping; published 1"


async def test_a_stream_that_ends_after_everything_is_acknowledged_fails_nothing(told: Publishing) -> None:
    told.read(1)
    told.end_stdin()
    told.stream.give(1)
    told.stream.end(Draining("stopping"))
    await told.run()
    assert told.account.failed == []


async def test_ctrl_c_waits_for_what_is_in_flight_and_a_second_one_for_nothing(
    told: Publishing, nursery: trio.Nursery
) -> None:
    said: list[str] = []
    interrupt, interrupts = trio.open_memory_channel[int](9)
    nursery.start_soon(told.lines.stop_when, interrupts)
    nursery.start_soon(run, told, said)
    told.read(3)
    await wait_all_tasks_blocked()
    interrupt.send_nowait(signal.SIGINT)
    await told.stream.finished.wait()
    told.stream.give(1)
    await wait_all_tasks_blocked()
    assert said == []
    interrupt.send_nowait(signal.SIGINT)
    await wait_all_tasks_blocked()
    assert said == ["interrupted; published 1; not known whether published: 2"]
    assert told.account.failure().exit_code == 130
    nursery.cancel_scope.cancel()


def test_ctrl_c_tells_how_many_were_acknowledged() -> None:
    with serving() as broker:
        command = [*COMMAND, "pub", "orders", "--server", f"127.0.0.1:{broker.port}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as publisher:
            assert publisher.stdin is not None
            assert publisher.stdout is not None
            publisher.stdin.write(b"one\ntwo\n")
            publisher.stdin.flush()
            assert [publisher.stdout.readline() for _ in range(2)] == [b"1\n", b"2\n"]
            publisher.send_signal(signal.SIGINT)
            assert publisher.stderr is not None
            assert publisher.stderr.read() == b"trio-broker: interrupted; published 2\n"
            assert publisher.wait(SAFETY_S) == 130


@pytest.mark.parametrize("ids_on_terminal", [False, True])
def test_a_bar_on_the_terminal_says_how_far_a_file_is(tmp_path: Path, ids_on_terminal: bool) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x\n" * 5)
    ours, terminal = os.openpty()
    with serving() as broker, file.open() as stdin, os.fdopen(ours, "rb", buffering=0):
        command = [*COMMAND, "pub", "orders", "--server", f"127.0.0.1:{broker.port}"]
        stdout = terminal if ids_on_terminal else subprocess.DEVNULL
        done = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=terminal, check=False, timeout=SAFETY_S)
        shown = os.read(ours, 65536).decode()
        os.close(terminal)
    assert done.returncode == 0
    assert "%  published " in shown
    assert shown.endswith("\r\x1b[K")
    if ids_on_terminal:
        assert shown.count("100%") >= 1
        assert [line.rpartition("\x1b[K")[2] for line in shown.split("\r\n")][:5] == ["1", "2", "3", "4", "5"]


def test_what_comes_through_a_pipe_has_no_end_to_be_far_from(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with serving() as broker, os.fdopen(ours, "rb", buffering=0), (tmp_path / "ids").open("wb") as ids:
        command = [*COMMAND, "pub", "orders", "--server", f"127.0.0.1:{broker.port}"]
        subprocess.run(command, input=b"x\n", stdout=ids, stderr=terminal, check=True, timeout=SAFETY_S)
        shown = os.read(ours, 65536).decode()
        os.close(terminal)
    assert "published 1, " in shown
    assert "%" not in shown
    assert (tmp_path / "ids").read_bytes() == b"1\n"


def test_nobody_who_types_gets_a_bar() -> None:
    ours, terminal = os.openpty()
    with serving() as broker:
        command = [*COMMAND, "pub", "orders", "--server", f"127.0.0.1:{broker.port}"]
        os.write(ours, b"typed\n\x04")
        done = subprocess.run(command, stdin=terminal, capture_output=True, check=False, timeout=SAFETY_S)
    os.close(ours)
    os.close(terminal)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")
