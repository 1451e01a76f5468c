"""What the oracle finds wrong: each of these has to fail."""

from collections.abc import Callable

import pytest

from trio_broker import Gap, Message

from .clients import Subscriber, Told
from .cluster import Cluster
from .oracle import check_log, check_subscriber

LOG = {1: b"one", 2: b"two", 4: b"four"}
UNKEPT = {3: b"three"}


@pytest.fixture
def told() -> Told:
    return Told(kept=dict(LOG), unkept=dict(UNKEPT), sent={*LOG.values(), *UNKEPT.values()})


@pytest.fixture
def subscriber() -> Subscriber:
    """One that was told of all there is."""
    subscriber = Subscriber(Cluster.__new__(Cluster), 0, "orders")
    for id_ in (1, 2):
        subscriber.take(message(id_))
    subscriber.take(gap(3, 3))
    subscriber.take(message(4))
    return subscriber


def message(id_: int) -> Message:
    return Message("orders", id_, (LOG | UNKEPT).get(id_, b"?"), {}, 0)


def gap(first_id: int, last_id: int) -> Gap:
    return Gap("orders", first_id, last_id, "unavailable")


def test_what_is_as_it_was_told_is_right(told: Told, subscriber: Subscriber) -> None:
    check_log("orders", told, LOG, 4)
    check_subscriber(subscriber, told, LOG)


@pytest.mark.parametrize(
    ("log", "last_id"),
    [
        ({1: b"one", 4: b"four"}, 4),  # lost
        (LOG | {2: b"four", 4: b"two"}, 4),
        (LOG | UNKEPT, 4),
        (LOG, 3),  # of less than was told
        (LOG | {5: b"unheard of"}, 5),
        (LOG | {5: b"two"}, 5),  # twice
    ],
)
def test_a_log_that_is_not_what_was_told(told: Told, log: dict[int, bytes], last_id: int) -> None:
    with pytest.raises(AssertionError):
        check_log("orders", told, log, last_id)


def test_what_was_sent_again_without_a_key_may_be_there_twice(told: Told) -> None:
    told.twice.add(b"two")
    check_log("orders", told, LOG | {5: b"two"}, 5)


@pytest.mark.parametrize("item", [message(4), message(6), gap(4, 5), gap(6, 7)])
def test_a_stream_that_does_not_go_on_where_it_was(subscriber: Subscriber, item: Message | Gap) -> None:
    with pytest.raises(AssertionError, match="follows 4"):
        subscriber.take(item)


@pytest.mark.parametrize(
    "change",
    [
        lambda received: received.pop(2),  # a gap that covers what is kept
        lambda received: received.update({2: b"four"}),
        lambda received: received.update({3: b"another one"}),
        lambda received: received.update({3: b"unheard of"}),
    ],
)
def test_a_subscriber_that_was_told_something_else(
    told: Told, subscriber: Subscriber, change: Callable[[dict[int, bytes]], object]
) -> None:
    change(subscriber.received)
    with pytest.raises(AssertionError):
        check_subscriber(subscriber, told, LOG)
