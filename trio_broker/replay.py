"""Read the log for subscriptions that are behind.

Owns:      the queues of those that want a page, and the few tasks that read pages for all of them, in turns.
Not here:  when one wants a page, and what becomes of it (trio_broker/subscription.py, trio_broker/position.py); what is
           in memory (trio_broker/cache.py).
Threads:   the trio thread only.

Whom memory can serve has a queue of its own, and does not wait behind those for whom the store is read.

A subscription asks for its next page when it has given the one before to its reader: how fast a client reads is how
fast its log is read. No task exists for a subscription, however long it lives.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from persistence import Page, Store, StoreError
from trio_broker.cache import Cache, Recent
from trio_broker.config import Config
from trio_broker.storage import Availability
from trio_broker.subscription import Subscription

READERS = 2
"""Pages that are read at once from a database."""
READERS_HERE = 1
"""The same from a store of this process: reading and committing want the same interpreter."""
PAGE_MESSAGES = 1024
PAGE_BYTES = 512 * 1024
"""What a page holds at most, or one message; no more than what may wait for one subscriber, live and collected."""
GIVE_WAY_S = 0.01
"""A page of the store waits so long at most for publishes under way: their commit needs the interpreter, too."""
RETRY_S = 0.5
"""A reader rests so long when the store did not answer."""
DROPPED_REST_S = 0.05
"""The same when what it has read had to be dropped at once, because memory is short: it would only read it again."""

log = structlog.get_logger()


class Replay:
    """The subscriptions that wait for a page. `run` does the work."""

    def __init__(self, store: Store, config: Config, availability: Availability, cache: Cache) -> None:
        """``availability`` hears of a store that cannot be read; ``cache`` is asked before it."""
        self._store = store
        self._cache = cache
        self._readers = READERS if store.limits().shared else READERS_HERE
        self._availability = availability
        self._max_messages = min(PAGE_MESSAGES, 2 * config.subscriber_messages)
        self._max_bytes = min(PAGE_BYTES, int(config.subscriber_bytes))
        self.store_pages = 0
        """Pages for which the store was asked, one that does not answer each time."""
        self._for_memory = _Turns()
        self._for_store = _Turns()

    def want_page(self, subscription: Subscription) -> None:
        """Give it a page when its turn comes. It asks once."""
        recent = self._cache.end_after(subscription.subject, subscription.position.taken_id) is not None
        (self._for_memory if recent else self._for_store).put(subscription)

    async def run(self, publishes_rest: Callable[[], Awaitable[None]]) -> None:
        """Read pages until cancelled; those of the store between publishes, which ``publishes_rest`` waits for."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._for_memory.keep_taking, self._recall)
            for _ in range(self._readers):
                nursery.start_soon(self._for_store.keep_taking, partial(self._read, publishes_rest))

    async def _recall(self, subscription: Subscription) -> None:
        """Give it what memory has, or let it wait for the store. A checkpoint."""
        position = subscription.position
        after_id = position.begin_read()
        page = self._cache.read(
            subscription.subject,
            after_id,
            position.settled_id,
            max_messages=self._max_messages,
            max_bytes=self._max_bytes,
        )
        if page is None:
            self._for_store.put(subscription)
        else:
            await _give(subscription, page)
        await trio.lowlevel.checkpoint()

    async def _read(self, publishes_rest: Callable[[], Awaitable[None]], subscription: Subscription) -> None:
        """Give it its page; if the store does not answer, let it wait for its next turn. A checkpoint."""
        with trio.move_on_after(GIVE_WAY_S):
            await publishes_rest()
        if not subscription.live:
            return
        after_id = subscription.position.begin_read()
        self.store_pages += 1
        try:
            page = await self._store.read(
                subscription.subject, after_id, max_messages=self._max_messages, max_bytes=self._max_bytes
            )
        except StoreError as error:
            self._availability.failed(error)
        except Exception:
            log.exception("replay_failed", subject=subscription.subject)  # a bug in the store must not stop the broker
        else:
            await _give(subscription, page)
            return
        await trio.sleep(RETRY_S)
        self.want_page(subscription)


async def _give(subscription: Subscription, page: Page | Recent) -> None:
    """Give it what was read, and rest if there was no room for it. A checkpoint only then."""
    position = subscription.position
    after_id = position.taken_id
    subscription.page(page)
    if subscription.live and position.behind and position.taken_id <= after_id:
        await trio.sleep(DROPPED_REST_S)


class _Turns:
    """Those that wait for their turn."""

    def __init__(self) -> None:
        self._waiting: deque[Subscription] = deque()
        self._something_waits = trio.lowlevel.ParkingLot()

    def put(self, subscription: Subscription) -> None:
        self._waiting.append(subscription)
        self._something_waits.unpark()

    async def keep_taking(self, take: Callable[[Subscription], Awaitable[None]]) -> None:
        """Take those that are still live, one after the other, until cancelled."""
        while True:
            while not self._waiting:
                await self._something_waits.park()
            subscription = self._waiting.popleft()
            if subscription.live:
                await take(subscription)
