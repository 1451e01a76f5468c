"""Read the log for subscriptions that are behind.

Owns:      the queue of those that want a page, and the few tasks that read pages for all of them, in turns.
Not here:  when one wants a page, and what becomes of it (trio_broker/subscription.py, trio_broker/position.py).
Threads:   the trio thread only.

A subscription asks for its next page when it has given the one before to its reader: how fast a client reads is how
fast its log is read. No task exists for a subscription, however long it lives.
"""

from collections import deque

import structlog
import trio

from persistence import Store, StoreError
from trio_broker.config import Config
from trio_broker.storage import Availability
from trio_broker.subscription import Subscription

READERS = 4
"""Pages that are read at once."""
PAGE_MESSAGES = 2048
PAGE_BYTES = 512 * 1024
"""What a page holds at most, or one message; no more than what may wait for one subscriber, live and collected."""
RETRY_S = 0.5
"""A reader rests so long when the store did not answer."""

log = structlog.get_logger()


class Replay:
    """The subscriptions that wait for a page. `run` does the work."""

    def __init__(self, store: Store, config: Config, availability: Availability) -> None:
        """``availability`` hears of a store that cannot be read."""
        self._store = store
        self._availability = availability
        self._max_messages = min(PAGE_MESSAGES, 2 * config.subscriber_messages)
        self._max_bytes = min(PAGE_BYTES, int(config.subscriber_bytes))
        self._waiting: deque[Subscription] = deque()
        self._something_waits = trio.lowlevel.ParkingLot()

    def want_page(self, subscription: Subscription) -> None:
        """Give it a page when its turn comes. It asks once."""
        self._waiting.append(subscription)
        self._something_waits.unpark()

    async def run(self) -> None:
        """Read pages until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(self._keep_reading)

    async def _keep_reading(self) -> None:
        while True:
            while not self._waiting:
                await self._something_waits.park()
            subscription = self._waiting.popleft()
            if subscription.live:
                await self._read(subscription)

    async def _read(self, subscription: Subscription) -> None:
        """Give it its page; if the store does not answer, let it wait for its next turn. A checkpoint."""
        after_id = subscription.position.begin_read()
        try:
            page = await self._store.read(
                subscription.subject, after_id, max_messages=self._max_messages, max_bytes=self._max_bytes
            )
        except StoreError as error:
            self._availability.failed(error)
        except Exception:
            log.exception("replay_failed", subject=subscription.subject)  # a bug in the store must not stop the broker
        else:
            subscription.page(page)
            return
        await trio.sleep(RETRY_S)
        self.want_page(subscription)
