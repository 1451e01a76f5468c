"""Keep the messages of a subject in order when it begins to be left to another broker, or no longer is.

Owns:      what was queued or in flight when that changed, and who has to wait for it.
Not here:  the lanes (trio_broker/commit.py), which broker a subject is left to (trio_broker/replicas/forwarding.py).
Threads:   the trio thread only.

A subject is then in another lane: those that are appended here, or the one of what is left to others. The latter waits
for what the former had, which never depends on another broker. The other way round nobody may wait: two brokers could
wait for each other. So there a subject stays in its lane for as long as some of it is there.
"""

from collections import deque
from collections.abc import Iterable

import trio

from trio_broker.runs import Pending


class LaneChange:
    """Of one committer."""

    def __init__(self) -> None:
        self._own: deque[Pending] = deque()
        self._left: dict[str, deque[Pending]] = {}
        self._own_moved = trio.lowlevel.ParkingLot()

    def begin(self, own: Iterable[Pending], left: Iterable[Pending]) -> None:
        """Note what both have, before anything goes where it belongs from now on."""
        self._own = deque(own)
        self._left.clear()
        for run in left:
            for subject in {message.subject for message in run.messages}:
                self._left.setdefault(subject, deque()).append(run)

    def stays_left(self, subject: str) -> bool:
        """Say whether some of a subject is still in the lane of what is left to others, since before the change."""
        runs = self._left.get(subject)
        if runs is None:
            return False
        while runs and runs[0].outcomes is not None:
            runs.popleft()
        if not runs:
            del self._left[subject]
        return bool(runs)

    def entered_left(self, run: Pending) -> None:
        """Note a run that was queued there."""
        if self._left:
            for subject in {message.subject for message in run.messages}:
                if subject in self._left:
                    self._left[subject].append(run)

    async def own_passed(self) -> None:
        """Wait until what was to be appended here before the change has its outcome. A checkpoint only then."""
        while self._own:
            if self._own[0].outcomes is not None:
                self._own.popleft()
            else:
                await self._own_moved.park()

    def own_moved(self) -> None:
        """Something of that may have its outcome now."""
        if self._own:
            self._own_moved.unpark_all()
