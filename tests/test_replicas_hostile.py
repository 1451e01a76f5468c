"""Other brokers, or those who say that they are, that do not do as they should."""

import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from blackhole import Blackhole
from postgres_kit import until
from purerpc import StatusCode
from replicas_kit import replica

from trio_broker import Broker
from trio_broker._proto import broker_pb2
from trio_broker._proto import replicas_pb2 as pb
from trio_broker.client.channel import Call, Channel, open_channel
from trio_broker.errors import BrokerError, InvalidSubject, Malformed, MessageTooLarge, Overloaded
from trio_broker.notation import parse_tcp
from trio_broker.replicas import Replicas, links, service, tails
from trio_broker.replicas import replicas as module
from trio_broker.replicas.links import PATH, Link


@pytest.fixture
async def ours(postgres_url: str) -> AsyncGenerator[tuple[Broker, Replicas]]:
    """A broker that has learned the secret."""
    async with replica(postgres_url) as both:
        await until(lambda: both[1]._secret)
        yield both


def greeting(replicas: Replicas) -> pb.Greeting:
    """The greeting of another one."""
    made = pb.Greeting(secret=replicas._secret, to=replicas.id)
    setattr(made, "from", "other")
    return made


@asynccontextmanager
async def tail(replicas: Replicas, *requests: pb.TailRequest) -> AsyncGenerator[tuple[Channel, Call]]:
    async with open_channel(replicas.address) as channel:
        call = await channel.open(PATH)
        for request in requests:
            await call.send(request.SerializeToString())
        yield channel, call


async def heard(call: Call, count: int) -> list[pb.TailResponse]:
    """Receive until so many requests have been heard; return what else came."""
    others = []
    with trio.fail_after(20):
        while True:
            for data in await call.receive_some():
                response = pb.TailResponse.FromString(data)
                if response.heard == count:
                    return others
                if not response.heard:
                    others.append(response)


async def ends_with(call: Call, error: type[BrokerError]) -> None:
    with pytest.raises(error), trio.fail_after(20):
        while True:
            await call.receive_some()


async def still_serves(replicas: Replicas) -> None:
    async with tail(replicas, pb.TailRequest(greeting=greeting(replicas), add=["orders"])) as (_, call):
        await heard(call, 1)


@pytest.mark.parametrize("data", [b"\0" * 100_000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff"])
async def test_garbage_on_the_port_does_no_harm(ours: tuple[Broker, Replicas], data: bytes) -> None:
    _, replicas = ours
    address = parse_tcp(replicas.address)
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        with suppress(trio.BrokenResourceError), trio.move_on_after(1):
            await stream.send_all(data)
            while await stream.receive_some():
                pass
    await still_serves(replicas)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.TailRequest(add=["a" * 1000]), InvalidSubject),
        (pb.TailRequest(add=["a b"]), InvalidSubject),
        (pb.TailRequest(add=["orders"] * 200_000), MessageTooLarge),
        (b"\xff\xff\xff", Malformed),
    ],
    ids=["long", "no-subject", "large", "garbage"],
)
async def test_a_request_that_makes_no_sense_ends_the_stream(
    ours: tuple[Broker, Replicas], request_: pb.TailRequest | bytes, error: type[BrokerError]
) -> None:
    broker, replicas = ours
    data = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    async with tail(replicas, pb.TailRequest(greeting=greeting(replicas), add=["orders"])) as (_, call):
        await heard(call, 1)
        await call.send(data)
        await ends_with(call, error)
    await until(lambda: not broker.fanout.tails and not replicas.feeds.open)
    await still_serves(replicas)


async def test_more_subjects_than_may_be_of_interest_end_the_stream(
    ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "SUBJECTS_MAX", 5_000)
    broker, replicas = ours
    async with tail(replicas, pb.TailRequest(greeting=greeting(replicas))) as (_, call):
        for begin in range(0, 5_000, 1_000):
            await call.send(pb.TailRequest(add=[f"s.{n}" for n in range(begin, begin + 1_000)]).SerializeToString())
        await heard(call, 6)
        assert len(broker.fanout.tails) == 5_000
        await call.send(pb.TailRequest(add=["one.more"]).SerializeToString())
        await ends_with(call, Overloaded)
    await until(lambda: not broker.fanout.tails)


async def test_streams_that_never_greet_make_room_for_those_that_do(
    ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STRANGERS_MAX", 3)
    _, replicas = ours
    async with open_channel(replicas.address) as channel:
        calls = [await channel.open(PATH) for _ in range(3)]
        await until(lambda: len(replicas.feeds.open) == 3)
        await still_serves(replicas)
        await ends_with(calls[0], Overloaded)
        await until(lambda: len(replicas.feeds.open) == 2)


async def test_connections_that_say_nothing_are_bounded_and_make_room_for_those_that_call(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 3)
    async with replica(postgres_url) as (_, replicas), AsyncExitStack() as silent:
        await until(lambda: replicas._secret)
        replicas.server.limits = replace(replicas.server.limits, first_call_s=0.001)
        address = parse_tcp(replicas.address)
        for _ in range(12):
            await silent.enter_async_context(await trio.open_tcp_stream(address.host, address.port))
        await until(lambda: replicas.server.connections_opened == 12)
        assert len(replicas.server.transports) < 6  # one that was just accepted is not counted yet
        await still_serves(replicas)


async def test_who_does_not_read_is_told_how_far_subjects_go(
    ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "WAITING_BYTES", 100_000)
    broker, replicas = ours
    body = bytes(50_000)
    async with tail(replicas, pb.TailRequest(greeting=greeting(replicas), add=["orders"])) as (_, call):
        await heard(call, 1)
        (feed,) = replicas.feeds.open
        while not replicas.feeds.dropped:
            assert feed.waiting_bytes < 200_000
            last_id = await broker.publish("orders", body, 0)
        responses = await responses_up_to(call, last_id)
        assert responses[-1].messages == b""
        ids = [response.last_id for response in responses]
        assert ids == [*range(1, len(ids)), last_id]
        assert await broker.publish("orders", b"x", 0) == last_id + 1
        (response,) = await responses_up_to(call, last_id + 1)
        assert response.messages


async def responses_up_to(call: Call, last_id: int) -> list[pb.TailResponse]:
    responses: list[pb.TailResponse] = []
    with trio.fail_after(20):
        while not responses or responses[-1].last_id < last_id:
            responses += map(pb.TailResponse.FromString, await call.receive_some())
    return responses


def response(last_id: int, *ids: int, subject: str = "orders", lifetimes: tuple[int, ...] = (-1,)) -> bytes:
    messages = broker_pb2.MessageBatch(messages=[broker_pb2.MessageResponse(id=id_, body=b"bogus") for id_ in ids])
    return pb.TailResponse(
        subject=subject, last_id=last_id, messages=messages.SerializeToString(), lifetimes=lifetimes if ids else ()
    ).SerializeToString()


BROKEN = [
    b"\xff",
    response(3, 1, 1, 2),
    response(3, 3, 2, 1),
    response(9, 1, 2),
    response(0, 0),
    response(-1, -1),
    response(2, 1, 2, lifetimes=()),
    response(2, 1, 2, lifetimes=(1, 2, 3)),
    response(1, 1, lifetimes=(-2,)),
    pb.TailResponse(subject="orders", last_id=1, messages=b"\xff").SerializeToString(),
]


@pytest.mark.parametrize("data", BROKEN)
async def test_what_makes_no_sense_is_not_taken_for_messages(ours: tuple[Broker, Replicas], data: bytes) -> None:
    broker, replicas = ours
    link = Link(replicas.address, greeting(replicas), broker.fanout, broker.hearing.hint)
    async with broker.subscribe("orders") as messages:
        with pytest.raises(BrokerError, match="does not stream as it should"):
            link._hear(data)
        with trio.fail_after(10):
            assert await broker.publish("orders", b"x", None) == 1
            assert (await messages.receive()).body == b"x"


@pytest.mark.parametrize(
    "data",
    [
        response(2**62),
        response(2**62, 2**62),
        response(2**62, 1, 2**62),
        response(-5),
        response(7, 7, subject="not.asked.for"),
        response(7, 7, subject=""),
    ],
    ids=["far", "far-messages", "hole", "negative", "other-subject", "no-subject"],
)
async def test_a_wrong_last_id_stops_nothing(ours: tuple[Broker, Replicas], data: bytes) -> None:
    broker, replicas = ours
    link = Link(replicas.address, greeting(replicas), broker.fanout, broker.hearing.hint)
    async with broker.subscribe("orders") as messages, broker.subscribe("not.asked") as others:
        with trio.fail_after(10):
            for id_ in range(1, 20):
                link._hear(data) if id_ > 1 else None
                assert await broker.publish("orders", b"x", None) == id_
                assert (await messages.receive()).body == b"x"
            assert await broker.publish("not.asked", b"x", None) == 1
            assert (await others.receive()).id == 1


async def test_one_that_accepts_and_says_nothing_is_not_waited_for(
    ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "CONNECT_S", 0.2)
    broker, replicas = ours
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        link = Link(f"{host}:{port}", greeting(replicas), broker.fanout, broker.hearing.hint)
        with trio.fail_after(10):
            was_connected, why, _ = await link._run_once()
        assert (was_connected, why) == (False, "no answer in time")


@pytest.mark.parametrize("address", ["a..b:1", "a" * 300 + ":1", "a\0b:1", "\ud800:1"], ids=ascii)
async def test_an_address_that_nobody_can_have_ends_nothing(ours: tuple[Broker, Replicas], address: str) -> None:
    broker, replicas = ours
    was_connected, why, _ = await Link(address, greeting(replicas), broker.fanout, broker.hearing.hint)._run_once()
    assert not was_connected
    assert why.startswith("cannot connect to")


async def test_who_reaches_itself_at_the_address_of_another_goes_on_trying(ours: tuple[Broker, Replicas]) -> None:
    _, replicas = ours
    asking = greeting(replicas)
    setattr(asking, "from", replicas.id)
    asking.to = "another"
    assert (refused := replicas.admit(asking)) is not None
    assert refused.status_code is StatusCode.NOT_FOUND
    asking.to = ""  # as by --peers, which may name oneself
    assert (refused := replicas.admit(asking)) is not None
    assert refused.status_code is StatusCode.ALREADY_EXISTS


async def test_one_that_falls_silent_is_heard_no_longer(
    postgres_url: str, ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SILENCE_S", 0.3)
    monkeypatch.setattr(links, "LINGER_S", 0.1)
    broker, replicas = ours
    address = parse_tcp(replicas.address)
    with Blackhole(address.host, address.port) as hole:
        link = Link(f"127.0.0.1:{hole.port}", greeting(replicas), broker.fanout, broker.hearing.hint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await until(lambda: link.connected and link._heard > 3)
            hole.hold()
            await until(lambda: not link.connected)
            hole.release()
            await until(lambda: link.connected)
            nursery.cancel_scope.cancel()


async def test_what_nobody_listens_to_any_more_is_told_though_others_come_and_go(
    ours: tuple[Broker, Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "LINGER_S", 0.05)
    broker, replicas = ours
    link = Link(replicas.address, greeting(replicas), broker.fanout, broker.hearing.hint)
    broker.fanout.on_interest.append(link.interest_changed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await until(lambda: link.connected)
        with trio.fail_after(20):
            number = 0
            while not 0 < len(broker.fanout.tails) < number / 2:
                async with broker.subscribe(f"s.{number}"):
                    await trio.lowlevel.checkpoint()
                number += 1
        nursery.cancel_scope.cancel()
