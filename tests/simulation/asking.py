"""What one simulated broker asks another one: requests and answers that are late, or get lost.

The two ends are the production code: `Forwarding` or `Link`, and `ReplicasService`. What was sent may arrive long
after who asked has given up; what was answered may never be heard. The connection breaks then, or says nothing.
"""

from collections.abc import Callable
from typing import cast

import trio
from purerpc import Status

from trio_broker._proto import replicas_pb2 as pb
from trio_broker.client.wire import never_reached
from trio_broker.errors import BrokerError, ConnectionLost
from trio_broker.replicas.links import SETTLE_PATH
from trio_broker.replicas.service import ReplicasService
from trio_broker.rpc.call import Call

from .world import World

LATE_S = 8.0
"""Longer than anybody waits."""


class Fates:
    """How likely what is, for one request or answer."""

    def __init__(self, world: World) -> None:
        self.random = random = world.random("asking")
        self.unsent = random.choice([0.0, 0.0, 0.2])
        """It never leaves, and who asks knows."""
        self.lost = random.choice([0.0, 0.0, 0.1, 0.3])
        self.late = random.choice([0.0, 0.0, 0.1])
        self.silent = random.choice([0.0, 0.0, 0.3])
        """Of what is lost: the connection does not break."""

    def heal(self) -> None:
        self.unsent = self.lost = self.late = self.silent = 0.0

    def happens(self, rate: float) -> bool:
        return rate > 0.0 and self.random.random() < rate


class Question:
    """One request: the call of who asks, and that which the other broker answers."""

    message: pb.AppendRequest | pb.SettleRequest
    what: str

    def __init__(self, world: World, fates: Fates, reaches: Callable[[], bool]) -> None:
        """``reaches``: the other broker is up, and not parted from who asks."""
        self.connection = self
        self._world = world
        self._fates = fates
        self._reaches = reaches
        self._answer: bytes | None = None
        self._error: BrokerError | None = None
        self._told = trio.Event()
        self._answered = trio.Event()

    # as the call of who asks

    def leave(self, lost: str) -> None:
        """Be sent, on a connection that is ``lost``, or works if that is empty."""
        if lost or not self._reaches() or self._fates.happens(self._fates.unsent):
            self._world.count(f"{self.what}: never sent")
            raise never_reached(lost or "the connection takes no more calls")
        self._world.count(f"{self.what}: sent")

    async def receive_one(self) -> bytes:
        await self._told.wait()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def close(self) -> None:
        """Wait no more."""

    def lose(self, why: str) -> None:
        """The connection is gone."""
        if not self._told.is_set():
            self._error = ConnectionLost(why)
            self._told.set()

    # as the call that the other broker answers

    def reply(self, data: bytes) -> None:
        self._answer_later = data
        self._answered.set()

    def finish(self, status: Status) -> None:
        if not self._told.is_set():
            self._world.count(f"{self.what}: refused")
            self._error = BrokerError(status.status_message)
            self._error.reason = status.status_code.name
            self._told.set()

    async def serve(self, service: ReplicasService) -> None:
        """Be served by the other broker, which answers then or later. A checkpoint, perhaps."""
        raise NotImplementedError

    async def carry(self, service: ReplicasService | None, delay_s: float) -> None:
        """Carry the request, and the answer if there is one."""
        if await self._is_lost(delay_s, "request") or service is None:
            return
        with trio.move_on_after(4 * LATE_S):  # who crashes answers nothing
            await self.serve(service)
            await self._answered.wait()
            if not await self._is_lost(delay_s, "answer") and not self._told.is_set():
                self._answer = self._answer_later
                self._told.set()

    async def _is_lost(self, delay_s: float, what: str) -> bool:
        fates, random = self._fates, self._fates.random
        if is_late := fates.happens(fates.late):
            self._world.count(f"{self.what}: {what} late")
            delay_s = LATE_S
        await trio.sleep(random.random() * delay_s)
        is_over = is_late and not fates.late  # all has healed meanwhile: nothing old comes any more
        if self._reaches() and not is_over and not fates.happens(fates.lost):
            return False
        self._world.count(f"{self.what}: {what} lost")
        if not fates.happens(fates.silent):
            self.lose(f"the {what} was lost")
        return True


class Appending(Question):
    """A request to append."""

    message: pb.AppendRequest
    what = "append"

    async def serve(self, service: ReplicasService) -> None:
        service.Append([cast("Call", self)])

    def close(self) -> None:
        """Wait no more. Where no answer was heard only a key can tell what became of a message."""
        if self._answer is None and not (self._error is not None and self._error.reason == "PERMISSION_DENIED"):
            self._world.count("append: no answer")
            for each in self.message.messages:
                (self._world.unanswered if each.idempotency_key else self._world.doubtful).add(each.body)


class Settling(Question):
    """A question whether all is acknowledged."""

    message: pb.SettleRequest
    what = "settle"

    async def serve(self, service: ReplicasService) -> None:
        await service.Settle([cast("Call", self)])


def question(path: str, request: bytes, world: World, fates: Fates, reaches: Callable[[], bool]) -> Question:
    """Make what is asked by calling ``path``."""
    made: Question
    if path == SETTLE_PATH:
        made = Settling(world, fates, reaches)
        made.message = pb.SettleRequest.FromString(request)
    else:
        made = Appending(world, fates, reaches)
        made.message = pb.AppendRequest.FromString(request)
    return made
