"""What a process says of its tasks and threads: who waits where, without a word of what they hold."""

import threading

import pytest
import trio

from trio_broker import tasktree
from trio_broker.tasktree import describe_process, describe_tasks


async def wait_for(event: trio.Event, secret: str) -> None:
    await event.wait()


async def wait_deeply(event: trio.Event, depth: int) -> None:
    if depth:
        await wait_deeply(event, depth - 1)
    else:
        await event.wait()


def below(lines: tuple[str, ...], name: str) -> list[str]:
    """The entries below the one that ends with ``name``, relative to it."""
    start = next(index for index, line in enumerate(lines) if line.endswith(name))
    depth = len(lines[start]) - len(lines[start].lstrip())
    found = []
    for line in lines[start + 1 :]:
        if len(line) - len(line.lstrip()) <= depth:
            break
        found.append(line[depth + 2 :])
    return found


async def test_a_task_is_told_with_its_stack_and_its_nurseries() -> None:
    async def parent() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for, event, "hidden", name="child")
            await event.wait()

    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent, name="parent")
        await trio.testing.wait_all_tasks_blocked()
        entries = below(describe_tasks(), "task parent")
        event.set()
    stack, inner = entries[:2], entries[2:]
    assert [line.split()[-1].rpartition(".")[2] for line in stack] == ["parent", "wait"]
    assert [line for line in inner if ":" not in line] == ["nursery", "  task child"]
    assert inner[2].startswith(f"    {__file__}:")
    assert inner[2].endswith(" wait_for")


async def test_tasks_at_the_same_place_are_one_entry() -> None:
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(wait_for, event, f"hidden {number}", name="same")
        nursery.start_soon(wait_for, event, "hidden", name="other")
        await trio.testing.wait_all_tasks_blocked()
        lines = describe_tasks()
        event.set()
    assert [line.strip() for line in lines if line.endswith(("same", "other"))] == [
        "1000 times task same",
        "task other",
    ]


async def test_a_cancelled_nursery_says_so() -> None:
    async def hold_out() -> None:
        with trio.CancelScope(shield=True):
            await event.wait()

    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_out)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        assert any(line.strip() == "nursery, cancelled" for line in describe_tasks())
        event.set()


async def test_threads_are_told_too_and_no_variable_is() -> None:
    def work(secret: str) -> None:
        begun.set()
        finish.wait()

    begun, finish = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=("a secret of a thread",), name="worker-7")
    thread.start()
    begun.wait()
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, event, "a secret of a task")
        await trio.testing.wait_all_tasks_blocked()
        text = describe_process()
        event.set()
    finish.set()
    thread.join()
    assert "thread worker-7\n" in text
    assert " test_threads_are_told_too_and_no_variable_is.<locals>.work\n" in text
    assert "thread MainThread\n" in text
    assert "a secret" not in text


async def test_a_deep_stack_shows_its_end() -> None:
    event = trio.Event()
    depth = 3 * tasktree.FRAMES_MAX
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_deeply, event, depth, name="deep")
        await trio.testing.wait_all_tasks_blocked()
        entries = below(describe_tasks(), "task deep")
        event.set()
    assert entries[0] == f"... {depth + 2 - tasktree.FRAMES_MAX} frames"
    assert len(entries) == 1 + tasktree.FRAMES_MAX
    assert entries[-1].endswith(" Event.wait")


async def test_the_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = describe_process().splitlines()
    monkeypatch.setattr(tasktree, "LINES_MAX", 5)
    short = describe_process().splitlines()
    assert short[:4] == lines[:4]
    assert len(short) == 6
    assert short[5].startswith("... and ")
