"""Bring live batches of a subject that come from several brokers into the order of their ids.

Owns:      how far each subject was offered; batches that came before their turn, for as long as they are worth a wait.
Not here:  where batches come from (trio_broker/fanout.py, trio_broker/replicas/), what subscribers do with a hole
           (trio_broker/position.py).
Threads:   none: plain data, no I/O; whoever calls says what time it is.

Two brokers may append to a subject within the same millisecond, and hear of each other's batch in the wrong order. A
batch with a hole before it waits for `PATIENCE_S`; after that it is passed on all the same, and those who miss
something read it from the log. So nothing depends on the wait but how often the log is read.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trio_broker.batch import Batch

PATIENCE_S = 0.01
"""What another broker has appended arrives within this, nearly always."""
HELD_MAX = 64
"""Batches of a subject that wait for their turn; with one more the hole is given up."""

Lifetimes = Sequence[int | None]
"""For each message of a batch: see `NewMessage.expiration_s`."""


class _Held(NamedTuple):
    """A batch that waits."""

    batch: Batch
    lifetimes: Lifetimes
    until: float


class Merge:
    """The live streams of all subjects that somebody here is interested in."""

    def __init__(self, offer: Callable[[Batch, Lifetimes], None]) -> None:
        """``offer`` gets every batch once; of a subject in the order of ids, also where there are holes."""
        self.holes_given_up = 0
        """How often batches were passed on though something before them had not come."""
        self._offer = offer
        self._offered: dict[str, int] = {}
        self._held: dict[str, list[_Held]] = {}  # in the order in which they came

    @property
    def due(self) -> float | None:
        """When `give_up` has something to do; None: never. It looks at every hole there is."""
        return min((held[0].until for held in self._held.values()), default=None)

    def begin(self, subject: str, last_id: int) -> None:
        """Expect of a subject what follows ``last_id``, unless it is known already."""
        self._offered.setdefault(subject, last_id)

    def offered_id(self, subject: str) -> int:
        """Return up to which id a subject was offered; 0: nothing is known of it."""
        return self._offered.get(subject, 0)

    def arrive(self, batch: Batch, lifetimes: Lifetimes, now: float) -> None:
        """Offer a batch, if its turn has come, and what waited for it."""
        subject = batch.subject
        offered_id = self._offered.get(subject)
        if offered_id is None or batch.after_id == offered_id:
            self._pass_on(batch, lifetimes)
        elif batch.last_id <= offered_id:
            return  # both the broker that appended it and the one that asked for it have told
        elif batch.after_id < offered_id:
            self._pass_on_rest(batch, lifetimes)
        else:
            held = self._held.setdefault(subject, [])
            held.append(_Held(batch, lifetimes, now + PATIENCE_S))
            if len(held) > HELD_MAX:
                self.holes_given_up += 1
                self._release(subject, over_id=min(map(_after_id, held)))
            return
        if subject in self._held:
            self._release(subject)

    def skip(self, subject: str, last_id: int) -> None:
        """Wait for nothing up to an id any more: the log is read for that."""
        if last_id > self._offered.get(subject, 0):
            self._offered[subject] = last_id
            if subject in self._held:
                self._release(subject)

    def give_up(self, now: float) -> None:
        """Pass on what has waited long enough."""
        for subject, held in tuple(self._held.items()):
            over_ids = [each.batch.after_id for each in held if each.until <= now]
            if over_ids and subject in self._held:  # what was passed on of one may end the interest in others
                self.holes_given_up += 1
                self._release(subject, over_id=max(over_ids))

    def forget(self, subject: str) -> None:
        """Nobody is interested in a subject any more."""
        self._offered.pop(subject, None)
        self._held.pop(subject, None)

    def _release(self, subject: str, *, over_id: int = 0) -> None:
        """Pass on what continues what was offered; over holes too, before what begins after ``over_id`` at most."""
        held = self._held[subject]
        for each in sorted(held, key=_after_id):
            if each.batch.after_id > max(self._offered[subject], over_id):
                return
            held.remove(each)
            if not held:
                del self._held[subject]
            if each.batch.last_id > self._offered[subject]:
                self._pass_on_rest(each.batch, each.lifetimes)
            if self._held.get(subject) is not held:
                return  # nothing waits any more, or the last who was interested has left with this one

    def _pass_on_rest(self, batch: Batch, lifetimes: Lifetimes) -> None:
        rest = batch.part(self._offered[batch.subject], batch.last_id)
        if rest is not None:
            self._pass_on(rest, lifetimes[len(lifetimes) - len(rest.messages) :])

    def _pass_on(self, batch: Batch, lifetimes: Lifetimes) -> None:
        self._offered[batch.subject] = batch.last_id
        self._offer(batch, lifetimes)


def _after_id(held: _Held) -> int:
    return held.batch.after_id
