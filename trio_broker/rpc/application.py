"""What stands around a call: who is told of it, where its messages come from and go, what is done for it in a thread.

Owns:      the interfaces `Application`, `Source`, `Feed` and `Job`.
Not here:  the call (call.py), who is all that (transport.py, handlers.py, inflow.py, outflow.py, and services).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from trio_broker.rpc.identity import Identity
from trio_broker.rpc.status import Refusals

if TYPE_CHECKING:
    from trio_broker.rpc.aside import Threads
    from trio_broker.rpc.call import Call


class Job(Protocol):
    """Work that would take too long in the trio thread: compressing and inflating what is large."""

    def begin(self) -> Callable[[], Any] | None:
        """Return what a thread is to do; it must not raise, and is never interrupted. None: nothing any more."""

    def done(self, result: Any) -> None:  # noqa: ANN401 - what the thread returned
        """Take the result; not called if the connection has ended meanwhile."""


class Source(Protocol):
    """Where a drained stream's messages come from. See `trio_broker.rpc.handlers.drained`."""

    def take(self, call: Call, credit: int) -> bytes:
        """Return framed messages, about ``credit`` bytes; empty when there is nothing now. Never waits.

        After the last one it calls `Call.finish`, and returns nothing: a rest goes to `Call.send` before.
        """

    def retire(self) -> None:
        """The connection is to go: say all that is owed, then end the call, so that the client goes on elsewhere."""

    def close(self) -> None:
        """The call is over. Called exactly once."""


class Feed(Source, Protocol):
    """Where a fed stream's messages go, and its answers come from. See `trio_broker.rpc.handlers.fed`.

    It takes messages from `Call.inbox` by `Call.take_message` and gives their credit back by `Call.take`.
    """

    def feed(self) -> None:
        """There is more in the inbox, or the request has ended. Called once for each read that brought some."""


class Application(Protocol):
    """What stands above the calls: see server.py."""

    refusals: Refusals
    peer: str
    """Who calls, for logs."""
    connection_id: str
    """A name that no other connection has, for those of its calls that the client gave none."""
    at_once_bytes: int
    """What may still be inflated for this read without leaving the trio thread."""

    @property
    def identity(self) -> Identity | None:
        """Who calls, by a certificate; None: nobody has asked for one, or the connection is not encrypted."""

    def opened(self, call: Call) -> None:
        """A call began; its request may still be on the way."""

    def ready(self, call: Call) -> None:
        """The one message of a call that sends one is there (`Call.message`)."""

    def began(self, call: Call) -> None:
        """The first message of a response that streams is on its way."""

    def received(self, call: Call) -> None:
        """A call that streams has more in its `Call.inbox`, or its request ended."""

    def over(self, call: Call) -> None:
        """The call ended; called exactly once for each that was opened."""

    def expire(self, call: Call) -> None:
        """The call's deadline has passed."""

    def hurry(self, call: Call, seconds: float) -> None:
        """Give the call this much time at most."""

    @property
    def threads(self) -> Threads:
        """What all connections compress with."""

    def aside(self, job: Job) -> None:
        """Run a job when its turn has come: one after the other for each connection."""
