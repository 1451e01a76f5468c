"""One subscriber: what waits for it, and what becomes of it when that is too much.

Owns:      a bounded memory channel of batches; the policies for a full one; its messages one by one.
Not here:  who listens to what (trio_broker/fanout.py); which batch is next (trio_broker/position.py); reading the log
           for one that is behind (trio_broker/replay.py); gRPC (trio_broker/service/).
Threads:   the trio thread only; only `Subscription.receive` and `Messages` are checkpoints.
"""

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

import structlog
import trio

from persistence import Page
from trio_broker.batch import OVERHEAD_BYTES, Batch
from trio_broker.cache import Recent
from trio_broker.errors import BrokerError, MessageTooLarge, SlowConsumer
from trio_broker.message import DROPPED_OLDEST, Gap, Message
from trio_broker.position import Position, State
from trio_broker.start import SlowPolicy

if TYPE_CHECKING:
    from trio_broker.fanout import Fanout

log = structlog.get_logger()

Item = TypeVar("Item", bound=Message | Gap)
"""What iterating over a subscription gives."""


class Subscription:
    """One subscriber's end: a bounded channel of batches, drained by one reader.

    Live batches are buffered up to ``subscriber_messages`` and ``subscriber_bytes``, or one batch: an empty buffer
    takes any. What becomes of one beyond that is for its `SlowPolicy`. Who is behind gets pages of the log, each when
    the one before was received and the reader asks by `pull`.
    """

    __slots__ = (
        "_fanout",
        "_max_bytes",
        "_max_messages",
        "_pulled",
        "_receive",
        "_report_gaps",
        "_send",
        "_slow",
        "_waiter",
        "buffered_bytes",
        "buffered_messages",
        "dropped",
        "ended",
        "error",
        "last_delivered_id",
        "live",
        "position",
        "sending",
        "subject",
        "wake",
    )

    def __init__(
        self,
        fanout: "Fanout",
        position: Position,
        slow: SlowPolicy,
        max_messages: int,
        max_bytes: int,
        *,
        report_gaps: bool,
    ) -> None:
        self.subject = position.subject
        self.position = position
        self.wake: Callable[[], None] = _nobody_waits
        """Called after each batch and after the end. It runs between the commit and the reply: it does little."""
        self.ended: Callable[[], None] = _nobody_waits
        """Called once, before `wake`, when it ends from the publishers' side."""
        self.dropped: Callable[[], None] = _nobody_waits
        """Called when `sending` is to be dropped: who receives closes it, in the same stretch."""
        self.sending: Batch | None = None
        """What was received and has not left in whole, for who receives to keep: it is counted meanwhile."""
        self.live = True
        """More may come than is buffered."""
        self.error: BrokerError | None = None
        """Why it ended; None while it lives, after all that was asked for, and when its own side closed it."""
        self.last_delivered_id = position.floor_id
        """The last message that was received, or the start position if it is known; 0: none."""
        self.buffered_messages = 0
        self.buffered_bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # A batch counts as one at least, so the channel's own bound never bites before those above. A page, of twice as
        # many messages, and what is collected of the live stream meanwhile may come together, and a gap.
        self._send, self._receive = trio.open_memory_channel[Batch](3 * max_messages + 2)
        self._fanout = fanout
        self._slow = slow
        self._report_gaps = report_gaps
        self._pulled = False
        self._waiter: trio.Event | None = None

    def offer(self, batch: Batch) -> bool:
        """Take ``batch``, if its turn has come and it has room; say whether it was taken. Never waits."""
        position = self.position
        if batch.after_id != position.follows:
            return self._offer_aside(batch)
        messages = self.buffered_messages + batch.count
        size_bytes = self.buffered_bytes + batch.size_bytes
        if self.buffered_messages and (messages > self._max_messages or size_bytes > self._max_bytes):
            return self._offer_full(batch)
        self.buffered_messages = messages
        self.buffered_bytes = size_bytes
        position.follows = batch.last_id
        self._send.send_nowait(batch)
        try:
            self.wake()
        except Exception:  # as in `_tell`, which would cost a tenth of a delivery
            log.exception("wake_failed", subject=self.subject)
        return True

    def hear(self, last_id: int) -> None:
        """Learn that the log goes up to ``last_id``: what of that does not come live is read. Never waits."""
        if self.live and self.position.taken_id < last_id:
            self.position.hear(last_id)
            self.pull()

    def pull(self) -> None:
        """Ask for a page of the log, if nothing is buffered and nothing else can come. Never waits."""
        if not self._pulled and self.live and not self.buffered_messages and self.position.behind:
            self._pulled = True
            self._fanout.want_page(self)

    def page(self, page: Page | Recent) -> None:
        """Take the page that `pull` asked for, of the log or of what is kept in memory."""
        self._pulled = False
        if not self.live:
            return
        position = self.position
        replayed, joined, gaps = position.recall(page) if isinstance(page, Recent) else position.read(page)
        self._fanout.count_gaps(gaps)
        batches = [*replayed, *joined]
        if replayed and (too_large := self._never_fits(replayed[0])):
            self.end(too_large)
            return
        for batch in batches:
            self._buffer(batch)
        for batch in replayed:
            self._fanout.enter(batch)  # now that it is buffered: to make room, this one may have to do without it
        if self.error is not None:
            return
        if self.position.finished:
            self.finish()
        elif batches:
            self._tell(self.wake)
        else:
            self.pull()

    def finish(self) -> None:
        """Take no more; what is buffered can still be received."""
        self._leave()
        if self.error is not None:  # otherwise it gets what it asked for, as fast as it reads
            self._tell(self.ended)
        self._tell(self.wake)

    def end(self, error: BrokerError) -> None:
        """Take no more, because of ``error``; what is buffered can still be received. Idempotent."""
        if self.live:
            self.error = error
            self.finish()

    def drop(self) -> None:
        """Drop what is buffered because memory is short: it comes again from the log, or is a gap, or this ends."""
        if not self.live or self._slow is SlowPolicy.FAIL:
            self.cut()
            return
        if self._slow is SlowPolicy.DROP_OLDEST and not self.position.behind:
            self._drop_oldest(0, 0)
            return
        if self.buffered_messages or self.position.collected_messages:
            for batch in self._drain():
                if batch.last_id <= self.position.floor_id:  # a gap of what was dropped before: it is told nowhere else
                    self._buffer(batch)
            self.position.rewind(self.last_delivered_id)
            self._fanout.lags += 1

    def cut(self) -> None:
        """End it at once because memory is short: what is buffered is dropped."""
        waited = f"{self.buffered_messages} messages of {self.buffered_bytes} bytes"
        self._drain()
        error = SlowConsumer(
            f"memory is short, and {waited} waited for the subscriber of {self.subject!r}; "
            f"the last one delivered is {self.last_delivered_id}",
            last_delivered_id=self.last_delivered_id,
        )
        if self.live:
            self.end(error)
        else:
            self.error = error
            self._tell(self.wake)
        if self.sending is not None:
            self._tell(self.dropped)

    def receive_nowait(self) -> Batch:
        """Return the next batch. Whoever asks calls `Deliveries.settle` once it is on its way.

        Raises:
            trio.WouldBlock: nothing is buffered now; `pull` if more is wanted.
            trio.EndOfChannel: nothing will be any more; `error` says why.
            trio.ClosedResourceError: `close` was called.
        """
        batch = self._receive.receive_nowait()
        self.buffered_messages -= batch.count
        self.buffered_bytes -= batch.size_bytes
        self.last_delivered_id = batch.last_id
        if not batch.takers:
            self._fanout.deliveries.took(batch)
        batch.takers += 1
        return batch

    async def receive(self) -> Batch:
        """Return the next batch; wait for it. Raises as `receive_nowait` does, but for `trio.WouldBlock`.

        For one task at a time, which has no `wake` of its own: it is set meanwhile.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self.pull()
            try:
                batch = self.receive_nowait()
            except trio.WouldBlock:
                await self._woken()
            else:
                self._fanout.deliveries.settle()
                return batch

    async def _woken(self) -> None:
        """Wait for `wake`, or for `close`.

        Not for the channel: what it gives to who waits there is neither buffered any more nor received yet.
        """
        self._waiter = trio.Event()
        self.wake = self._waiter.set
        try:
            await self._waiter.wait()
        finally:
            self._waiter, self.wake = None, _nobody_waits

    def close(self) -> None:
        """Listen no more, and give back what is buffered. Idempotent."""
        if self.live:
            self._leave()
        self._fanout.let_go(self)
        self._receive.close()
        if self._waiter is not None:
            self._waiter.set()
        self.sending = None
        self.buffered_messages = self.buffered_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """What dropping all that waits would free, if nobody else held the same."""
        position = self.position
        messages = self.buffered_messages + position.collected_messages
        waiting = self.buffered_bytes + position.collected_bytes + OVERHEAD_BYTES * messages
        return waiting if self.sending is None else waiting + self.sending.memory_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _offer_aside(self, batch: Batch) -> bool:
        """Do as `offer`, for a batch that does not just continue what was taken."""
        if not self.live:
            return False
        position = self.position
        was_behind = position.state is not State.LIVE
        piece = position.arrive(batch)
        if piece is None:
            if not was_behind:
                self.pull()  # it left a hole, and whoever reads may wait already
            return False
        if self.buffered_messages and (
            self.buffered_messages + piece.count > self._max_messages
            or self.buffered_bytes + piece.size_bytes > self._max_bytes
        ):
            return self._offer_full(piece)
        self._take(piece)
        return True

    def _offer_full(self, batch: Batch) -> bool:
        """Do with a batch that is next and has no room as the policy says."""
        match self._slow:
            case SlowPolicy.FAIL:
                self.end(self._too_slow())
                return False
            case SlowPolicy.CATCH_UP:
                self.position.leave(batch)
                self._fanout.lags += 1
                return False
            case SlowPolicy.DROP_OLDEST:
                # half at once: what stays is put behind the gap, and not again for each batch
                self._drop_oldest(
                    min(self._max_messages // 2, self._max_messages - batch.count),
                    min(self._max_bytes // 2, self._max_bytes - batch.size_bytes),
                )
                self._take(batch)
                return True

    def _take(self, batch: Batch) -> None:
        self.position.take(batch)
        self._buffer(batch)
        if self.position.finished:
            self.finish()
        else:
            self._tell(self.wake)

    def _buffer(self, batch: Batch) -> None:
        self.buffered_messages += batch.count
        self.buffered_bytes += batch.size_bytes
        self._send.send_nowait(batch)

    def _drain(self) -> list[Batch]:
        """Take out what is buffered, undelivered."""
        batches = []
        while self.buffered_messages:
            batches.append(self._receive.receive_nowait())
            self.buffered_messages -= batches[-1].count
        self.buffered_bytes = 0
        return batches

    def _drop_oldest(self, max_messages: int, max_bytes: int) -> None:
        """Drop what was buffered first until no more than that waits, and tell the gap in its place."""
        batches = deque(self._drain())
        messages, size_bytes = sum(batch.count for batch in batches), sum(batch.size_bytes for batch in batches)
        first_id = batches[0].after_id + 1 if batches else 0
        last_id = 0
        while batches and (messages > max_messages or size_bytes > max_bytes):
            batch = batches.popleft()
            messages, size_bytes, last_id = messages - batch.count, size_bytes - batch.size_bytes, batch.last_id
        if last_id:
            gap = Gap(self.subject, first_id, last_id, DROPPED_OLDEST)
            self._fanout.count_gaps([gap])
            self.position.floor_id = last_id
            if self._report_gaps:
                self._buffer(Batch.replayed(self.subject, first_id - 1, (), [gap], last_id))
        for batch in batches:
            self._buffer(batch)

    def _tell(self, whom: Callable[[], None]) -> None:
        try:
            whom()
        except Exception:
            log.exception("wake_failed", subject=self.subject)  # one reader's bug must not reach the others

    def _leave(self) -> None:
        self.live = False
        self.position.end()
        self._fanout.forget(self)
        self._send.close()

    def _never_fits(self, batch: Batch) -> MessageTooLarge | None:
        """Say what is wrong with a message of the log that is too large for this broker to hand on, if it is."""
        limit = self._fanout.backlog.max_bytes
        if batch.count > 1 or batch.memory_bytes <= limit:
            return None
        return MessageTooLarge(
            f"message {batch.last_id} of {self.subject!r} has {batch.size_bytes} bytes, and this broker has memory for "
            f"{limit} bytes of messages that wait for subscribers, twice as much as one has: --memory-max is too small",
            size=batch.size_bytes,
            limit=limit,
        )

    def _too_slow(self) -> SlowConsumer:
        # all that was taken is still delivered before the reader sees this
        return SlowConsumer(
            f"the subscriber of {self.subject!r} reads too slowly: {self.buffered_messages} messages of "
            f"{self.buffered_bytes} bytes were waiting (at most {self._max_messages} and {self._max_bytes} may); "
            f"the last one delivered is {self.position.taken_id}",
            last_delivered_id=self.position.taken_id,
        )


class Messages(Generic[Item]):
    """The messages of a subscription one by one, for `Broker.subscribe`. For one task.

    Between them come its gaps, if they are to be told.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._unread: deque[Item] = deque()

    async def receive(self) -> Item:
        """Return the next message; wait for it. A checkpoint.

        Raises:
            BrokerError: why the subscription ended, once all messages before were returned: `SlowConsumer`,
                `Draining`, `BrokerClosed`.
            trio.EndOfChannel: all that was asked for was returned.
            trio.ClosedResourceError: the block of `Broker.subscribe` was left.
        """
        if self._unread:
            await trio.lowlevel.checkpoint()
        else:
            self._unread.extend(cast("Iterable[Item]", (await self._next_batch()).items()))
        return self._unread.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def _next_batch(self) -> Batch:
        try:
            return await self._subscription.receive()
        except trio.EndOfChannel:
            if self._subscription.error is None:
                raise
            raise self._subscription.error from None


def _nobody_waits() -> None:
    """Stand in for a `Subscription.wake` that nobody has set."""
