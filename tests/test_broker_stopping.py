from pathlib import Path

import pytest
import trio
from broker_kit import Call, broker_on
from trial_store import TrialStore, message
from trio.testing import wait_all_tasks_blocked

from trio_broker import (
    Broker,
    BrokerClosed,
    BrokerError,
    Draining,
    OutcomeUnknown,
    open_broker,
)


@pytest.fixture
def store() -> TrialStore:
    return TrialStore()


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
        assert (broker.subscribers, len(broker._reading._reads)) == (1, 1)
        for call in calls:
            call.scope.cancel()
        await wait_all_tasks_blocked()
        assert [call.ended for call in calls] == ["cancelled"] * 2
        assert (broker.subscribers, len(broker._reading._reads)) == (0, 0)


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


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{}/broker.db"])
async def test_after_close_every_call_is_refused(url: str, tmp_path: Path) -> None:
    async with open_broker(url.format(tmp_path)) as broker:
        await broker.publish("a", b"", 60)
        await broker.close()
        assert await refused_calls(broker) == [BrokerClosed] * 8
        await broker.close()
        assert await refused_calls(broker) == [BrokerClosed] * 8
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


async def test_close_ends_a_subscriber_that_waits(store: TrialStore) -> None:
    async def listen() -> None:
        async with broker.subscribe("a") as messages:
            async for _ in messages:
                raise AssertionError

    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        listening = Call(nursery, listen)
        await wait_all_tasks_blocked()
        await broker.close()
        await wait_all_tasks_blocked()
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
