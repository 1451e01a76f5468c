from trio_broker import SlowConsumer
from trio_broker.batch import Batch
from trio_broker.config import Config
from trio_broker.fanout import Fanout
from trio_broker.message import Message
from trio_broker.start import SlowPolicy
from trio_broker.subscription import Messages

Told = list[tuple[int, int]]


def batch(id_: int, body: bytes = b"12345") -> Batch:
    return Batch([Message("a", id_, body, {}, 0)])


def watched(**settings: object) -> tuple[Fanout, Told]:
    """A fan-out, and what it tells: the first id of a batch, and how many took it."""
    fanout = Fanout(Config(**settings))
    told: Told = []
    fanout.deliveries.on_delivered = lambda batch, takers, lag_s: told.append((batch.first_id, takers))
    return fanout, told


async def test_a_batch_is_told_once_with_all_that_have_taken_it() -> None:
    fanout, told = watched()
    with fanout.subscribe("a") as one, fanout.subscribe("a") as two, fanout.subscribe("a") as late:
        fanout.publish(batch(1))
        fanout.publish(batch(2))
        for subscription in (one, two):
            subscription.receive_nowait()
        one.receive_nowait()
        assert told == []
        fanout.deliveries.settle()
        assert told == [(1, 2), (2, 1)]
        late.receive_nowait()
        fanout.deliveries.settle()
        fanout.deliveries.settle()
        assert told == [(1, 2), (2, 1), (1, 1)]


async def test_who_iterates_in_this_process_counts_at_once() -> None:
    fanout, told = watched()
    with fanout.subscribe("a") as subscription:
        fanout.publish(batch(1))
        await Messages(subscription).receive()
        assert told == [(1, 1)]


async def test_what_is_dropped_unread_is_not_delivered() -> None:
    fanout, told = watched()
    with fanout.subscribe("a"):
        fanout.publish(batch(1))
    fanout.deliveries.settle()
    assert told == []


async def test_what_waits_and_how_full_the_fullest_buffer_is() -> None:
    fanout, _ = watched(subscriber_messages=4, subscriber_bytes=100)
    assert fanout.buffered() == (0, 0, 0.0)
    with fanout.subscribe("a") as one, fanout.subscribe("a"):
        fanout.publish(batch(1))
        fanout.publish(batch(2))
        assert fanout.buffered() == (4, 20, 0.5)
        one.receive_nowait()
        assert fanout.buffered() == (3, 15, 0.5)
        assert (fanout.subscribers_of("a"), fanout.subscribers_of("b")) == (2, 0)
        fanout.publish(batch(3, b"x" * 70))
        assert fanout.buffered().fill_ratio == 0.8


async def test_subscriptions_that_are_cut_are_counted_and_others_that_end_are_not() -> None:
    fanout, _ = watched(subscriber_messages=1)
    with fanout.subscribe("a", slow=SlowPolicy.FAIL) as slow, fanout.subscribe("b"):
        fanout.publish(batch(1))
        fanout.publish(batch(2))
        assert isinstance(slow.error, SlowConsumer)
    assert fanout.slow_consumers == 1
