"""The broker: publish, subscribe, fetch.

Owns:      `Broker` and its life; what may be called when it stops.
Not here:  what is refused whatever its state (trio_broker/validation.py), gRPC (trio_broker/service/), storage
           (persistence/), the committer's and the fan-out's workings (trio_broker/commit.py, trio_broker/fanout.py).
Threads:   the trio thread only.

    async with open_broker("sqlite:///broker.db") as broker:
        id = await broker.publish("orders", b"...", expiration=3600)
        message = await broker.fetch("orders", id)
        async with broker.subscribe("orders") as messages:
            async for message in messages:
                ...
"""

import sys
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Literal, NoReturn, overload

import trio

from trio_broker.own_packages import require_own

require_own("persistence")  # before the imports below, which a user's own persistence.py would break with a riddle

import persistence  # noqa: E402
from persistence import NO_HEADERS, Key, NewMessage, Store, open_store  # noqa: E402
from trio_broker.administration import Administration  # noqa: E402
from trio_broker.cache import Cache  # noqa: E402
from trio_broker.commit import Append, Committer, Flushing  # noqa: E402
from trio_broker.config import Config  # noqa: E402
from trio_broker.errors import (  # noqa: E402
    BrokerError,
    CannotOpen,
    Draining,
    MessageTooLarge,
    StorageUnavailable,
)
from trio_broker.fanout import NEW, Fanout, Span  # noqa: E402
from trio_broker.hearing import Hearing  # noqa: E402
from trio_broker.message import Draft, Gap, Message, MessagePage, microseconds_of  # noqa: E402
from trio_broker.paging import PAGE_MAX_BYTES  # noqa: E402
from trio_broker.publishing import Publishing, abort_others, check_count  # noqa: E402
from trio_broker.reading import Reading, begin_after, closed  # noqa: E402
from trio_broker.replay import Replay  # noqa: E402
from trio_broker.runs import Answer, Group  # noqa: E402
from trio_broker.settling import Settling  # noqa: E402
from trio_broker.start import After, At, AtEnd, New, SlowPolicy, Start, Until  # noqa: E402
from trio_broker.storage import Availability, StoreClock, keep_probing, keep_sweeping  # noqa: E402
from trio_broker.subject import check_subject  # noqa: E402
from trio_broker.subscription import Messages, Subscription  # noqa: E402
from trio_broker.validation import check_expiration, check_key, check_span, frozen_headers  # noqa: E402


@asynccontextmanager
async def open_broker(url: str = "sqlite:///trio-broker.db", config: Config | None = None) -> AsyncGenerator["Broker"]:
    """Open the store at ``url`` and a broker on it, for the length of the ``async with`` block.

    ``config`` gives everything else; its ``store`` is not read.

    Raises:
        CannotOpen: with what is wrong and what to do; also when another broker has the file open.
        StorageUnavailable: the database cannot be reached now; trying again may help.
    """
    config = config or Config()
    async with AsyncExitStack() as opened:
        try:
            store = await opened.enter_async_context(configured_store(url, config))
        except persistence.CannotOpen as error:
            raise CannotOpen(str(error)) from error
        except persistence.StoreUnavailable as error:
            raise StorageUnavailable(str(error)) from error
        async with run_broker(store, config) as broker:
            yield broker


def configured_store(url: str, config: Config) -> AbstractAsyncContextManager[Store]:
    """Return what opens the store as a broker does: as the only one, where there can be only one."""
    return open_store(
        url,
        listen_url=config.store_listen,
        exclusive=True,
        poll_interval_s=config.poll_interval,
        migrate=not config.no_migrate,
        commit_timeout_s=config.commit_timeout,
    )


@asynccontextmanager
async def run_broker(
    store: Store,
    config: Config | None = None,
    *,
    backlog_max_bytes: int = sys.maxsize,
    flushing: Flushing = nullcontext,
) -> AsyncGenerator["Broker"]:
    """Run a broker on an open store for the length of the block; `Broker.close` it at the end.

    ``backlog_max_bytes`` bounds what waits for all subscribers together, see `Fanout`. ``flushing`` is entered around
    each flush, see `Committer`.

    An error of the block leaves as it is, not in a group.
    """
    broker = Broker(store, config or Config(), backlog_max_bytes, flushing)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker._run)
            try:
                yield broker
            finally:
                broker._stop()  # `_run` ends by itself, after the flush in flight
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        _raise_as_it_is(group.exceptions[0])


class Broker:
    """A log per subject and its live subscribers. Made by `open_broker` or `run_broker`.

    After `close` every call raises `BrokerClosed`. Each ``async`` method is a checkpoint.
    """

    def __init__(self, store: Store, config: Config, backlog_max_bytes: int, flushing: Flushing) -> None:
        self._store = store
        limits = store.limits()
        self.body_max_bytes = min(int(config.body_max_bytes), limits.body_max_bytes)
        """The largest body that `check` lets pass."""
        self.expiration_max_s = limits.expiration_max_s
        """The longest expiration."""
        self._sweep_interval_s = config.sweep_interval
        self._availability = Availability()
        self._reading = Reading(store, self._availability)
        self._shared = limits.shared
        self._store_clock = StoreClock()
        self.cache = Cache(config.cache_bytes, self._store_clock.latest_us)
        """For its counters."""
        self.replay = Replay(store, config, self._availability, self.cache)
        """For its counters."""
        self.fanout = Fanout(config, backlog_max_bytes, self.replay.want_page, self.cache, shared=limits.shared)
        """For its counters."""
        self.committer = Committer(store, config, self._deliver, self._availability, flushing, doubt=self._doubt)
        """For its counters."""
        self.settling = Settling(self.committer)
        """Where a subscription waits, between `open_subscription` and telling who asked for it."""
        self.hearing = Hearing(
            store, self.fanout, self._availability, config.poll_interval, self.committer.is_committing
        )
        """What is learned of other brokers' appends."""
        self.administration = Administration(store, self.fanout, self._reading.guarded, self.refusal, self.cache.drop)
        """What operators ask and do about subjects."""
        self.on_stopping: dict[Callable[[BrokerError], None], None] = {}
        """Each is told why, when no more publishes are taken. (A dict for a set that keeps its order.)"""
        self._take_told: Callable[[], Collection[str]] = tuple
        self._refusal: Callable[[], BrokerError] | None = None
        self._ended = trio.Event()

    async def publish(
        self,
        subject: str,
        body: bytes,
        expiration: int | None = 0,
        *,
        headers: Mapping[str, bytes] | None = None,
        idempotency_key: str = "",
        expected_last_id: int | None = None,
    ) -> int:
        """Append a message; return its id once it is durable and every live subscriber was offered it.

        ``expiration``: seconds to keep it by the store's clock; 0: it gets an id and reaches who is subscribed now;
        None: kept until deleted. If cancelled before the store is given the message, it is not appended;
        after that it is, and only the id is lost.

        ``idempotency_key``: if it is not empty, and a message with it was published to the subject before, nothing is
        appended, and the id is that one's. Keys are remembered for as long as their messages are kept, and for 120 s
        at least. ``expected_last_id``: append only if that is the subject's last id, 0 if it has none.

        Raises:
            InvalidSubject, InvalidExpiration, InvalidHeaders, InvalidKey, MessageTooLarge, Rejected: it can never be
                published.
            Conflict: the subject's last id is not the expected one.
            Overloaded, StorageUnavailable, StorageFull, Draining, BrokerClosed: nothing was appended.
            OutcomeUnknown: it may or may not have been.
        """
        new = self.check(subject, body, expiration, headers, idempotency_key, expected_last_id)
        group = self.hand_over([new], self)
        (pending,) = group.pendings
        try:
            await group.settled()
        finally:
            pending.withdraw()  # does nothing, unless this was cancelled in time
        if isinstance(pending.outcome, persistence.Appended | persistence.Duplicate):
            return pending.outcome.id
        assert pending.outcome is not None
        raise pending.outcome

    async def publish_batch(self, drafts: Sequence[Draft], *, atomic: bool = False) -> list[int | BrokerError]:
        """Append messages, of any subjects; return for each its id once it is durable, or why it has none.

        Those of one subject get ids in their order. ``atomic``: the messages of each one subject succeed or fail
        together; of one that fails for the sake of another the error is `Aborted`. If cancelled, what the store was
        not given yet is not appended.

        Raises:
            InvalidBatch: too many.
            Draining, BrokerClosed: nothing was appended.
        """
        check_count(len(drafts))
        if self._refusal is not None:
            raise self._refusal()
        group = self.committer.next_group() if atomic else 0
        checked: list[NewMessage | BrokerError] = []
        for draft in drafts:
            try:
                checked.append(self.check(*draft, group))
            except BrokerError as error:
                checked.append(error)
        if atomic:
            abort_others(checked, [draft.subject for draft in drafts])
        settled = trio.Event()
        publishing = Publishing(self.committer, checked, self, atomic=atomic, done=settled.set)
        try:
            await settled.wait()
        finally:
            publishing.withdraw()  # does nothing, unless this was cancelled
        return [result if isinstance(result, BrokerError) else result.id for result in publishing.results()]

    async def fetch(self, subject: str, id: int) -> Message:  # noqa: A002
        """Return a message that is kept.

        Raises:
            InvalidId: the id was never assigned. ExpiredId: its message is no longer kept, or never was.
            InvalidSubject, StorageUnavailable, BrokerClosed.
        """
        (result,) = await self.fetch_many([Key(subject, id)])
        if isinstance(result, Message):
            return result
        raise result

    async def fetch_many(self, keys: Sequence[Key]) -> list[Message | BrokerError]:
        """Look messages up in one trip to the store; return one result per key, in order: a message, or why not.

        Raises:
            StorageUnavailable, BrokerClosed: for all of them.
        """
        return await self._reading.fetch_many(keys)

    async def fetch_range(
        self,
        subject: str,
        after_id: int = 0,
        until_id: int = 0,
        max_messages: int = 0,
        *,
        max_bytes: int = PAGE_MAX_BYTES,
    ) -> MessagePage:
        """Return a page of what is kept of a part of a subject's log, in id order.

        Args:
            subject: one subject.
            after_id: begin after this id; 0: at the first that is kept.
            until_id: end with this id; 0: with the last there is.
            max_messages: at most so many; 0: as many as a page holds. Fewer may come all the same: the next page
                begins after ``scanned_to``.
            max_bytes: how large the page may be as a response on gRPC, or it is one message.

        Raises:
            InvalidId: ``after_id`` was never assigned.
            InvalidSubject, InvalidPosition, StorageUnavailable, BrokerClosed.
        """
        return await self._reading.fetch_range(subject, after_id, until_id, max_messages, max_bytes)

    @overload
    def subscribe(
        self, subject: str, *, start: Start = ..., until: Until | None = ..., slow: SlowPolicy = ...
    ) -> AbstractAsyncContextManager[Messages[Message]]: ...

    @overload
    def subscribe(
        self,
        subject: str,
        *,
        start: Start = ...,
        until: Until | None = ...,
        slow: SlowPolicy = ...,
        report_gaps: Literal[True],
    ) -> AbstractAsyncContextManager[Messages[Message | Gap]]: ...

    @asynccontextmanager
    async def subscribe(
        self,
        subject: str,
        *,
        start: Start = New(),  # noqa: B008 - it is immutable
        until: Until | None = None,
        slow: SlowPolicy = SlowPolicy.CATCH_UP,
        report_gaps: bool = False,
    ) -> AsyncGenerator[Messages[Any]]:
        """Listen to ``subject`` for the length of the block, which gets an async iterator of `Message`.

        It has what is published from now on, in id order. Iterating raises why the subscription ended:
        `SlowConsumer`, `Draining`, `BrokerClosed`.

        Args:
            subject: one subject.
            start: begin there in the log: `Earliest`, `Last`, `After`, `At`. Without gap or duplicate where the log
                ends and what is published now begins.
            until: iterating ends after that id, or, with `AtEnd`, after what there is now.
            slow: what becomes of it when more waits than the buffer holds.
            report_gaps: iterate over each `Gap` too, in its place.

        Raises:
            InvalidSubject, InvalidPosition, InvalidId, StorageUnavailable, Draining, BrokerClosed: at once.
        """
        await trio.lowlevel.checkpoint()
        span = await self.locate(subject, start, until)
        with self.open_subscription(subject, span, slow, report_gaps=report_gaps) as subscription:
            await self.settling.wait(start, span)
            yield Messages(subscription)

    async def drain(self) -> None:
        """Refuse new publishes and subscriptions; commit and deliver those taken; end subscriptions with `Draining`.

        Fetches go on until `close`. Cancelling this stops the waiting, not the draining.
        """
        self._refusal = self._refusal or _draining
        self._tell_of_stopping(_draining())
        await self.committer.drain()
        self.fanout.end_all(_draining())

    async def close(self) -> None:
        """Refuse every call with `BrokerClosed`, those that wait too; end subscriptions; wait for the flush in flight.

        What that flush appends is still delivered. For a stop that commits the queue too, `drain` first. Idempotent.
        """
        self._stop()
        await self._ended.wait()

    # What the service on gRPC uses besides: the same, for whole reads of a socket, and without waiting.

    def check(
        self,
        subject: str,
        body: bytes,
        expiration: int | None = 0,
        headers: Mapping[str, bytes] | None = None,
        idempotency_key: str = "",
        expected_last_id: int | None = None,
        group: int = 0,
    ) -> NewMessage:
        """Return the message that `publish` would hand over. Raises what it does, before anything is queued.

        ``group``: see `NewMessage`.

        Raises:
            TypeError: an argument is not of its type.
        """
        if self._refusal is not None:
            raise self._refusal()
        check_subject(subject)
        if not isinstance(body, bytes):
            raise TypeError(f"a body is bytes, not {type(body).__name__}")
        if len(body) > self.body_max_bytes:
            raise MessageTooLarge(
                f"the body has {len(body)} bytes; at most {self.body_max_bytes} are accepted",
                size=len(body),
                limit=self.body_max_bytes,
            )
        if expiration is not None:
            check_expiration(expiration, self.expiration_max_s)
        if idempotency_key:
            check_key(idempotency_key)
        if expected_last_id is not None and not isinstance(expected_last_id, int):
            raise TypeError(f"an id is an int, not {type(expected_last_id).__name__}")
        frozen = frozen_headers(headers) if headers else NO_HEADERS
        return NewMessage(subject, body, expiration, frozen, idempotency_key, expected_last_id, group)

    def hand_over(
        self,
        messages: Sequence[NewMessage],
        source: Hashable,
        callers: Sequence[object] = (),
        answer: Answer | None = None,
    ) -> Group:
        """Publish messages that `check` returned and that came from one source. See `Committer.hand_over`."""
        return self.committer.hand_over(messages, source, callers, answer)

    async def locate(self, subject: str, start: Start, until: Until | None) -> Span:
        """Find the part of a subject's log that is asked for, as `open_subscription` needs it.

        A checkpoint, and whoever asks listens before the next one. Where this broker is the only one, `New` without an
        end is no checkpoint and needs no look at the store; nor does who goes on in what is kept in memory.
        """
        if until is None and isinstance(start, New) and not self._shared:
            return NEW
        self._check_subscribing(subject)
        check_span(start, until)
        if isinstance(start, After) and not isinstance(until, AtEnd) and not self._shared:
            await trio.lowlevel.checkpoint()
            end_id = self.cache.end_after(subject, start.id)
            if end_id is not None:
                return Span(start.id, until, end_id)
        with self.fanout.expecting(subject):  # who listens from then on misses nothing of what comes meanwhile
            with self._reading.guarded():
                at_us = microseconds_of(start.time) if isinstance(start, At) else None
                after_id = 0 if at_us is None else await self._store.id_before(subject, at_us)
                first_id, last_id = await self._store.head(subject)
            last_id = max(last_id, self.fanout.offered_id(subject))
        self.cache.drop(subject, first_id - 1)  # another broker may have purged it
        if not isinstance(start, At):
            after_id = begin_after(start, subject, first_id, last_id)
        live = self._shared and after_id == last_id
        return Span(after_id, last_id if isinstance(until, AtEnd) else until, last_id, live)

    def open_subscription(
        self,
        subject: str,
        span: Span = NEW,
        slow: SlowPolicy = SlowPolicy.CATCH_UP,
        *,
        report_gaps: bool = False,
    ) -> Subscription:
        """Listen to ``subject``, to all of it that is yet to come or to a span of it; the caller closes it.

        Raises as `subscribe` does.
        """
        self._check_subscribing(subject)
        return self.fanout.subscribe(subject, span, slow, report_gaps=report_gaps)

    def leave(self, is_left: Callable[[str], bool], append: Append, take_told: Callable[[], Collection[str]]) -> None:
        """Leave appending to subjects to other brokers.

        Args:
            is_left: says whether a subject is.
            append: does it in place of `Store.append`.
            take_told: returns, at once after that, the subjects of which all other brokers have been told.
        """
        self.committer.is_left, self.committer.append_left = is_left, append
        self._take_told = take_told

    def refusal(self) -> BrokerError | None:
        """Return why nothing is published any more, if so."""
        return None if self._refusal is None else self._refusal()

    def store_away_s(self) -> float:
        """How long the store has been out of reach; 0.0 when it is there."""
        return self._availability.away_s()

    @property
    def subscribers(self) -> int:
        """How many subscriptions are live."""
        return self.fanout.count

    async def _run(self) -> None:
        """Work until `_stop`, and then until what is in flight is settled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_probing, self._store, self._availability, self._store_clock)
                nursery.start_soon(keep_sweeping, self._store, self._availability, self._sweep_interval_s)
                if self._shared:
                    nursery.start_soon(self.hearing.run)
                nursery.start_soon(self.replay.run, self.committer.rest)
                await self.committer.run()
                nursery.cancel_scope.cancel()
        finally:
            self._stop()
            self.fanout.end_all(closed())  # after the last flush, whose messages they get
            self._ended.set()

    def _deliver(self, committed: Sequence[tuple[NewMessage, persistence.Appended]]) -> None:
        if committed and self.cache.subjects:
            self._store_clock.appended(committed[-1][1].time_us)
        self.fanout.deliver(committed, told=self._take_told())

    def _doubt(self, subjects: Iterable[str]) -> None:
        """What is kept of them may not be all that there is."""
        for subject in subjects:
            self.cache.forget(subject)

    def _check_subscribing(self, subject: str) -> None:
        if self._refusal is not None:
            raise self._refusal()
        check_subject(subject)
        if self._availability.away:
            raise StorageUnavailable(f"the store has been away for {self.store_away_s():.1f} s")

    def _stop(self) -> None:
        self._refusal = closed
        self._tell_of_stopping(closed())
        self.committer.close()
        self._reading.stop()

    def _tell_of_stopping(self, error: BrokerError) -> None:
        for tell in tuple(self.on_stopping):
            tell(error)


def _draining() -> Draining:
    return Draining("the broker is stopping")


def _raise_as_it_is(error: BaseException) -> NoReturn:
    """Raise ``error`` without the group it was found in as its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context
