"""What waits for all subscribers together is counted once, bounded, and let go by cutting those farthest behind."""

from persistence import NO_HEADERS, Appended, NewMessage
from trio_broker.batch import OVERHEAD_BYTES
from trio_broker.config import Config
from trio_broker.errors import SlowConsumer
from trio_broker.fanout import Fanout
from trio_broker.start import SlowPolicy
from trio_broker.subscription import Subscription

FAIL = SlowPolicy.FAIL

BODY = bytes(10_000)
EACH = 2 * len(BODY) + OVERHEAD_BYTES
"""What a message of that body takes, with its wire bytes."""


def deliver(hub: Fanout, subject: str, id_: int, body: bytes = BODY) -> None:
    hub.deliver([(NewMessage(subject, body, 0, NO_HEADERS), Appended(id_, 0))])


def cut_at(subscription: Subscription) -> int:
    """It was cut, and has nothing more; return what it says was delivered last."""
    assert isinstance(subscription.error, SlowConsumer)
    assert subscription.buffered_messages == subscription.buffered_bytes == 0
    return int(subscription.error.metadata["last_delivered_id"])


def test_a_batch_is_counted_once_and_as_long_as_anybody_holds_it() -> None:
    hub = Fanout(Config())
    with hub.subscribe("a") as one, hub.subscribe("a") as two:
        deliver(hub, "a", 1)
        deliver(hub, "nobody", 1)
        assert hub.backlog.bytes == EACH
        one.receive_nowait()
        assert hub.backlog.bytes == EACH
        two.sending = two.receive_nowait()
        hub.deliveries.settle()
        assert hub.backlog.bytes == EACH
        two.sending = None
        assert hub.backlog.bytes == 0
        deliver(hub, "a", 2)
        assert hub.backlog.bytes == EACH
    assert hub.backlog.bytes == 0


def test_small_messages_are_counted_by_what_they_take_as_objects() -> None:
    hub = Fanout(Config())
    with hub.subscribe("a"):
        deliver(hub, "a", 1, b"")
        assert hub.backlog.bytes == OVERHEAD_BYTES


def test_beyond_the_bound_those_farthest_behind_are_cut_and_what_waits_for_them_is_dropped() -> None:
    hub = Fanout(Config(), backlog_max_bytes=10 * EACH)
    with (
        hub.subscribe("far", slow=FAIL) as far,
        hub.subscribe("near", slow=FAIL) as near,
        hub.subscribe("quick", slow=FAIL) as quick,
    ):
        for id_ in range(1, 8):
            deliver(hub, "far", id_)
        far.receive_nowait()
        hub.deliveries.settle()
        for id_ in range(1, 4):
            deliver(hub, "near", id_)
        deliver(hub, "quick", 1)
        assert (far.error, hub.backlog.bytes) == (None, 10 * EACH)
        deliver(hub, "quick", 2)
        assert cut_at(far) == 1
        assert near.buffered_messages == 3
        assert quick.buffered_messages == 2
        assert hub.backlog.bytes == 5 * EACH
        assert hub.slow_consumers == 1


def test_who_was_cut_before_and_still_has_something_is_cut_short() -> None:
    hub = Fanout(Config(subscriber_messages=5), backlog_max_bytes=6 * EACH)
    with hub.subscribe("far", slow=FAIL) as far, hub.subscribe("near", slow=FAIL) as near:
        for id_ in range(1, 7):
            deliver(hub, "far", id_)
        assert isinstance(far.error, SlowConsumer)
        assert far.buffered_messages == 5
        deliver(hub, "near", 1)
        deliver(hub, "near", 2)
        assert cut_at(far) == 0
        assert near.buffered_messages == 2


def test_what_is_being_sent_is_dropped_too() -> None:
    hub = Fanout(Config())
    subscription = hub.subscribe("a")
    dropped = []

    def drop() -> None:
        dropped.append(subscription.error)
        subscription.close()

    subscription.dropped = drop
    deliver(hub, "a", 1)
    subscription.sending = subscription.receive_nowait()
    hub.deliveries.settle()
    hub.cut_farthest_behind(0)
    assert dropped == [subscription.error]
    assert hub.backlog.bytes == 0


def test_one_for_whom_nothing_waits_is_left_alone() -> None:
    hub = Fanout(Config())
    with hub.subscribe("a") as idle, hub.subscribe("b") as behind:
        deliver(hub, "b", 1)
        held = behind.receive_nowait()
        hub.deliveries.settle()
        hub.cut_farthest_behind(0)
        assert (idle.error, behind.error) == (None, None)
        assert hub.backlog.bytes == EACH, "nobody that could be cut holds it"
        del held


def test_closing_twice_and_after_the_end_forgets_it() -> None:
    hub = Fanout(Config(), backlog_max_bytes=EACH)
    subscription = hub.subscribe("a")
    deliver(hub, "a", 1)
    deliver(hub, "a", 2)
    subscription.close()
    subscription.close()
    hub.cut_farthest_behind(0)
    assert (hub.count, hub.backlog.bytes) == (0, 0)
