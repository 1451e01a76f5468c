import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trial_store import POISON, START_US, TrialStore, message
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import persistence
from persistence import Key
from trio_broker import (
    Broker,
    BrokerClosed,
    BrokerError,
    Draining,
    ExpiredId,
    InvalidExpiration,
    InvalidHeaders,
    InvalidId,
    InvalidSubject,
    Message,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    SlowConsumer,
    StorageUnavailable,
    open_broker,
)
from trio_broker.broker import run_broker
from trio_broker.config import BODY_MAX_BYTES, Config
from trio_broker.errors import Rejected

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["memory:", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Broker]:
    """A broker on each embedded store."""
    url = f"sqlite:///{tmp_path}/broker.db" if request.param == "sqlite" else request.param
    async with open_broker(url) as opened:
        yield opened


@pytest.fixture
def store() -> TrialStore:
    return TrialStore()


@asynccontextmanager
async def broker_on(store: TrialStore, **settings: object) -> AsyncGenerator[Broker]:
    async with run_broker(store, Config(**settings)) as broker:
        yield broker


class Call:
    """A call in a task of its own: how it ended, once it has."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[object]], *args: object) -> None:
        self.ended: object = "still waits"
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call, *args)

    async def _run(self, call: Callable[..., Awaitable[object]], *args: object) -> None:
        with self.scope:
            try:
                self.ended = await call(*args)
            except BrokerError as error:
                self.ended = type(error)
        if self.scope.cancelled_caught:
            self.ended = "cancelled"


# publish, subscribe, fetch


async def test_subscribers_get_what_is_published_in_order_and_only_of_their_subject(broker: Broker) -> None:
    async with broker.subscribe("orders") as one, broker.subscribe("orders") as two, broker.subscribe("other") as other:
        ids = [await broker.publish("orders", b"%d" % number, 3600) for number in range(50)]
        await broker.publish("other", b"mine")
        assert ids == list(range(1, 51))
        for messages in (one, two):
            got = [await messages.receive() for _ in range(50)]
            assert [(m.subject, m.id, m.body) for m in got] == [("orders", n + 1, b"%d" % n) for n in range(50)]
            assert sorted(m.published_us for m in got) == [m.published_us for m in got]
        assert (await other.receive()).body == b"mine"
        assert broker.subscribers == 3
    assert broker.subscribers == 0


async def test_a_new_subscriber_sees_no_history(broker: Broker) -> None:
    await broker.publish("a", b"before", 3600)
    async with broker.subscribe("a") as messages:
        await broker.publish("a", b"after", 3600)
        assert (await messages.receive()).body == b"after"


async def test_whoever_has_an_id_knows_that_subscribers_were_offered_the_message(broker: Broker) -> None:
    with broker.open_subscription("a") as subscription:
        for number in range(1, 6):
            assert await broker.publish("a", b"") == number
            assert subscription.receive_nowait().last_id == number


async def test_a_message_comes_back_as_it_was_published(broker: Broker) -> None:
    headers = {"trace": b"\x00\xff", "ключ": b""}
    async with broker.subscribe("a") as messages:
        id_ = await broker.publish("a", b"\x00body", None, headers=headers)
        headers["trace"] = b"changed later"
        delivered, fetched = await messages.receive(), await broker.fetch("a", id_)
    assert delivered == fetched == Message("a", 1, b"\x00body", fetched.headers, fetched.published_us)
    assert dict(fetched.headers) == {"trace": b"\x00\xff", "ключ": b""}
    with pytest.raises(TypeError):
        delivered.headers["trace"] = b"shared by all"  # type: ignore[index]


async def test_ids_that_never_were_and_messages_that_are_no_more_are_told_apart(broker: Broker) -> None:
    await broker.publish("a", b"not kept")
    await broker.publish("a", b"kept", 3600)
    with pytest.raises(ExpiredId) as expired:
        await broker.fetch("a", 1)
    assert expired.value.metadata == {"last_id": "2"}
    assert (await broker.fetch("a", 2)).body == b"kept"
    for id_ in (3, 0, -1, 2**63, -(2**63) - 1, 2**100):
        with pytest.raises(InvalidId, match=f"id {id_} was never assigned in 'a'; its last id is 2") as invalid:
            await broker.fetch("a", id_)
        assert invalid.value.metadata == {"last_id": "2"}
    with pytest.raises(InvalidId):
        await broker.fetch("nothing.here", 1)


async def test_expiry_is_exact_by_the_stores_clock_also_after_sweeping(store: TrialStore) -> None:
    async with broker_on(store, sweep_interval=1000) as broker:
        await broker.publish("a", b"", 5)
        store.clock_us = START_US + 5_000_000 - 1
        assert (await broker.fetch("a", 1)).id == 1
        store.clock_us += 1
        with pytest.raises(ExpiredId):
            await broker.fetch("a", 1)
        await store.sweep()
        with pytest.raises(ExpiredId):
            await broker.fetch("a", 1)


async def test_many_are_fetched_in_one_trip_with_an_answer_for_each(broker: Broker) -> None:
    await broker.publish("a", b"1", 60)
    await broker.publish("b", b"2")
    keys = [Key("b", 1), Key("not valid", 1), Key("a", 1), Key("a", 2), Key("a", 1)]
    expired, bad_subject, found, invalid, again = await broker.fetch_many(keys)
    assert isinstance(expired, ExpiredId)
    assert isinstance(bad_subject, InvalidSubject)
    assert isinstance(invalid, InvalidId)
    assert isinstance(found, Message)
    assert found == again
    assert await broker.fetch_many([]) == []
    assert await broker.fetch_many([Key("", 1)]) != []


async def test_ids_go_on_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    for expected in (1, 2, 3):
        async with open_broker(url) as broker:
            assert await broker.publish("a", b"%d" % expected, 3600) == expected
    async with open_broker(url) as broker:
        assert [(await broker.fetch("a", id_)).body for id_ in (1, 2, 3)] == [b"1", b"2", b"3"]


async def test_a_second_broker_on_one_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/broker.db"
    async with open_broker(url):
        with pytest.raises(persistence.CannotOpen, match="broker"):
            async with open_broker(url):
                raise AssertionError
    async with open_broker(url):
        pass


async def test_publishes_of_many_tasks_share_an_append(broker: Broker) -> None:
    ids: list[int] = []

    async def publish() -> None:
        ids.append(await broker.publish("a", b"x", 3600))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(publish)
    assert sorted(ids) == list(range(1, 101))
    assert broker.committer.flushes == 1


async def test_clients_of_one_and_of_many_subjects_do_not_disturb_each_other(broker: Broker) -> None:
    seen: dict[str, list[int]] = {f"s{number}": [] for number in range(4)}

    async def publish(subject: str) -> None:
        for _ in range(25):
            id_ = await broker.publish(subject, subject.encode(), 60)
            assert (await broker.fetch(subject, id_)).body == subject.encode()

    async def listen(subject: str, task_status: trio.TaskStatus) -> None:
        async with broker.subscribe(subject) as messages:
            task_status.started()
            while len(seen[subject]) < 100:
                got = await messages.receive()
                assert got.body == subject.encode()
                seen[subject].append(got.id)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for subject in seen:
                await nursery.start(listen, subject)
            for subject in seen:
                for _ in range(4):
                    nursery.start_soon(publish, subject)
    assert all(ids == list(range(1, 101)) for ids in seen.values())


async def test_every_async_call_is_a_checkpoint(broker: Broker) -> None:
    with assert_checkpoints():
        await broker.publish("a", b"", 60)
    with assert_checkpoints():
        await broker.fetch("a", 1)
    with assert_checkpoints():
        async with broker.subscribe("a"):
            pass
    with assert_checkpoints():
        await broker.drain()
    with assert_checkpoints():
        await broker.close()
    with assert_checkpoints():
        await broker.close()


# what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", b""), InvalidSubject, "it is empty"),
        (("a b", b""), InvalidSubject, "at character 2"),
        (("a", b"x" * (BODY_MAX_BYTES + 1)), MessageTooLarge, f"{BODY_MAX_BYTES + 1} bytes; at most {BODY_MAX_BYTES}"),
        (("a", b"", -1), InvalidExpiration, "cannot be negative"),
        (("a", b"", 2**31), InvalidExpiration, "at most 2147483647 s"),
        (("a", b"", 0, {"": b""}), InvalidHeaders, "no name"),
        (("a", b"", 0, {"\ud800": b""}), InvalidHeaders, "surrogate"),
        (("a", b"", 0, {str(n): b"" for n in range(65)}), InvalidHeaders, "65 headers; at most 64"),
        (("a", b"", 0, {"é": b"x" * (16 * 1024 - 1)}), InvalidHeaders, "16385 bytes together; at most 16384"),
        ((b"a", b""), TypeError, "subject is a str, not bytes"),
        (("a", "text"), TypeError, "body is bytes, not str"),
        (("a", bytearray(b"")), TypeError, "body is bytes, not bytearray"),
        (("a", b"", 1.5), TypeError, "int .seconds. or None, not float"),
        (("a", b"", 0, [("name", b"")]), TypeError, "mapping, not list"),
        (("a", b"", 0, {"name": "text"}), TypeError, "not str to str"),
        (("a", b"", 0, {b"name": b""}), TypeError, "not bytes to bytes"),
    ],
)
async def test_what_cannot_be_published_is_refused_and_said(
    store: TrialStore, arguments: tuple, error: type[Exception], text: str
) -> None:
    subject, body, *rest = arguments
    async with broker_on(store) as broker:
        with pytest.raises(error, match=text):
            await broker.publish(subject, body, *rest[:1], headers=rest[1] if rest[1:] else None)
    assert store.appends == []


async def test_what_is_just_within_the_limits_is_published(broker: Broker) -> None:
    assert await broker.publish("x" * 255, b"x" * BODY_MAX_BYTES, 2**31 - 1) == 1
    many = {f"{n:02}": b"" for n in range(63)} | {"é": b"x" * (16 * 1024 - 63 * 2 - 2)}
    assert await broker.publish("a", b"", None, headers=many) == 1
    assert (await broker.fetch("a", 1)).headers == many


async def test_a_refusal_carries_the_limit_for_programs(store: TrialStore) -> None:
    async with broker_on(store, body_max_bytes=10) as broker:
        with pytest.raises(MessageTooLarge) as refused:
            await broker.publish("a", b"x" * 11)
        assert refused.value.metadata == {"size": "11", "limit": "10"}


async def test_bad_subjects_and_ids_are_refused_everywhere(broker: Broker) -> None:
    with pytest.raises(InvalidSubject):
        await broker.fetch("a..b", 1)
    with pytest.raises(InvalidSubject):
        async with broker.subscribe("a.*"):
            raise AssertionError
    with pytest.raises(TypeError, match="an id is an int, not str"):
        await broker.fetch("a", "1")  # type: ignore[arg-type]


async def test_beyond_the_queue_publishes_are_refused(store: TrialStore) -> None:
    async with broker_on(store, queue_messages=2) as broker, trio.open_nursery() as nursery:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"")
        await wait_all_tasks_blocked()
        queued = [Call(nursery, broker.publish, "a", b"") for _ in range(2)]
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await broker.publish("a", b"")
        store.release()
        await wait_all_tasks_blocked()
        assert [flying.ended, *sorted(call.ended for call in queued)] == [1, 2, 3]


# a failing store


async def test_a_poison_body_fails_alone_on_a_real_database(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    async with open_broker(f"sqlite:///{path}") as broker:
        plant = sqlite3.connect(path)
        plant.execute(
            "CREATE TRIGGER poison BEFORE INSERT ON messages WHEN NEW.body = CAST('poison' AS BLOB) "
            "BEGIN SELECT RAISE(ABORT, 'this body is not allowed'); END"
        )
        plant.close()
        bodies = [b"%d" % number for number in range(20)]
        bodies[3] = bodies[17] = POISON
        with broker.open_subscription("a") as subscription:
            group = broker.hand_over([broker.check("a", body, 3600) for body in bodies], "me")
            while await group.settled():
                pass
            delivered = []
            while True:
                try:
                    delivered += [m.body for m in subscription.receive_nowait().messages]
                except trio.WouldBlock:
                    break
        assert delivered == [body for body in bodies if body != POISON]
        guilty = [number for number, pending in enumerate(group.pendings) if isinstance(pending.outcome, Rejected)]
        assert guilty == [3, 17]
        assert "this body is not allowed" in str(group.pendings[3].outcome)
        assert [(await broker.fetch("a", id_)).body for id_ in range(1, 19)] == delivered
        with pytest.raises(InvalidId):
            await broker.fetch("a", 19)


async def test_a_store_that_is_away_refuses_publishes_fetches_and_new_subscriptions(store: TrialStore) -> None:
    async with broker_on(store) as broker, broker.subscribe("a") as established:
        assert broker.store_away_s() == 0.0
        store.plan.append(persistence.StoreUnavailable("no route"))
        with pytest.raises(StorageUnavailable) as refused:
            await broker.publish("a", b"")
        assert refused.value.retryable
        with pytest.raises(StorageUnavailable):
            async with broker.subscribe("a"):
                raise AssertionError
        assert broker.store_away_s() >= 0.0
        assert await broker.publish("a", b"back") == 1
        assert broker.store_away_s() == 0.0
        assert (await established.receive()).body == b"back"


async def test_a_failing_read_is_told_and_makes_the_store_away(store: TrialStore) -> None:
    async def fail(keys: object) -> list:
        await trio.lowlevel.checkpoint()
        raise persistence.StoreUnavailable("no route")

    store.get = fail  # type: ignore[method-assign]
    async with broker_on(store) as broker:
        with pytest.raises(StorageUnavailable):
            await broker.fetch("a", 1)
        with pytest.raises(StorageUnavailable):
            broker.open_subscription("a")


async def test_the_probe_notices_what_nobody_called(store: TrialStore, autojump_clock: MockClock) -> None:
    async def fail() -> int:
        await trio.lowlevel.checkpoint()
        raise persistence.StoreUnavailable("no route")

    async with broker_on(store) as broker:
        await trio.sleep(5)
        assert broker.store_away_s() == 0.0
        store.now = fail  # type: ignore[method-assign]
        await trio.sleep(10)
        assert broker.store_away_s() >= 8
        del store.now
        await trio.sleep(3)
        assert broker.store_away_s() == 0.0


async def test_the_broker_sweeps(store: TrialStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, sweep_interval=1) as broker:
        await store.append([message(expiration_s=1) for _ in range(5000)])
        store.clock_us += 2_000_000
        await trio.sleep(3)
        assert await store.sweep() == persistence.Swept(0, more=False)
        assert await broker.publish("a", b"") == 5001


async def test_a_hanging_commit_is_answered_in_time(store: TrialStore, autojump_clock: MockClock) -> None:
    async with broker_on(store, commit_timeout=3) as broker, broker.subscribe("a") as messages:
        store.hold()
        with pytest.raises(OutcomeUnknown):
            await broker.publish("a", b"late")
        assert trio.current_time() == 3
        store.release()
        assert (await messages.receive()).body == b"late"


# cancellation


async def test_a_publish_cancelled_while_queued_is_not_applied(store: TrialStore) -> None:
    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1")
        await wait_all_tasks_blocked()
        queued = [Call(nursery, broker.publish, "a", b"%d" % number) for number in (2, 3, 4)]
        await wait_all_tasks_blocked()
        queued[1].scope.cancel()
        await wait_all_tasks_blocked()
        assert queued[1].ended == "cancelled"
        assert broker.committer.queued_messages == 2
        store.release()
        await wait_all_tasks_blocked()
        assert sorted([flying.ended, queued[0].ended, queued[2].ended]) == [1, 2, 3]
    assert len(store.applied) == 3
    assert b"3" not in [new.body for new in store.applied]


async def test_a_publish_cancelled_in_flight_stands_and_is_delivered(store: TrialStore) -> None:
    async with broker_on(store) as broker, broker.subscribe("a") as messages, trio.open_nursery() as nursery:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1", 60)
        await wait_all_tasks_blocked()
        flying.scope.cancel()
        await wait_all_tasks_blocked()
        assert flying.ended == "cancelled"
        store.release()
        assert (await messages.receive()).id == 1
        assert (await broker.fetch("a", 1)).body == b"1"


async def test_a_publish_in_a_cancelled_scope_is_not_applied(store: TrialStore) -> None:
    async with broker_on(store) as broker:
        with trio.CancelScope() as scope:
            scope.cancel()
            await broker.publish("a", b"never")
        assert scope.cancelled_caught
        assert await broker.publish("a", b"1") == 1
    assert [new.body for new in store.applied] == [b"1"]


async def test_cancelled_waits_leave_nothing_behind(store: TrialStore) -> None:
    never = trio.Event()

    async def hang(keys: object) -> list:
        await never.wait()
        return []

    async def iterate() -> None:
        async with broker.subscribe("a") as messages:
            await messages.receive()

    store.get = hang  # type: ignore[method-assign]
    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        calls = [Call(nursery, broker.fetch, "a", 1), Call(nursery, iterate)]
        await wait_all_tasks_blocked()
        assert (broker.subscribers, len(broker._reads)) == (1, 1)
        for call in calls:
            call.scope.cancel()
        await wait_all_tasks_blocked()
        assert [call.ended for call in calls] == ["cancelled"] * 2
        assert (broker.subscribers, len(broker._reads)) == (0, 0)


async def test_cancelling_the_block_of_a_broker_ends_everything(store: TrialStore) -> None:
    calls = []
    async with trio.open_nursery() as outside:
        with trio.CancelScope() as scope:
            async with broker_on(store) as broker:
                store.hold()
                calls.append(Call(outside, broker.publish, "a", b"1"))
                await wait_all_tasks_blocked()
                calls.append(Call(outside, broker.publish, "a", b"2"))
                await wait_all_tasks_blocked()
                store.release()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert [call.ended for call in calls] == [1, BrokerClosed]


# slow subscribers


async def test_a_slow_subscriber_ends_with_where_it_was_and_the_others_are_served(store: TrialStore) -> None:
    async with (
        broker_on(store, subscriber_messages=3) as broker,
        broker.subscribe("a") as slow,
        broker.subscribe("a") as quick,
    ):
        for number in range(10):
            await broker.publish("a", b"%d" % number)
            assert (await quick.receive()).id == number + 1
        seen = []
        with pytest.raises(SlowConsumer) as cut:
            async for got in slow:
                seen.append(got.id)  # noqa: PERF401  the reason comes after them
        assert seen == [1, 2, 3]
        assert cut.value.metadata == {"last_delivered_id": "3"}
        assert broker.subscribers == 1


# draining


async def test_draining_commits_delivers_and_then_ends_subscriptions(store: TrialStore) -> None:
    async with broker_on(store) as broker, trio.open_nursery() as nursery, broker.subscribe("a") as messages:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1", 60)
        await wait_all_tasks_blocked()
        queued = Call(nursery, broker.publish, "a", b"2", 60)
        await wait_all_tasks_blocked()
        draining = Call(nursery, broker.drain)
        await wait_all_tasks_blocked()
        assert draining.ended == "still waits"
        with pytest.raises(Draining):
            await broker.publish("a", b"late")
        with pytest.raises(Draining):
            await broker.publish("not valid either", b"late")
        with pytest.raises(Draining):
            async with broker.subscribe("a"):
                raise AssertionError
        store.release()
        assert [(await messages.receive()).body for _ in range(2)] == [b"1", b"2"]
        with pytest.raises(Draining):
            await messages.receive()
        await wait_all_tasks_blocked()
        assert [call.ended for call in (flying, queued, draining)] == [1, 2, None]
        assert (await broker.fetch("a", 2)).body == b"2"
        await broker.drain()
        await broker.close()
        await broker.drain()
        with pytest.raises(BrokerClosed):
            await broker.fetch("a", 2)


# closing


async def refused_calls(broker: Broker) -> list[object]:
    """Make every call; return how each was refused."""

    async def subscribe() -> None:
        async with broker.subscribe("a"):
            raise AssertionError

    async def open_subscription() -> None:
        await trio.lowlevel.checkpoint()
        broker.open_subscription("a")

    async def check() -> None:
        await trio.lowlevel.checkpoint()
        broker.check("a", b"", 0, None)

    async def hand_over() -> None:
        (pending,) = await broker.hand_over([message()], "me").settled()
        assert isinstance(pending.outcome, BrokerError)
        raise pending.outcome

    async with trio.open_nursery() as nursery:
        calls = [
            Call(nursery, broker.publish, "a", b""),
            Call(nursery, broker.publish, "not valid", b""),
            Call(nursery, broker.fetch, "a", 1),
            Call(nursery, broker.fetch_many, []),
            *(Call(nursery, call) for call in (subscribe, open_subscription, check, hand_over)),
        ]
    return [call.ended for call in calls]


async def test_after_close_every_call_is_refused(broker: Broker) -> None:
    await broker.publish("a", b"", 60)
    await broker.close()
    assert await refused_calls(broker) == [BrokerClosed] * 8
    await broker.close()
    assert await refused_calls(broker) == [BrokerClosed] * 8


async def test_leaving_the_block_closes(store: TrialStore) -> None:
    async with broker_on(store) as broker:
        pass
    assert await refused_calls(broker) == [BrokerClosed] * 8


async def test_close_ends_what_waits_and_finishes_what_is_in_flight(store: TrialStore) -> None:
    async def hang(keys: object) -> list:
        await trio.sleep_forever()
        return []

    store.get = hang  # type: ignore[method-assign]
    async with broker_on(store) as broker, trio.open_nursery() as nursery, broker.subscribe("a") as messages:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1", 60)
        await wait_all_tasks_blocked()
        queued = Call(nursery, broker.publish, "a", b"2", 60)
        reading = Call(nursery, broker.fetch, "a", 1)
        await wait_all_tasks_blocked()
        closing = [Call(nursery, broker.close) for _ in range(2)]
        await wait_all_tasks_blocked()
        assert [call.ended for call in (flying, queued, reading)] == ["still waits", BrokerClosed, BrokerClosed]
        assert [call.ended for call in closing] == ["still waits"] * 2
        store.release()
        assert (await messages.receive()).body == b"1"
        with pytest.raises(BrokerClosed):
            await messages.receive()
        await wait_all_tasks_blocked()
        assert [call.ended for call in (flying, *closing)] == [1, None, None]
        assert broker.subscribers == 0


async def test_close_ends_a_subscriber_that_waits(broker: Broker) -> None:
    async def listen() -> None:
        async with broker.subscribe("a") as messages:
            async for _ in messages:
                raise AssertionError

    async with trio.open_nursery() as nursery:
        listening = Call(nursery, listen)
        await wait_all_tasks_blocked()
        await broker.close()
    assert listening.ended == BrokerClosed


async def test_close_during_a_drain_ends_both(store: TrialStore) -> None:
    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1")
        await wait_all_tasks_blocked()
        queued = Call(nursery, broker.publish, "a", b"2")
        await wait_all_tasks_blocked()
        draining = Call(nursery, broker.drain)
        await wait_all_tasks_blocked()
        closing = Call(nursery, broker.close)
        await wait_all_tasks_blocked()
        store.release()
        await wait_all_tasks_blocked()
        assert [call.ended for call in (flying, queued, draining, closing)] == [1, BrokerClosed, None, None]


async def test_a_cancelled_close_has_closed(store: TrialStore) -> None:
    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        store.hold()
        flying = Call(nursery, broker.publish, "a", b"1")
        await wait_all_tasks_blocked()
        closing = Call(nursery, broker.close)
        await wait_all_tasks_blocked()
        closing.scope.cancel()
        with pytest.raises(BrokerClosed):
            await broker.publish("a", b"")
        store.release()
        await wait_all_tasks_blocked()
        assert (flying.ended, closing.ended) == (1, "cancelled")


async def test_an_error_of_the_block_leaves_as_it_is(store: TrialStore) -> None:
    cause = ValueError("why")
    with pytest.raises(KeyError) as raised:
        async with broker_on(store):
            raise KeyError("mine") from cause
    assert raised.value.__cause__ is cause

    with pytest.RaisesGroup(KeyError):
        async with broker_on(store):
            raise ExceptionGroup("mine too", [KeyError("mine")])


async def test_a_bug_in_the_broker_stops_it_loudly_and_leaves_nobody_waiting(store: TrialStore) -> None:
    calls = []
    async with trio.open_nursery() as outside:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with broker_on(store) as broker:
                broker.committer._deliver = lambda committed: 1 / 0
                store.hold()
                calls.append(Call(outside, broker.publish, "a", b"1"))
                await wait_all_tasks_blocked()
                calls.append(Call(outside, broker.publish, "a", b"2"))
                await wait_all_tasks_blocked()
                store.release()
                await trio.sleep_forever()
    assert [call.ended for call in calls] == [OutcomeUnknown, BrokerClosed]
    assert await refused_calls(broker) == [BrokerClosed] * 8


# the names of our packages


def run_python(cwd: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_a_foreign_module_named_persistence_gives_a_clear_error(tmp_path: Path) -> None:
    foreign = tmp_path / "persistence.py"
    foreign.write_text("raise AssertionError('it must not even be imported')")
    ran = run_python(tmp_path, "import trio_broker; trio_broker.open_broker")
    assert ran.returncode == 1
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("ImportError: the broker needs its own package 'persistence'")
    assert str(ROOT / "persistence" / "__init__.py") in error
    assert str(foreign) in error
    assert "Rename" in error


@pytest.mark.parametrize(
    "planted",
    [
        "import sys, types; sys.modules['persistence'] = types.ModuleType('persistence')",
        "import sys; sys.path.insert(0, 'elsewhere'); import persistence",
    ],
)
def test_a_foreign_module_that_is_imported_already_gives_it_too(tmp_path: Path, planted: str) -> None:
    package = tmp_path / "elsewhere" / "persistence"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    ran = run_python(tmp_path, f"{planted}; import trio_broker; trio_broker.Broker")
    assert "ImportError: the broker needs its own package 'persistence'" in ran.stderr


def test_a_client_may_have_a_module_named_persistence(tmp_path: Path) -> None:
    (tmp_path / "persistence.py").write_text("raise AssertionError('not ours')")
    ran = run_python(tmp_path, "import trio_broker; trio_broker.Message; import trio_broker.errors")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_our_own_packages_are_found(tmp_path: Path) -> None:
    code = (
        "from trio_broker.own_packages import require_own; require_own('persistence'); require_own('metrics'); "
        "require_own('no_such_package_at_all')"
    )
    assert run_python(tmp_path, code).stderr == ""
