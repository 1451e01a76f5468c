import random
from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from persistence import NO_HEADERS, Appended, NewMessage
from trio_broker import BrokerClosed, Draining, Message, SlowConsumer
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.fanout import TAIL, Fanout, Span
from trio_broker.start import SlowPolicy
from trio_broker.subscription import Messages, Subscription

FAIL = SlowPolicy.FAIL


def batch(subject: str, ids: Sequence[int], body: bytes = b"") -> Batch:
    return Batch([Message(subject, id_, body, NO_HEADERS, 0) for id_ in ids])


def fanout(**settings: int) -> Fanout:
    return Fanout(Config(**settings))


def buffered_ids(subscription: Subscription) -> list[int]:
    """Take what is buffered without waiting; return the ids."""
    ids: list[int] = []
    try:
        while True:
            ids += [message.id for message in subscription.receive_nowait().messages]
    except (trio.WouldBlock, trio.EndOfChannel):
        return ids


def test_a_batch_knows_its_ends_and_its_size() -> None:
    made = Batch([Message("a", 3, b"123", NO_HEADERS, 0), Message("a", 4, b"", {"né": b"12"}, 0)])
    assert (made.subject, made.first_id, made.last_id, made.size_bytes, made.wire) == ("a", 3, 4, 3 + 3 + 2, None)
    assert "3..4" in repr(made)


# delivery


def test_each_subscriber_of_the_subject_gets_the_same_batch_and_nobody_else_does() -> None:
    hub = fanout()
    with hub.subscribe("a") as one, hub.subscribe("a") as two, hub.subscribe("b") as other:
        sent = batch("a", [1, 2])
        assert hub.publish(sent) == 2
        assert one.receive_nowait() is sent
        assert two.receive_nowait() is sent
        with pytest.raises(trio.WouldBlock):
            other.receive_nowait()
        assert hub.publish(batch("nobody", [1])) == 0


def test_a_subscriber_gets_nothing_from_before_and_nothing_after() -> None:
    hub = fanout()
    hub.publish(batch("a", [1]))
    with hub.subscribe("a") as subscription:
        hub.publish(batch("a", [2]))
        assert buffered_ids(subscription) == [2]
        hub.publish(batch("a", [3]))
    with pytest.raises(trio.ClosedResourceError):
        subscription.receive_nowait()


def test_one_commit_is_one_batch_per_subject_that_somebody_listens_to() -> None:
    hub = fanout()
    committed = [
        (NewMessage(subject, b"%d" % number, 60, {"n": b"1"}), Appended(number, 1_000_000 + number))
        for number, subject in zip((1, 1, 1, 2, 2), "abcab", strict=True)
    ]
    hub.deliver(committed)  # to nobody
    with hub.subscribe("a") as a, hub.subscribe("b") as b:
        hub.deliver(committed)
        assert a.receive_nowait().messages == [
            Message("a", 1, b"1", {"n": b"1"}, 1_000_001),
            Message("a", 2, b"2", {"n": b"1"}, 1_000_002),
        ]
        assert [message.id for message in b.receive_nowait().messages] == [1, 2]
        assert buffered_ids(a) == buffered_ids(b) == []


async def test_what_another_broker_appended_in_several_commits_hides_nothing_between_them() -> None:
    """Ids 3 and 4 are another publisher's, and come by that broker's stream."""
    both = Fanout(Config.model_construct(subscriber_messages=8, subscriber_bytes=1000), shared=True)
    subscription = both.subscribe("a", Span(after_id=0, end_id=0, live=True))
    new = NewMessage("a", b"", None, NO_HEADERS)
    both.deliver([(new, Appended(id_, 0)) for id_ in (1, 2, 5, 6)], told={"a"})
    await trio.lowlevel.checkpoint()
    assert buffered_ids(subscription) == [1, 2]
    both.arrive(batch("a", [3, 4]), [None, None], TAIL)
    assert buffered_ids(subscription) == [3, 4, 5, 6]


def test_wake_is_called_after_each_batch_and_after_the_end() -> None:
    hub = fanout()
    with hub.subscribe("a") as subscription:
        woken: list[object] = []
        subscription.wake = lambda: woken.append(buffered_ids(subscription) or subscription.error)
        hub.publish(batch("a", [1, 2]))
        hub.publish(batch("a", [3]))
        subscription.end(error := Draining("stopping"))
        subscription.end(BrokerClosed("a second end changes nothing"))
        assert woken == [[1, 2], [3], error]


def test_a_wake_may_close_any_subscription() -> None:
    hub = fanout()
    one, two, three = (hub.subscribe("a") for _ in range(3))

    def close_two() -> None:
        one.close()
        two.close()

    one.wake = close_two
    assert hub.publish(batch("a", [1])) == 2  # the first took it before it was closed
    assert buffered_ids(three) == [1]
    assert hub.count == 1
    three.close()
    assert (hub.count, hub._by_subject) == (0, {})


def test_a_wake_that_fails_is_logged_and_reaches_nobody_else() -> None:
    hub = fanout()
    with hub.subscribe("a") as broken, hub.subscribe("a") as sound:
        broken.wake = lambda: 1 / 0  # type: ignore[assignment,return-value]
        with capture_logs() as logs:
            assert hub.publish(batch("a", [1])) == 2
            hub.end_all(Draining("stopping"))
        assert [entry["event"] for entry in logs] == ["wake_failed"] * 2
        assert buffered_ids(sound) == [1]
        assert isinstance(sound.error, Draining)


# slow subscribers


def test_a_full_subscriber_is_cut_and_the_others_are_served() -> None:
    hub = fanout(subscriber_messages=3)
    with hub.subscribe("a", slow=FAIL) as slow, hub.subscribe("a", slow=FAIL) as quick:
        hub.publish(batch("a", [1, 2]))
        assert buffered_ids(quick) == [1, 2]
        assert hub.publish(batch("a", [3, 4])) == 1
        assert hub.publish(batch("a", [5])) == 1  # it would fit, but must not leave a gap
        assert hub.count == 1
        assert buffered_ids(quick) == [3, 4, 5]
        assert buffered_ids(slow) == [1, 2]
        with pytest.raises(trio.EndOfChannel):
            slow.receive_nowait()
        assert isinstance(slow.error, SlowConsumer)
        assert slow.error.metadata == {"last_delivered_id": "2"}
        assert slow.last_delivered_id == 2
        assert quick.error is None


def test_the_bound_in_messages_is_exact() -> None:
    hub = fanout(subscriber_messages=3)
    with hub.subscribe("a", slow=FAIL) as subscription:
        hub.publish(batch("a", [1]))
        hub.publish(batch("a", [2, 3]))
        assert subscription.buffered_messages == 3
        assert subscription.error is None
        assert hub.publish(batch("a", [4])) == 0
        assert isinstance(subscription.error, SlowConsumer)


def test_the_bound_in_bytes_is_exact() -> None:
    hub = fanout(subscriber_bytes=10)
    with hub.subscribe("a", slow=FAIL) as subscription:
        hub.publish(batch("a", [1], b"1234"))
        hub.publish(batch("a", [2], b"123456"))
        assert subscription.buffered_bytes == 10
        assert hub.publish(batch("a", [3], b"")) == 1  # it has no bytes
        assert hub.publish(batch("a", [4], b"1")) == 0
        assert buffered_ids(subscription) == [1, 2, 3]
        assert (subscription.buffered_messages, subscription.buffered_bytes) == (0, 0)


def test_an_empty_buffer_takes_any_batch() -> None:
    hub = fanout(subscriber_messages=2, subscriber_bytes=10)
    with hub.subscribe("a", slow=FAIL) as subscription:
        for ids, body in (([1, 2, 3], b""), ([4], b"x" * 11)):
            assert hub.publish(batch("a", ids, body)) == 1
            assert buffered_ids(subscription) == ids
        hub.publish(batch("a", [5, 6, 7]))
        assert hub.publish(batch("a", [8])) == 0


def test_receiving_makes_room_again() -> None:
    hub = fanout(subscriber_messages=2)
    with hub.subscribe("a", slow=FAIL) as subscription:
        for id_ in range(1, 100, 2):
            assert hub.publish(batch("a", [id_])) == 1
            assert hub.publish(batch("a", [id_ + 1])) == 1
            assert buffered_ids(subscription) == [id_, id_ + 1]
            assert subscription.last_delivered_id == id_ + 1


def test_a_subscriber_that_is_cut_before_it_read_anything_was_given_what_it_buffered() -> None:
    hub = fanout(subscriber_messages=1)
    with hub.subscribe("a", slow=FAIL) as subscription:
        hub.publish(batch("a", [41]))
        hub.publish(batch("a", [42]))
        assert subscription.last_delivered_id == 0
        assert subscription.error is not None
        assert subscription.error.metadata == {"last_delivered_id": "41"}


# unsubscribing


def test_a_subscription_that_ends_leaves_no_trace() -> None:
    hub = fanout(subscriber_messages=1)
    left, cut, closed = (hub.subscribe(subject, slow=FAIL) for subject in ("left", "cut", "closed"))
    assert hub.count == 3
    with left:
        pass
    hub.publish(batch("cut", [1]))
    hub.publish(batch("cut", [2]))
    closed.close()
    closed.close()
    assert (hub.count, hub._by_subject) == (0, {})
    cut.close()
    left.close()
    assert (hub.count, hub._by_subject) == (0, {})


def test_a_thousand_random_subscriptions_come_and_go() -> None:
    dice = random.Random(1)
    hub = fanout(subscriber_messages=4)
    open_now: list[Subscription] = []
    last_ids: Counter[str] = Counter()
    for _ in range(1000):
        open_now.append(hub.subscribe(dice.choice("abcdef"), slow=FAIL))
        if dice.random() < 0.5:
            open_now.pop(dice.randrange(len(open_now))).close()
        subject = dice.choice("abcdef")
        listening = [one for one in open_now if one.subject == subject and one.error is None]
        last_ids[subject] += 1
        taken = hub.publish(batch(subject, [last_ids[subject]]))
        assert taken == len([one for one in listening if one.error is None])
        assert hub.count == len([one for one in open_now if one.error is None])
    dice.shuffle(open_now)
    for subscription in open_now:
        subscription.close()
    assert (hub.count, hub._by_subject) == (0, {})


def test_ending_all_drains_what_is_buffered_and_gives_each_an_error_of_its_own() -> None:
    hub = fanout()
    subscriptions = [hub.subscribe(subject) for subject in "aab"]
    hub.publish(batch("a", [1]))
    hub.end_all(Draining("the broker is stopping"))
    assert (hub.count, hub._by_subject) == (0, {})
    assert [buffered_ids(one) for one in subscriptions] == [[1], [1], []]
    errors = [one.error for one in subscriptions]
    assert [(type(error), str(error)) for error in errors] == [(Draining, "the broker is stopping")] * 3
    assert len({id(error) for error in errors}) == 3
    for subscription in subscriptions:
        subscription.close()


# waiting


async def test_receive_waits_for_a_batch_and_for_the_end() -> None:
    hub = fanout(subscriber_messages=1)
    with hub.subscribe("a") as subscription:
        got: list[int] = []

        async def read() -> None:
            with pytest.raises(trio.EndOfChannel):
                while True:
                    got.append((await subscription.receive()).last_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            hub.publish(batch("a", [1]))
            await wait_all_tasks_blocked()
            assert got == [1]
            assert (subscription.buffered_messages, subscription.last_delivered_id) == (0, 1)
            hub.end_all(Draining("stopping"))


async def test_a_batch_on_its_way_to_a_waiting_reader_counts_as_buffered() -> None:
    hub = fanout(subscriber_messages=1)
    with hub.subscribe("a") as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.receive)
            await wait_all_tasks_blocked()
            assert hub.publish(batch("a", [1])) == 1
            assert hub.publish(batch("a", [2])) == 0


@pytest.mark.parametrize("slow", [SlowPolicy.CATCH_UP, SlowPolicy.DROP_OLDEST])
async def test_a_batch_on_its_way_to_a_waiting_reader_can_still_be_dropped(slow: SlowPolicy) -> None:
    hub = fanout(subscriber_messages=2)
    got: list[Batch] = []

    async def read() -> None:
        got.append(await subscription.receive())

    with hub.subscribe("a", slow=slow) as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            hub.publish(batch("a", [1, 2]))
            subscription.drop()
            assert (subscription.buffered_messages, subscription.last_delivered_id) == (0, 0)
            if slow is SlowPolicy.DROP_OLDEST:
                hub.publish(batch("a", [3]))
                hub.publish(batch("a", [4, 5]))  # there is no room for all three
                await wait_all_tasks_blocked()
                assert [each.first_id for each in got] == [4]
            nursery.cancel_scope.cancel()


async def test_closing_a_subscription_wakes_its_waiting_reader() -> None:
    hub = fanout()
    with hub.subscribe("a") as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed_while_reading, subscription)
            await wait_all_tasks_blocked()
            subscription.close()


async def closed_while_reading(subscription: Subscription) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await subscription.receive()


async def test_a_cancelled_reader_loses_nothing() -> None:
    hub = fanout()
    with hub.subscribe("a") as subscription:
        messages = Messages(subscription)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(messages.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        hub.publish(batch("a", [1, 2]))
        for _ in range(2):
            with trio.CancelScope() as scope:
                scope.cancel()
                await messages.receive()
            assert scope.cancelled_caught
        assert [(await messages.receive()).id for _ in range(2)] == [1, 2]


async def test_messages_come_one_by_one_and_then_the_reason_of_the_end() -> None:
    hub = fanout(subscriber_messages=3)
    with hub.subscribe("a", slow=FAIL) as subscription:
        hub.publish(batch("a", [1, 2]))
        hub.publish(batch("a", [3]))
        hub.publish(batch("a", [4]))
        seen = []
        with pytest.raises(SlowConsumer) as cut:
            async for message in Messages(subscription):
                seen.append(message.id)  # noqa: PERF401  the reason comes after them
        assert seen == [1, 2, 3]
        assert cut.value.metadata == {"last_delivered_id": "3"}


async def test_receiving_a_message_is_a_checkpoint_also_within_a_batch() -> None:
    hub = fanout()
    with hub.subscribe("a") as subscription:
        messages = Messages(subscription)
        hub.publish(batch("a", [1, 2]))
        for expected in (1, 2):
            with assert_checkpoints():
                assert (await messages.receive()).id == expected
