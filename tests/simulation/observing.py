"""Count what happens inside the broker, so that a test can say that the simulation gets there. It changes nothing."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import trio

from trio_broker import commit
from trio_broker.broker import Broker
from trio_broker.lane import Lane
from trio_broker.position import Piece, Position
from trio_broker.runs import Pending
from trio_broker.settling import Settling
from trio_broker.storage import Availability
from trio_broker.subscription import Subscription

from .world import Opened, World


@contextmanager
def replaced(
    owner: type | ModuleType, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Generator[None]:
    """Replace a method, or a function, by what ``wrap`` makes of it, for the length of the block."""
    original = owner.__dict__[name]
    setattr(owner, name, wraps(original)(wrap(original)))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def set_to(owner: ModuleType, **values: object) -> Generator[None]:
    """Give constants of a module other values for the length of the block."""
    originals = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(owner, name, value)


@contextmanager
def observed(world: World) -> Generator[None]:
    """Count for the length of the block."""

    def read(original: Callable[..., Piece]) -> Callable[..., Piece]:
        def counting(self: Position, *args: object) -> Piece:
            piece = original(self, *args)
            world.count("collected batches joined", len(piece.joined))
            world.count(f"after a page: {self.state.name}")
            return piece

        return counting

    def begin_read(original: Callable[[Position], int]) -> Callable[[Position], int]:
        def counting(self: Position) -> int:
            after_id = original(self)
            world.count(f"before a page: {self.state.name}")
            return after_id

        return counting

    def called(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def counting(self: object, *args: object, **options: object) -> object:
                world.count(what)
                return original(self, *args, **options)

            return counting

        return wrap

    def complete_open(original: Callable[[list[Pending], str], None]) -> Callable[[list[Pending], str], None]:
        def noting(part: list[Pending], why: str) -> None:
            world.given_up.update(message.body for run in part for message in run.messages)
            original(part, why)

        return noting

    with _opening_observed(world), ExitStack() as stack:
        stack.enter_context(replaced(commit, "_complete_open", complete_open))
        for owner, name, wrap in (
            (Position, "read", read),
            (Position, "begin_read", begin_read),
            (Position, "leave", called("left the live stream")),
            (Position, "rewind", called("rewound")),
            (Subscription, "cut", called("cut for memory")),
            (Subscription, "_drop_oldest", called("oldest dropped")),
            (Lane, "split", called("flush split")),
            (Pending, "rest", called("part of a run tried again")),
            (Availability, "lost", called("store away")),
        ):
            stack.enter_context(replaced(owner, name, wrap))
        yield


@contextmanager
def _opening_observed(world: World) -> Generator[None]:
    """Note when subscriptions are registered, and how long they wait then."""

    def open_subscription(original: Callable[..., Subscription]) -> Callable[..., Subscription]:
        def noting(broker: Broker, subject: str, *args: object, **options: object) -> Subscription:
            subscription = original(broker, subject, *args, **options)
            offered_id = broker.fanout.offered_id(subject)
            who = trio.lowlevel.current_task().name
            number = world.note(who, "is registered", subject, offered_id)
            world.opened[who] = Opened(number, offered_id, world.places.get(broker, ""))
            return subscription

        return noting

    def wait(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def timing(*args: object) -> None:
            began = trio.current_time()
            await original(*args)
            world.opened[trio.lowlevel.current_task().name].waited_s = trio.current_time() - began

        return timing

    with replaced(Broker, "open_subscription", open_subscription), replaced(Settling, "wait", wait):
        yield
