"""A thread of its own for what is done one at a time: order, cancellation, letting go, the end."""

import threading

import pytest
import trio
import trio.testing

from persistence import PoolUse
from persistence.threads import Tokens, Worker, read


class Stand:
    """Something to be done that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._go_on = threading.Event()

    def __call__(self) -> str:
        self._token.run_sync_soon(self.begun.set)
        assert self._go_on.wait(30)
        return "done"

    def go_on(self) -> None:
        self._go_on.set()


@pytest.fixture
async def worker() -> Worker:
    return Worker("test")


async def end(worker: Worker) -> None:
    await worker.close(lambda: None)


async def test_what_is_run_returns_and_raises_and_goes_on(worker: Worker) -> None:
    assert await worker.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)
    names = {await worker.run(lambda: threading.current_thread().name) for _ in range(3)}
    assert names == {"test"}
    await end(worker)


async def test_who_waits_has_its_turn_in_order_and_may_leave_before_it(worker: Worker) -> None:
    stand = Stand()
    order: list[int] = []
    leaving = trio.CancelScope()

    async def wait(number: int, scope: trio.CancelScope) -> None:
        with scope:
            await worker.run(order.append, number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, stand)
        await stand.begun.wait()
        for number in range(4):
            nursery.start_soon(wait, number, leaving if number == 1 else trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
        leaving.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert leaving.cancelled_caught
        stand.go_on()
    assert order == [0, 2, 3]
    await end(worker)


async def test_what_has_begun_ends_although_its_caller_was_cancelled(worker: Worker) -> None:
    stand = Stand()
    heard: list[str] = []

    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            heard.append(await worker.run(stand))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await stand.begun.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        stand.go_on()
    assert heard == ["done"]
    await end(worker)


async def test_giving_up_lets_everybody_go_and_leaves_the_thread(worker: Worker) -> None:
    stand = Stand()
    told: list[str] = []

    async def run() -> None:
        try:
            await worker.run(stand)
        except ValueError as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await stand.begun.wait()
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        worker.give_up(ValueError("begun"), ValueError("waiting"))
    assert sorted(told) == ["begun", "waiting"]
    with pytest.raises(ValueError, match="waiting"):
        await worker.run(stand)
    stand.go_on()
    await end(worker)  # the thread was left with what it did, and goes on


async def test_closing_waits_for_what_has_begun_or_leaves_it_behind(worker: Worker) -> None:
    stand = Stand()
    closed = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, stand)
        await stand.begun.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await worker.close(closed.set)
        assert scope.cancelled_caught
        assert not closed.is_set()
        stand.go_on()
    assert await trio.to_thread.run_sync(closed.wait, 30)


async def test_how_busy_it_is_and_how_long_was_waited(worker: Worker) -> None:
    stand = Stand()
    assert worker.use("write") == PoolUse("write", size=1, in_use=0, waiting=0, turns=0, waited_s=0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, stand)
        await stand.begun.wait()
        nursery.start_soon(worker.run, int)
        await trio.testing.wait_all_tasks_blocked()
        assert worker.use("write") == PoolUse("write", size=1, in_use=1, waiting=1, turns=1, waited_s=0.0)
        stand.go_on()
    _, _, in_use, waiting, turns, waited_s = worker.use("write")
    assert (in_use, waiting, turns) == (0, 0, 2)
    assert waited_s > 0
    await end(worker)


async def test_how_busy_readers_are_and_how_long_was_waited_for_one() -> None:
    tokens = Tokens(1)
    stand = Stand()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, tokens, stand)
        await stand.begun.wait()
        nursery.start_soon(read, tokens, int)
        await trio.testing.wait_all_tasks_blocked()
        before = tokens.use("read")
        assert before[:5] == ("read", 1, 1, 1, 1)
        stand.go_on()
    after = tokens.use("read")
    assert after[:5] == ("read", 1, 0, 0, 2)
    assert after.waited_s > before.waited_s


async def test_a_reader_that_was_left_behind_is_in_use_until_it_ends() -> None:
    tokens = Tokens(1)
    stand = Stand()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, tokens, stand)
        await stand.begun.wait()
        nursery.cancel_scope.cancel()
    assert tokens.use("read").in_use == 1
    stand.go_on()
    assert await read(tokens, int) == 0
    assert tokens.use("read").in_use == 0
