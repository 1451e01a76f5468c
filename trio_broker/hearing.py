"""Hear of what other brokers append to the same log.

Owns:      what the store's wake-ups say, asking the store every so often, and how long what another broker streams may
           take before the log is read instead.
Not here:  those streams (trio_broker/replicas/), the order of batches (trio_broker/merge.py), reading the log
           (trio_broker/replay.py).
Threads:   the trio thread only.

Nothing here is needed twice: a batch that another broker streams is delivered without a look at the store. Wake-ups
and polling find what did not come that way. Both say how far the log of a subject goes; if that much has not been
offered within `PATIENCE_S`, subscribers read it.
"""

from collections.abc import Callable, Iterable, Mapping

import structlog
import trio

from persistence import Store, StoreError, Wakeups
from trio_broker.fanout import POLL, WAKEUP, Fanout
from trio_broker.merge import PATIENCE_S
from trio_broker.storage import Availability

RARELY = 10
"""While wake-ups are heard the store is asked so many times less."""
SETTLE_S = 0.25
"""After so long every other broker knows that somebody here listens to a subject: what was appended before is found by
asking the store once more."""

log = structlog.get_logger()


class Hearing:
    """What this broker learns of appends that are not its own."""

    def __init__(
        self,
        store: Store,
        fanout: Fanout,
        availability: Availability,
        poll_interval_s: float,
        is_committing: Callable[[str], bool],
    ) -> None:
        """``poll_interval_s``: how often the store is asked while wake-ups are not heard.

        ``is_committing`` says whether this broker has a commit of a subject under way.
        """
        self.hints = 0
        """How often a wake-up was heard."""
        self.is_linked: Callable[[], bool] = _never
        """Says whether every other broker streams its commits to this one."""
        self._store = store
        self._fanout = fanout
        self._availability = availability
        self._poll_interval_s = poll_interval_s
        self._is_committing = is_committing
        self._wakeups: Wakeups | None = None
        self._suspected: dict[str, tuple[int, str]] = {}  # last ids that the store has told, and how it came to
        self._hinted: dict[str, int] = {}  # with the last ids that hints say; 0: they do not
        self._fresh: dict[str, None] = {}  # somebody began to listen to these. (A dict for a set with an order.)
        self._something_hinted = trio.lowlevel.ParkingLot()
        self._something_suspected = trio.lowlevel.ParkingLot()
        self._something_fresh = trio.lowlevel.ParkingLot()
        self._ask_now = trio.Event()
        fanout.on_interest.append(self._on_interest)

    @property
    def connected(self) -> bool | None:
        """False while the store's wake-ups are down; None where there is nothing to be heard of."""
        return None if self._wakeups is None else self._wakeups.connected

    async def run(self) -> None:
        """Listen and ask until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._follow_hints)
            nursery.start_soon(self._keep_asking)
            nursery.start_soon(self._look_at_fresh_ones)
            nursery.start_soon(self._pursue)
            nursery.start_soon(self._give_up_holes)

    async def _listen(self) -> None:
        async with self._store.wakeups(self._fanout.interesting) as self._wakeups:
            async for changed in self._wakeups:
                self.hints += 1
                if not changed:
                    self._ask_now.set()
                else:
                    self.hint(changed)

    def hint(self, changed: Mapping[str, int]) -> None:
        """Hear that these subjects go up to these ids, or so somebody says: the store is asked. 0: it is not said."""
        if new := [subject for subject, last_id in changed.items() if self._is_news(subject, last_id)]:
            self._hinted.update((subject, changed[subject]) for subject in new)
            self._something_hinted.unpark_all()

    def _is_news(self, subject: str, last_id: int) -> bool:
        """Say whether a hint says more than is known; 0: it does not say how far the subject goes."""
        return self._fanout.is_interesting(subject) and not 0 < last_id <= self._fanout.offered_id(subject)

    async def _follow_hints(self) -> None:
        """Ask the store about what was hinted at and has not come in time: anybody can hint at anything."""
        while True:
            while not self._hinted:
                await self._something_hinted.park()
            hinted, self._hinted = self._hinted, {}
            await self._be_patient()
            await self._ask([each for each, last_id in hinted.items() if self._is_news(each, last_id)], WAKEUP)

    async def _keep_asking(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s()):
                await self._ask_now.wait()
            self._ask_now = trio.Event()
            await self._ask(self._fanout.interesting())

    def _interval_s(self) -> float:
        return self._poll_interval_s * (RARELY if self.connected else 1)

    async def _look_at_fresh_ones(self) -> None:
        while True:
            while not self._fresh:
                await self._something_fresh.park()
            fresh, self._fresh = self._fresh, {}
            await trio.sleep(SETTLE_S)
            await self._ask([subject for subject in fresh if self._fanout.is_interesting(subject)])

    async def _ask(self, subjects: Iterable[str], path: str = POLL) -> None:
        """Ask the store how far these go, and look at what has not come, in a moment. A checkpoint."""
        subjects = list(subjects)
        if not subjects:
            return
        try:
            self._suspect(await self._store.heads(subjects), path)
        except StoreError as error:
            self._availability.failed(error)
        except Exception:
            log.exception("poll_failed")  # a bug in the store must not stop the broker

    def _suspect(self, heads: Mapping[str, int], path: str) -> None:
        for subject, last_id in heads.items():
            if last_id > max(self._fanout.offered_id(subject), self._suspected.get(subject, (0, ""))[0]):
                self._suspected[subject] = last_id, path
        if self._suspected:
            self._something_suspected.unpark_all()

    async def _pursue(self) -> None:
        """Let subscribers read what has not come in time.

        What this broker itself has committed comes with the store's answer, also what the log does not keep: until
        then nobody reads beyond it.
        """
        while True:
            while not self._suspected:
                await self._something_suspected.park()
            suspected, self._suspected = self._suspected, {}
            await self._be_patient()
            for subject, (last_id, path) in suspected.items():
                if not self._fanout.is_interesting(subject):
                    continue
                if self._is_committing(subject):
                    self._suspected.setdefault(subject, (last_id, path))
                else:
                    self._fanout.hear(subject, last_id, path)
            if self._suspected:
                await trio.sleep(PATIENCE_S)

    async def _be_patient(self) -> None:
        """Leave what other brokers stream its time to come. A checkpoint."""
        if self.is_linked():
            await trio.sleep(PATIENCE_S)
        else:
            await trio.lowlevel.checkpoint()

    async def _give_up_holes(self) -> None:
        """Pass on batches whose turn has not come in time."""
        merge = self._fanout.merge
        assert merge is not None
        while True:
            while merge.due is None:
                await self._fanout.holes.park()
            await trio.sleep_until(merge.due)
            merge.give_up(trio.current_time())

    def _on_interest(self, subject: str) -> None:
        if self._fanout.is_interesting(subject):
            self._fresh[subject] = None
            self._something_fresh.unpark_all()


def _never() -> bool:
    """Stand in where there are no other brokers."""
    return False
