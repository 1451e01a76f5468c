"""The broker's view of its store: its errors in our words, whether it is there, and its upkeep.

Owns:      `broker_error`, `Availability`, `StoreClock`, and the tasks that probe the store and sweep it.
Not here:  appends (trio_broker/commit.py) and reads (trio_broker/broker.py), which report here how they went;
           hearing of what others append (trio_broker/hearing.py).
Threads:   the trio thread only.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio

import persistence
from persistence import Store, StoreError
from trio_broker.errors import BrokerError, OutcomeUnknown, Rejected, StorageFull, StorageUnavailable

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 2.0
"""A store that has not told its time for so long counts as away."""
SWEEP_PAUSE_S = 0.005
"""Between two steps of sweeping, so that appends get their turn."""

log = structlog.get_logger()


class NotAnswered(persistence.OutcomeUnknown):
    """Another broker was asked to append, and has not answered. It says nothing about the store."""


def broker_error(error: Exception) -> BrokerError:
    """Say in the broker's words why the store did not do what it was asked.

    The store's own text is for the operator's log, except where it says what is wrong with a message.
    """
    match error:
        case persistence.StoreUnavailable():
            return StorageUnavailable("the store is not available; nothing was appended")
        case persistence.StoreFull():
            return StorageFull("the store has no space left; nothing was appended")
        case persistence.BadContent():
            return Rejected(f"the store refuses this message: {error}")
        case NotAnswered():
            return OutcomeUnknown(
                "another broker was asked to append, and is gone; the message may or may not be appended"
            )
        case persistence.OutcomeUnknown():
            return OutcomeUnknown("the store was lost while it committed; the message may or may not be appended")
        case _:
            return OutcomeUnknown("the store failed unexpectedly; the message may or may not be appended")


class Availability:
    """Whether the store is there, and whether it is full, from what appends, reads and the probe found."""

    def __init__(self) -> None:
        self._away_since = math.inf
        self._doubted = False
        self._trying = 0
        self._full = False

    @property
    def away(self) -> bool:
        return self._away_since < math.inf

    def away_s(self) -> float:
        """How long the store has been away; 0.0 when it is there."""
        return max(0.0, trio.current_time() - self._away_since)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Note that an append is under way for the length of the block."""
        self._trying += 1
        try:
            yield
        finally:
            self._trying -= 1

    def appended(self) -> None:
        """Note that the store took a flush."""
        self._found()
        if self._full:
            self._full = False
            log.info("store_has_space")

    def answered(self) -> None:
        """Note that the store answered the probe.

        That alone does not bring back a store that failed since the probe before, nor one while an append is under
        way: a store that answers reads may still refuse that one, as slowly as it likes. So one that refuses appends
        is away until it takes one, or until two probes in a row find nobody trying.
        """
        if self._trying:
            return
        if self._doubted:
            self._doubted = False
        else:
            self._found()

    def failed(self, error: Exception) -> None:
        """Note how the store failed. Only being out of reach makes it away; a full one is there."""
        match error:
            case NotAnswered():
                pass
            case persistence.StoreUnavailable() | persistence.OutcomeUnknown():
                self.lost(str(error))
            case persistence.StoreFull():
                self._found()
                if not self._full:
                    self._full = True
                    log.warning("store_full", why=str(error))

    def lost(self, why: str) -> None:
        self._doubted = True
        if not self.away:
            self._away_since = trio.current_time()
            log.warning("store_away", why=why)

    def _found(self) -> None:
        self._doubted = False
        if self.away:
            log.info("store_back", away_s=round(self.away_s(), 3))
            self._away_since = math.inf


class StoreClock:
    """How late it may be by the store's clock, without asking the store.

    Not later than it was when the store last told its time, plus all that has passed since it was asked. Only a clock
    that is set forward may be ahead of that: until the next probe (`PROBE_INTERVAL_S`), or the next message.
    """

    def __init__(self) -> None:
        self._told_us = 0
        self._asked_at: float | None = None

    def told(self, now_us: int, asked_at: float) -> None:
        """Note what the store answered who asked at ``asked_at``, by `trio.current_time`."""
        self._told_us, self._asked_at = now_us, asked_at

    def appended(self, time_us: int) -> None:
        """Note when a message was appended."""
        if self._asked_at is not None and time_us > self.latest_us():
            self.told(time_us, trio.current_time())

    def latest_us(self) -> int:
        """Return the latest time that it may be; before the store told any it may be any time."""
        if self._asked_at is None:
            return sys.maxsize
        return self._told_us + math.ceil((trio.current_time() - self._asked_at) * 1_000_000)


async def keep_probing(store: Store, availability: Availability, clock: StoreClock) -> None:
    """Ask the store for its time, again and again, until cancelled."""
    while True:
        await _probe(store, availability, clock)
        await trio.sleep(PROBE_INTERVAL_S)


async def keep_sweeping(store: Store, availability: Availability, interval_s: float) -> None:
    """Let the store drop what has expired: steps while there is more, then a pause, until cancelled."""
    while True:
        more = False
        try:
            more = (await store.sweep()).more
        except StoreError as error:
            if not availability.away:  # whether it is, the probe and appends find out; a lock alone keeps a sweep too
                log.warning("sweep_failed", why=str(error))
        except Exception:
            log.exception("sweep_failed")  # a bug in the store must not stop the broker
        await trio.sleep(SWEEP_PAUSE_S if more else interval_s)


async def _probe(store: Store, availability: Availability, clock: StoreClock) -> None:
    asked_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        # beside the question, not around it: a store stuck in a thread hears of no cancellation, and is away
        nursery.start_soon(_lose_patience, availability, nursery.cancel_scope)
        try:
            clock.told(await store.now(), asked_at)
        except persistence.StoreUnavailable as error:
            availability.failed(error)
        except Exception:
            log.exception("probe_failed")  # a bug in the store must not stop the broker
        else:
            availability.answered()
        nursery.cancel_scope.cancel()


async def _lose_patience(availability: Availability, question: trio.CancelScope) -> None:
    await trio.sleep(PROBE_TIMEOUT_S)
    availability.lost(f"no answer within {PROBE_TIMEOUT_S} s")
    question.cancel()
