"""Idempotency keys and expected last ids through the broker: who publishes twice gets one id, and is heard once."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from broker_kit import broker_on
from trial_store import TrialStore

import persistence
from trio_broker import Broker, BrokerError, Conflict, InvalidKey, OutcomeUnknown, open_broker
from trio_broker.validation import KEY_MAX_BYTES


@pytest.fixture(params=["memory:", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Broker]:
    """A broker on each embedded store."""
    url = f"sqlite:///{tmp_path}/broker.db" if request.param == "sqlite" else request.param
    async with open_broker(url) as opened:
        yield opened


async def test_a_publish_that_is_repeated_with_its_key_gets_the_same_id_and_is_delivered_once(broker: Broker) -> None:
    async with broker.subscribe("orders") as messages:
        assert await broker.publish("orders", b"1", 60, idempotency_key="k") == 1
        assert await broker.publish("orders", b"2", 60, idempotency_key="k") == 1
        assert await broker.publish("orders", b"3", 60) == 2
        assert [(await messages.receive()).body for _ in range(2)] == [b"1", b"3"]
    assert (await broker.fetch("orders", 1)).body == b"1"


async def test_of_many_at_once_with_one_key_one_is_published(broker: Broker) -> None:
    ids: list[int] = []

    async def publish() -> None:
        ids.append(await broker.publish("orders", b"x", idempotency_key="k"))

    with broker.open_subscription("orders") as subscription:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(publish)
        assert subscription.buffered_messages == 1
    assert ids == [1] * 20


async def test_a_publish_after_another_last_id_than_expected_is_a_conflict(broker: Broker) -> None:
    assert await broker.publish("orders", b"1", 60, expected_last_id=0) == 1
    with pytest.raises(Conflict, match="the last id of 'orders' is 1, and not 0; nothing was appended") as conflict:
        await broker.publish("orders", b"2", 60, expected_last_id=0)
    assert (conflict.value.reason, conflict.value.retryable) == ("CONFLICT", False)
    assert conflict.value.metadata == {"last_id": "1"}
    assert await broker.publish("orders", b"3", 60, expected_last_id=1) == 2


async def test_of_many_at_once_after_one_id_one_is_published(broker: Broker) -> None:
    ids: list[int] = []
    conflicts: list[str] = []

    async def publish() -> None:
        try:
            ids.append(await broker.publish("orders", b"x", expected_last_id=0))
        except Conflict as conflict:
            conflicts.append(conflict.metadata["last_id"])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(publish)
    assert ids == [1]
    assert conflicts == ["1"] * 9


async def test_a_publish_of_unknown_outcome_may_be_repeated_with_its_key() -> None:
    store = TrialStore()
    async with broker_on(store) as broker:

        def lose(_outcomes: list[persistence.Outcome]) -> list[persistence.Outcome]:
            raise persistence.OutcomeUnknown("the answer was lost")

        store.plan.append(lose)
        with pytest.raises(OutcomeUnknown):
            await broker.publish("orders", b"x", 60, idempotency_key="k")
        assert await broker.publish("orders", b"x", 60, idempotency_key="k") == 1
        assert await broker.publish("orders", b"y", 60) == 2


@pytest.mark.parametrize("key", ["k" * (KEY_MAX_BYTES + 1), "é" * 128, "\ud800"], ids=["bytes", "UTF-8", "surrogate"])
async def test_a_key_that_is_too_long_or_no_text_is_refused(broker: Broker, key: str) -> None:
    with pytest.raises(InvalidKey) as refused:
        await broker.publish("orders", b"x", idempotency_key=key)
    assert refused.value.field == "idempotency_key"
    if key[0] != "\ud800":
        assert refused.value.metadata == {"size": str(len(key.encode())), "limit": "255"}
    assert await broker.publish("orders", b"x", idempotency_key="k" * KEY_MAX_BYTES) == 1


async def test_what_is_of_another_type_is_a_mistake(broker: Broker) -> None:
    with pytest.raises(TypeError, match="an idempotency key is a str, not bytes"):
        await broker.publish("orders", b"x", idempotency_key=b"k")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an id is an int, not str"):
        await broker.publish("orders", b"x", expected_last_id="1")  # type: ignore[arg-type]


async def test_a_conflict_is_one_of_the_brokers_errors_and_leaves_the_store_there(broker: Broker) -> None:
    with pytest.raises(BrokerError):
        await broker.publish("orders", b"x", expected_last_id=7)
    assert broker.store_away_s() == 0
