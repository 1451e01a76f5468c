"""The Python client against a broker by grpcio: another implementation of the same protocol."""

import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from grpcio_broker import SAFETY_S, GrpcioBroker, serving
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from trio_broker._proto.broker_pb2 import PublishRequest, PublishResponse, SubscribeRequest
from trio_broker._proto.google.protobuf.timestamp_pb2 import Timestamp
from trio_broker.client import Client, connect
from trio_broker.client.channel import open_channel
from trio_broker.client.exchange import frame
from trio_broker.errors import (
    BrokerError,
    ConnectionLost,
    Draining,
    ExpiredId,
    InvalidExpiration,
    InvalidId,
    InvalidPosition,
    SlowConsumer,
)
from trio_broker.message import Message
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy


@pytest.fixture
def broker() -> Iterator[GrpcioBroker]:
    with serving() as broker:
        yield broker


@pytest.fixture
async def client(broker: GrpcioBroker) -> AsyncIterator[Client]:
    with trio.fail_after(SAFETY_S):
        async with connect(f"127.0.0.1:{broker.port}") as client:
            yield client


async def test_what_was_published_can_be_fetched(client: Client) -> None:
    assert await client.publish("orders", b"one", 60, headers={"k": b"\xff"}) == 1
    assert await client.publish("orders", b"", None) == 2
    assert await client.fetch("orders", 1) == Message("orders", 1, b"one", {"k": b"\xff"}, 1_700_000_000_000_000)
    assert (await client.fetch("orders", 2)).published_us == 1_700_000_000_000_001


async def test_a_subscription_stands_when_its_block_begins(client: Client) -> None:
    async with client.subscribe("orders") as messages:
        for body in (b"one", b"two", b"three"):
            await client.publish("orders", body)
        assert [(await anext(messages)).body for _ in range(3)] == [b"one", b"two", b"three"]


async def test_messages_that_are_there_come_together(client: Client) -> None:
    async with client.subscribe("orders") as messages:
        received = []
        for _ in range(100):
            await client.publish("orders", b"x")
        while len(received) < 100:
            received += [message.id for message in await messages.receive_some()]
    assert received == list(range(1, 101))


async def test_one_message_leaves_the_rest_to_the_next_reader_of_the_same_subscription(client: Client) -> None:
    async with client.subscribe("orders") as messages:
        for _ in range(3):
            await client.publish("orders", b"x")
        first = await anext(messages)
        rest: list[int] = []
        while len(rest) < 2:
            rest += [message.id for message in await messages.receive_some()]
    assert (first.id, rest) == (1, [2, 3])


async def test_leaving_a_subscription_is_seen_by_the_broker_and_the_connection_lives_on(
    broker: GrpcioBroker, client: Client
) -> None:
    async with client.subscribe("orders"):
        await broker.seen("subscribed")
    await broker.seen("unsubscribed")
    assert await client.publish("orders", b"x") == 1


async def test_a_cancelled_call_is_seen_by_the_broker_and_its_neighbours_go_on(
    broker: GrpcioBroker, client: Client
) -> None:
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(cancellable_publish, client, "hang")
        await broker.seen("hanging")
        scope.cancel()
    await broker.seen("cancelled")
    assert await client.publish("orders", b"x") == 1


async def cancellable_publish(
    client: Client, subject: str, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await client.publish(subject, b"x")


async def test_a_deadline_is_told_to_the_broker_for_unary_calls_only(broker: GrpcioBroker, client: Client) -> None:
    with trio.fail_after(5):
        await client.publish("orders", b"x")
        async with client.subscribe("orders"):
            pass
    with_deadline, stream = broker.deadlines_s
    assert with_deadline is not None
    assert 0 < with_deadline <= 5
    assert stream is None or stream > 1e6  # grpcio's "none"


async def test_a_deadline_ends_the_wait(client: Client) -> None:
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
        await client.publish("hang", b"x")


@pytest.mark.parametrize(
    ("subject", "expected", "text"),
    [
        ("fail.DRAINING", Draining, "as asked: DRAINING ü 100%"),
        ("fail.NEW_ONE", BrokerError, "as asked: NEW_ONE ü 100%"),
        ("bare", ConnectionLost, "a proxy says no"),
    ],
)
async def test_errors_come_out_as_the_brokers_own(
    client: Client, subject: str, expected: type[BrokerError], text: str
) -> None:
    with pytest.raises(expected) as published:
        await client.publish(subject, b"x")
    with pytest.raises(expected) as subscribed:
        async with client.subscribe(subject):
            pass
    assert str(published.value) == str(subscribed.value) == text
    assert type(published.value) is type(subscribed.value) is expected


async def test_ids_never_assigned_and_no_longer_kept_are_told_apart(client: Client) -> None:
    await client.publish("orders", b"not kept", 0)
    with pytest.raises(InvalidId) as invalid:
        await client.fetch("orders", 2)
    assert invalid.value.metadata == {"last_id": "1"}
    with pytest.raises(ExpiredId):
        await client.fetch("orders", 1)


@pytest.mark.parametrize("expiration", [-1, 2**31])
async def test_an_expiration_that_the_wire_cannot_carry_is_refused_here(client: Client, expiration: int) -> None:
    with pytest.raises(InvalidExpiration, match=str(expiration)):
        await client.publish("orders", b"x", expiration)


async def test_a_stream_ends_with_its_error_after_everything_before_it(client: Client) -> None:
    async with client.subscribe("orders") as messages:
        await client.publish("orders", b"fine")
        await client.publish("orders", b"be slow")
        assert (await anext(messages)).body == b"fine"
        with pytest.raises(SlowConsumer) as slow:
            await anext(messages)
    assert slow.value.metadata == {"last_delivered_id": "1"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {}),
        ({"start": New(), "until": AtEnd()}, {"at_end": True}),
        ({"start": Earliest(), "until": 7, "slow": SlowPolicy.FAIL}, {"earliest": True, "until_id": 7, "slow": "FAIL"}),
        ({"start": Last(0), "report_gaps": True}, {"last": 0, "report_gaps": True}),
        ({"start": After(41), "slow": SlowPolicy.DROP_OLDEST}, {"after_id": 41, "slow": "DROP_OLDEST"}),
        ({"start": At(datetime(1970, 1, 1, 1, 0, 0, 5, UTC))}, {"at": Timestamp(seconds=3600, nanos=5000)}),
    ],
)
async def test_where_a_subscription_begins_and_ends_is_told_to_the_broker(
    broker: GrpcioBroker, client: Client, asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    async with client.subscribe("orders", **asked):
        assert broker.subscribed == [SubscribeRequest(subject="orders", **expected)]


@pytest.mark.parametrize(
    "start",
    [Last(2**63), After(-(2**63) - 1), At(datetime(2026, 1, 1))],
    ids=["too many", "no id", "no zone"],
)
async def test_a_start_that_the_wire_cannot_carry_is_refused_here(client: Client, start: Last | After | At) -> None:
    with pytest.raises(InvalidPosition):
        async with client.subscribe("orders", start=start):
            pass


async def test_publishes_started_in_order_arrive_in_order() -> None:
    bodies: list[bytes] = []

    async def number_as_they_come(stream: trio.SocketStream) -> None:
        server = H2Connection(H2Configuration(client_side=False))
        requests: defaultdict[int, bytes] = defaultdict(bytes)
        server.initiate_connection()
        await stream.send_all(server.data_to_send())
        async for data in stream:
            for event in server.receive_data(data):
                if isinstance(event, DataReceived):
                    requests[event.stream_id] += event.data
                    server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded):
                    bodies.append(PublishRequest.FromString(requests.pop(event.stream_id)[5:]).body)
                    answer = PublishResponse(id=len(bodies)).SerializeToString()
                    server.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                    server.send_data(event.stream_id, bytes(frame(answer)))
                    server.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
            await stream.send_all(server.data_to_send())

    sizes = [1, 100_000, 1, 30_000, 1]  # some do not fit the window at once
    sent = [b"%d" % number * sizes[number % 5] for number in range(200)]
    with trio.fail_after(SAFETY_S):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, number_as_they_come, 0, host="127.0.0.1"))
            async with connect(f"127.0.0.1:{listener.socket.getsockname()[1]}") as client:
                started = [await client.start_publish("orders", body) for body in sent]
                assert [await publishing.id() for publishing in started] == list(range(1, 201))
            nursery.cancel_scope.cancel()
    assert bodies == sent


async def test_many_publishes_in_flight_are_each_answered_once(client: Client) -> None:
    async with client.subscribe("orders") as messages:
        started = [await client.start_publish("orders", b"%d" % number) for number in range(500)]
        assert sorted([await publishing.id() for publishing in started]) == list(range(1, 501))
        received: list[Message] = []
        while len(received) < 500:
            received += await messages.receive_some()
    assert [message.id for message in received] == list(range(1, 501))
    assert {message.body for message in received} == {b"%d" % number for number in range(500)}


async def test_one_connection_carries_many_calls_at_once(client: Client) -> None:
    ids: list[int] = []

    async def publish_some(subject: str) -> None:
        for _ in range(20):
            ids.append(await client.publish(subject, b"x", 60))
            await client.fetch(subject, 1)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(publish_some, f"subject{number}")
    assert sorted(ids) == sorted(list(range(1, 21)) * 20)


async def test_more_calls_than_the_broker_lets_be_open_wait_their_turn() -> None:
    with serving(max_concurrent_streams=2) as broker, trio.fail_after(SAFETY_S):
        async with connect(f"127.0.0.1:{broker.port}") as client:
            async with client.subscribe("held"), trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(client.publish, "orders", b"x")
            assert await client.publish("orders", b"x") == 11


async def test_a_large_body_passes_flow_control_both_ways(client: Client) -> None:
    body = bytes(range(256)) * 12_000  # 3 MB
    await client.publish("orders", body, None)
    assert (await client.fetch("orders", 1)).body == body


async def test_the_bodys_error_leaves_the_block_as_it_is(broker: GrpcioBroker) -> None:
    with pytest.raises(InvalidId):
        async with connect(f"127.0.0.1:{broker.port}") as client:
            await client.fetch("orders", 7)


async def test_nobody_there_is_said_at_once_and_may_be_tried_again() -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionLost, match=f"cannot connect to 127.0.0.1:{port}: Connection refused") as refused:
            async with connect(f"127.0.0.1:{port}"):
                pass
    assert refused.value.retryable


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a\0b"])
async def test_so_is_a_name_of_which_nobody_can_be_asked(host: str) -> None:
    with pytest.raises(ConnectionLost, match="cannot connect to") as refused:
        async with connect(f"{host}:50051"):
            pass
    assert refused.value.retryable


async def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not an address"):
        async with connect("localhost"):
            pass


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\0" * 64], ids=["http1", "nothing", "zeros"]
)
async def test_who_does_not_speak_http2_is_no_broker(greeting: bytes) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(greeting)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectionLost, match=f"no broker answers at 127.0.0.1:{port}"), trio.fail_after(SAFETY_S):
            async with connect(f"127.0.0.1:{port}"):
                pass
        nursery.cancel_scope.cancel()


class Relay:
    """A way to the broker that can be cut."""

    def __init__(self) -> None:
        self.port = 0
        self._streams: list[trio.SocketStream] = []

    async def serve(self, port: int, task_status: trio.TaskStatus[None]) -> None:
        async def relay(client: trio.SocketStream) -> None:
            server = await trio.open_tcp_stream("127.0.0.1", port)
            self._streams += [client, server]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, client, server)
                nursery.start_soon(self._copy, server, client)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(relay, listeners)

    async def _copy(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def cut(self, *, abruptly: bool) -> None:
        for stream in self._streams:
            if abruptly:
                linger_not = b"\1\0\0\0\0\0\0\0"
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
            stream.socket.close()


@asynccontextmanager
async def relayed(broker: GrpcioBroker) -> AsyncIterator[tuple[Client, Relay]]:
    with trio.fail_after(SAFETY_S):
        async with trio.open_nursery() as nursery:
            relay = Relay()
            await nursery.start(relay.serve, broker.port)
            async with connect(f"127.0.0.1:{relay.port}") as client:
                yield client, relay
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_lost_connection_ends_every_call_and_says_nothing_of_the_outcome(
    broker: GrpcioBroker, abruptly: bool
) -> None:
    async with relayed(broker) as (client, relay), client.subscribe("orders") as messages:
        publishing = await client.start_publish("hang", b"x")
        await broker.seen("hanging")
        relay.cut(abruptly=abruptly)
        with pytest.raises(ConnectionLost, match=f"connection to 127.0.0.1:{relay.port} lost") as published:
            await publishing.id()
        with pytest.raises(ConnectionLost):
            await anext(messages)
        assert not published.value.retryable
        with pytest.raises(ConnectionLost) as later:
            await client.publish("orders", b"x")
        assert later.value.retryable  # it was not begun


async def test_the_broker_stopping_ends_calls_and_refuses_new_ones(broker: GrpcioBroker) -> None:
    with trio.fail_after(SAFETY_S):
        with serving() as stopping:
            connection = connect(f"127.0.0.1:{stopping.port}")
            client = await connection.__aenter__()
            publishing = await client.start_publish("hang", b"x")
            await stopping.seen("hanging")
        with pytest.raises(BrokerError):
            await publishing.id()
        with pytest.raises(ConnectionLost):
            await client.publish("orders", b"x")
        await connection.__aexit__(None, None, None)


async def test_after_its_block_a_client_is_closed(broker: GrpcioBroker) -> None:
    async with connect(f"127.0.0.1:{broker.port}") as client:
        publishing = await client.start_publish("hang", b"x")
        await broker.seen("hanging")
    with pytest.raises(ConnectionLost):
        await publishing.id()
    with pytest.raises(ConnectionLost, match="closed"):
        await client.publish("orders", b"x")
    await broker.seen("cancelled")


async def test_cancelling_at_each_wait_leaves_nothing_behind(broker: GrpcioBroker) -> None:
    """Cancelled after n steps of the event loop, for every n until the call succeeds; then the client still works."""
    with trio.fail_after(SAFETY_S):
        async with connect(f"127.0.0.1:{broker.port}") as client:
            for steps in range(12):
                async with trio.open_nursery() as nursery:
                    scope = await nursery.start(cancellable_publish, client, "orders")
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert await client.publish("other", b"x") == 1
            statistics = client._channel._slots.statistics()
            assert (statistics.borrowed_tokens, statistics.tasks_waiting) == (0, 0)
            assert client._channel._calls == {}


async def test_an_error_leaves_the_channel_as_it_is_though_the_block_is_cancelled_too(broker: GrpcioBroker) -> None:
    """A broker that is stopped while the connection to another one ends must not take that for an error of its own."""
    with trio.fail_after(SAFETY_S), trio.CancelScope() as scope, pytest.raises(ConnectionLost, match="just before"):
        async with open_channel(f"127.0.0.1:{broker.port}"):
            scope.cancel()
            raise ConnectionLost("just before")
