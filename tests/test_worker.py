"""A thread of its own for what is done one at a time: order, cancellation, letting go, the end."""

import threading

import pytest
import trio
import trio.testing

from persistence.threads import Worker


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
