from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from broker_kit import Call, broker_on
from trial_store import START_US, TrialStore
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import persistence
from persistence import Key
from trio_broker import (
    Broker,
    BrokerError,
    CannotOpen,
    ExpiredId,
    InvalidExpiration,
    InvalidHeaders,
    InvalidId,
    InvalidSubject,
    Message,
    MessageTooLarge,
    Overloaded,
    SlowConsumer,
    SlowPolicy,
    open_broker,
)
from trio_broker.config import BODY_MAX_BYTES


@pytest.fixture(params=["memory:", "sqlite"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Broker]:
    """A broker on each embedded store."""
    url = f"sqlite:///{tmp_path}/broker.db" if request.param == "sqlite" else request.param
    async with open_broker(url) as opened:
        yield opened


@pytest.fixture
def store() -> TrialStore:
    return TrialStore()


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
        with pytest.raises(CannotOpen, match="broker"):
            async with open_broker(url):
                raise AssertionError
    async with open_broker(url):
        pass


async def test_a_store_that_cannot_be_opened_is_one_of_the_brokers_errors() -> None:
    with pytest.raises(BrokerError, match="no store is called 'mysql'") as refused:
        async with open_broker("mysql:"):
            raise AssertionError
    assert (refused.value.reason, refused.value.retryable) == ("CANNOT_OPEN", False)
    assert isinstance(refused.value.__cause__, persistence.CannotOpen)


async def test_publishes_of_many_tasks_share_an_append(store: TrialStore) -> None:
    ids: list[int] = []

    async def publish() -> None:
        ids.append(await broker.publish("a", b"x", 3600))

    async with broker_on(store) as broker, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(publish)
    assert sorted(ids) == list(range(1, 101))
    assert [len(batch) for batch in store.appends] == [100]


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


async def test_what_is_just_within_the_limits_is_published(broker: Broker) -> None:
    assert await broker.publish("x" * 255, b"x" * BODY_MAX_BYTES, 2**31 - 1) == 1
    many = {f"{n:02}": b"" for n in range(63)} | {"é": b"x" * (16 * 1024 - 63 * 2 - 2)}
    assert await broker.publish("a", b"", None, headers=many) == 1
    assert (await broker.fetch("a", 1)).headers == many


async def test_bad_subjects_and_ids_are_refused_everywhere(broker: Broker) -> None:
    with pytest.raises(InvalidSubject):
        await broker.fetch("a..b", 1)
    with pytest.raises(InvalidSubject):
        async with broker.subscribe("a.*"):
            raise AssertionError
    with pytest.raises(TypeError, match="an id is an int, not str"):
        await broker.fetch("a", "1")  # type: ignore[arg-type]


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


async def test_a_refusal_carries_the_limit_for_programs(store: TrialStore) -> None:
    async with broker_on(store, body_max_bytes=10) as broker:
        with pytest.raises(MessageTooLarge) as refused:
            await broker.publish("a", b"x" * 11)
        assert refused.value.metadata == {"size": "11", "limit": "10"}


async def test_a_store_may_keep_less_than_the_settings_allow(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = store.limits()._replace(body_max_bytes=5)
    monkeypatch.setattr(store, "limits", lambda: limits)
    async with broker_on(store) as broker:
        await broker.publish("a", b"x" * 5)
        with pytest.raises(MessageTooLarge, match="at most 5 are accepted"):
            await broker.publish("a", b"x" * 6)


async def test_beyond_the_queue_publishes_are_refused(store: TrialStore) -> None:
    async with broker_on(store, queue_messages=4) as broker, trio.open_nursery() as nursery:
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


# slow subscribers


async def test_a_slow_subscriber_ends_with_where_it_was_and_the_others_are_served(store: TrialStore) -> None:
    async with (
        broker_on(store, subscriber_messages=3) as broker,
        broker.subscribe("a", slow=SlowPolicy.FAIL) as slow,
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
