"""What a process is doing right now, as text: trio's tasks with their stacks, and the threads with theirs.

Owns:      the tree of nurseries and tasks, its form, its bounds. Never variables: those hold bodies.
Not here:  when it is wanted (trio_broker/serve.py).
Threads:   the trio thread. It looks at every task at once: a stop of some ms per thousand tasks.

Tasks of one nursery that are at the same place are one entry, with their number: a thousand idle connections take no
more room than one.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from traceback import walk_stack
from types import FrameType

import trio

LINES_MAX = 400
"""How long the text may get; what it leaves out it counts."""
FRAMES_MAX = 40
"""The innermost frames of each stack that are shown."""
_INDENT = "  "

Frame = tuple[FrameType, int]
"""A frame and the line it is at."""
Lines = tuple[str, ...]


def describe_process() -> str:
    """Return all tasks and all threads, as text for people, of at most `LINES_MAX` lines and one."""
    lines = [*describe_tasks(), *describe_threads()]
    if len(lines) > LINES_MAX:
        lines[LINES_MAX:] = [f"... and {len(lines) - LINES_MAX} lines more"]
    return "\n".join(lines)


def describe_tasks() -> Lines:
    """Return the tree of trio's tasks: each with its stack, outermost call first, and below it its nurseries."""
    root = trio.lowlevel.current_root_task()
    assert root is not None, "called within trio.run"
    return _task(root)


def describe_threads() -> Iterator[str]:
    """Return every thread with its stack, outermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {names.get(ident, ident)}"
        yield from _indented(_stack(reversed(list(walk_stack(frame)))))


def _task(task: trio.lowlevel.Task) -> Lines:
    frames = ((frame, line) for frame, line in task.iter_await_frames() if not _is_plumbing(frame))
    stack = () if task is trio.lowlevel.current_task() else _stack(frames)  # a task that runs is in its thread's stack
    nurseries = (line for nursery in task.child_nurseries for line in _nursery(nursery))
    return (f"task {task.name}", *_indented(stack), *_indented(nurseries))


def _nursery(nursery: trio.Nursery) -> Iterator[str]:
    yield "nursery, cancelled" if nursery.cancel_scope.cancel_called else "nursery"
    for lines, count in Counter(_task(task) for task in nursery.child_tasks).items():
        first = lines[0] if count == 1 else f"{count} times {lines[0]}"
        yield from _indented((first, *lines[1:]))


def _stack(frames: Iterable[Frame]) -> Lines:
    lines = [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}" for frame, line in frames]
    left_out = len(lines) - FRAMES_MAX
    return tuple(lines) if left_out <= 0 else (f"... {left_out} frames", *lines[left_out:])


def _is_plumbing(frame: FrameType) -> bool:
    """Trio's own last steps of every wait, which say nothing."""
    return str(frame.f_globals.get("__name__")).startswith("trio._core.")


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (_INDENT + line for line in lines)
