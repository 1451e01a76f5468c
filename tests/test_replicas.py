"""Brokers on one log that stream to each other what they commit."""

from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from postgres_kit import until
from replicas_kit import linked, replica
from structlog.testing import capture_logs

from trio_broker import Broker
from trio_broker.fanout import COMMIT, POLL, TAIL, WAKEUP
from trio_broker.replicas import links
from trio_broker.rpc.listeners import listen_tcp


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


async def test_what_one_commits_is_streamed_to_the_others(url: str) -> None:
    async with linked(url, 3) as ((ours, theirs, _), _), ours.subscribe("a") as messages:
        await ours.publish("b", b"nobody listens to this", None)
        with trio.fail_after(10):
            for id_ in range(1, 51):
                assert await theirs.publish("a", b"%d" % id_, None, headers={"n": b"%d" % id_}) == id_
                message = await messages.receive()
                assert (message.id, message.body, message.headers) == (id_, b"%d" % id_, {"n": b"%d" % id_})
        learned = ours.fanout.learned
        assert learned[TAIL] > 0, learned
        assert learned[COMMIT] == 0


async def test_all_at_once_keep_the_order_of_ids(url: str) -> None:
    async with linked(url, 3) as (brokers, _), AsyncExitStack() as stack, trio.open_nursery() as nursery:
        listeners = [await stack.enter_async_context(broker.subscribe("a")) for broker in brokers]

        async def publish(broker: Broker) -> None:
            for n in range(200):
                await broker.publish("a", b"%d" % n, None if n % 3 else 60)

        with trio.fail_after(60):
            for broker in brokers:
                nursery.start_soon(publish, broker)
            for messages in listeners:
                assert [(await messages.receive()).id for _ in range(600)] == list(range(1, 601))
        learned = brokers[0].fanout.learned
        assert learned[TAIL] > 0, learned
        assert learned[COMMIT] > 0, learned
        assert not any(broker.fanout.gaps[reason] for broker in brokers for reason in broker.fanout.gaps)


async def test_what_is_not_to_be_kept_crosses_too(url: str) -> None:
    async with linked(url, 2) as ((ours, theirs), _), ours.subscribe("a") as messages:
        with trio.fail_after(10):
            for id_ in range(1, 11):
                assert await theirs.publish("a", b"x") == id_
                assert (await messages.receive()).id == id_


async def test_without_links_the_store_tells(url: str) -> None:
    async with linked(url, 2) as ((ours, theirs), replicas), ours.subscribe("a") as messages:
        for each in replicas:
            for link in each.links.values():
                assert link.channel is not None
                link.channel.lose("cut by the test")
        with trio.fail_after(10):
            for id_ in range(1, 11):
                assert await theirs.publish("a", b"x", None) == id_
                assert (await messages.receive()).id == id_
        await until(replicas[0].is_linked)


async def test_one_that_leaves_is_followed_no_longer(url: str) -> None:
    async with replica(url) as (_, ours):
        async with replica(url) as (_, theirs):
            await until(lambda: bool(ours.links) and ours.is_linked() and theirs.is_linked())
        await until(lambda: not ours.links)


async def test_an_address_where_nobody_is_ever_heard_is_warned_of_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "UNHEARD_S", 0.2)
    nobody = listen_tcp("127.0.0.1", 0)
    address = "{}:{}".format(*nobody.getsockname()[:2])
    nobody.close()
    with capture_logs() as logs:
        async with replica(url, peers=(address,)):
            await until(lambda: [each["log_level"] for each in _not_heard(logs)][-2:] == ["warning", "debug"])
    told = _not_heard(logs)
    assert [each["log_level"] for each in told].count("warning") == 1
    assert told[0]["log_level"] == "debug", "it may have started at the same time"
    assert {each["address"] for each in told} == {address}


async def test_a_stranger_is_told_nothing(url: str) -> None:
    from trio_broker._proto import replicas_pb2 as pb
    from trio_broker.client.channel import open_channel
    from trio_broker.errors import BrokerError
    from trio_broker.replicas.links import PATH

    async with replica(url) as (_, ours), open_channel(ours.address) as channel:
        call = await channel.open(PATH)
        await call.send(pb.TailRequest(greeting=pb.Greeting(secret=b"guessed"), add=["a"]).SerializeToString())
        with pytest.raises(BrokerError, match="not one of the brokers"), trio.fail_after(5):
            await call.receive_some()


def _not_heard(logs: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    return [each for each in logs if each["event"] == "replica_not_heard"]


def test_paths_are_named() -> None:
    assert {COMMIT, TAIL, WAKEUP, POLL} == {"commit", "tail", "wakeup", "poll"}
