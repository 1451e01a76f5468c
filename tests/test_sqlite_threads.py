"""Cancellation while a thread is at work, and closing: held still by a clock that the threads have to pass."""

# ruff: noqa: ASYNC240 (small files, and nobody else waits)

import fcntl
import sqlite3
import threading
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from persistence import Appended, CannotOpen, Head, NewMessage, Outcome, Page, Record, Store, open_store
from persistence.sqlite import opening
from persistence.sqlite.opening import READERS

MESSAGE = NewMessage("orders", b"x", None)


class Gate:
    """A clock that stops whoever asks for the time, a worker thread, until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._arrived = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._token: trio.lowlevel.TrioToken | None = None

    def __call__(self) -> int:
        gate = self._open  # it may be opened and closed again before the thread stands there
        if not gate.is_set():
            trio.from_thread.run_sync(self._arrive, trio_token=self._token)
            assert gate.wait(timeout=30), "a test forgot to open the gate"
        return 1_700_000_000_000_000

    def _arrive(self) -> None:
        self._arrived += 1
        self._waiting.unpark_all()

    def close(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._open = threading.Event()
        self._arrived = 0

    def open(self) -> None:
        self._open.set()

    async def arrivals(self, count: int) -> None:
        """Wait until so many threads stand before the closed gate."""
        while self._arrived < count:
            await self._waiting.park()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


@pytest.fixture
async def store(url: str, gate: Gate) -> AsyncGenerator[Store]:
    async with open_store(url, clock=gate) as opened:
        try:
            yield opened
        finally:
            gate.open()


async def test_an_append_cancelled_in_its_transaction_ends_and_is_heard_of(store: Store, gate: Gate) -> None:
    heard: list[list[Outcome]] = []

    async def publish(scope: trio.CancelScope) -> None:
        with scope:
            heard.append(await store.append([MESSAGE, MESSAGE]))

    gate.close()
    begun, waiting = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, begun)
        await gate.arrivals(1)
        nursery.start_soon(publish, waiting)
        await trio.testing.wait_all_tasks_blocked()
        begun.cancel()
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        assert waiting.cancelled_caught  # never begun: given up at once
        gate.open()
    assert [[type(outcome) for outcome in outcomes] for outcomes in heard] == [[Appended, Appended]]
    assert await store.head("orders") == Head(1, 2)


async def test_a_cancelled_read_is_left_behind_and_its_connection_comes_back(store: Store, gate: Gate) -> None:
    await store.append([MESSAGE])
    gate.close()
    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(store.head, "orders")
        await gate.arrivals(READERS)
        nursery.cancel_scope.cancel()  # the threads stand still, yet the callers are free

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.subjects)  # waits for a connection
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    gate.close()
    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(store.head, "orders")
        await gate.arrivals(READERS)  # every connection is at work again
        gate.open()


async def test_a_long_read_holds_up_neither_appends_nor_other_reads(store: Store, gate: Gate) -> None:
    await store.append([MESSAGE])
    gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.head, "orders")
        await gate.arrivals(1)
        assert await store.subjects() == ["orders"]
        assert await store.compare_and_set("r", b"", version=0)
        gate.open()


async def test_a_long_append_holds_up_no_read(store: Store, gate: Gate) -> None:
    await store.append([MESSAGE])
    gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.append, [MESSAGE])
        await gate.arrivals(1)
        assert await store.subjects() == ["orders"]
        gate.open()
    assert await store.head("orders") == Head(1, 2)


async def test_closing_waits_for_reads_that_were_left_behind(url: str, gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        closed = trio.Event()

        async def run() -> None:
            async with open_store(url, clock=gate) as store:
                await store.append([MESSAGE])
                await leave_a_read_behind(store, gate)
            closed.set()

        nursery.start_soon(run)
        await gate.arrivals(1)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        gate.open()
    assert closed.is_set()


async def leave_a_read_behind(store: Store, gate: Gate) -> None:
    gate.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.head, "orders")
        await gate.arrivals(1)
        nursery.cancel_scope.cancel()


async def test_closing_interrupts_a_read_that_was_left_behind(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = threading.Event()
    set_up = opening.set_up_reader

    def set_up_with_signal(connection: sqlite3.Connection) -> None:
        set_up(connection)
        connection.create_function("signal", 0, running.set)

    monkeypatch.setattr(opening, "set_up_reader", set_up_with_signal)
    async with open_store(url) as store:
        await store.append([MESSAGE])
        outside = sqlite3.connect(tmp_path / "log.db")
        outside.executescript(
            """
            ALTER TABLE subjects RENAME TO hidden;
            CREATE VIEW subjects AS
            WITH RECURSIVE endless (id, last_id, floor, name) AS
            (SELECT 1, 1, 0, signal() UNION ALL SELECT 1, 1, 0, 'x' FROM endless) SELECT * FROM endless
            """
        )
        outside.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.head, "orders")
            await trio.to_thread.run_sync(running.wait)
            nursery.cancel_scope.cancel()
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.db"]  # closed in order


async def test_a_page_is_one_snapshot(store: Store, url: str, gate: Gate) -> None:
    await store.append([MESSAGE])
    pages: list[Page] = []

    async def read() -> None:
        pages.append(await store.read("orders", 0, max_messages=10, max_bytes=10))

    gate.close()
    async with open_store(url) as other, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await gate.arrivals(1)  # between the subject and its messages
        await other.append([MESSAGE])
        gate.open()
    (page,) = pages
    assert len(page.records) == page.scanned_to == page.last_id == 1


async def test_closing_in_a_cancelled_scope_closes_all_the_same(url: str, tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_store(url) as store:
            await store.append([MESSAGE])
            scope.cancel()
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.db"]


async def test_closing_gives_up_on_a_stuck_thread_and_keeps_the_lock(
    url: str, tmp_path: Path, gate: Gate, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(url, exclusive=True, commit_timeout_s=5, clock=gate))
        await store.append([MESSAGE])
        await leave_a_read_behind(store, gate)
        closing = stack.pop_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing.aclose)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5)
    assert "store_close_abandoned" in caplog.text
    with pytest.raises(CannotOpen, match="another broker"):
        async with open_store(url, exclusive=True):
            pass  # pragma: no cover

    gate.open()
    await trio.to_thread.run_sync(wait_for_lock, tmp_path / "log.db.lock")  # the thread left behind gives it up
    async with open_store(url, exclusive=True) as again:
        page = await again.read("orders", 0, max_messages=1, max_bytes=1)
        assert [type(record) for record in page.records] == [Record]


def wait_for_lock(path: Path) -> None:
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


async def test_opening_that_is_cancelled_leaves_nothing_open(url: str, tmp_path: Path) -> None:
    async def open_and_stay() -> None:
        async with open_store(url, exclusive=True):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_and_stay)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    async with open_store(url, exclusive=True) as store:
        await store.append([MESSAGE])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.db", "log.db.lock"]


async def test_one_caller_after_another(store: Store) -> None:
    """Appends are taken in the order in which they were asked for."""
    order: list[int] = []

    async def publish(number: int) -> Awaitable[None] | None:
        await store.append([MESSAGE])
        order.append(number)
        return None

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(publish, number)
            await trio.testing.wait_all_tasks_blocked()
    assert order == list(range(10))
