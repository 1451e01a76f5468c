"""A subscriber that does not read gets the rest from the log when it reads again, or is cut, as it asked for; nobody
else notices."""

from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess, eventually
from e2e_peers import OWN_CONNECTION, GrpcioStubs
from e2e_served import served
from e2e_wire import Exchange, Wire

from trio_broker._proto import broker_pb2 as pb
from trio_broker.service import subscribing

BUFFER_MESSAGES = 1024
BUFFER_BYTES = 4 * 1024 * 1024
WAVE = 50
"""Publishes that are under way at once."""
ROOM = 2**26

Publisher = Callable[..., None]


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with BrokerProcess("memory:") as process:
        yield process
        process.stop()


@pytest.fixture
def publisher(broker: BrokerProcess) -> Iterator[Publisher]:
    """Publishes so many messages; all are acknowledged, whoever listens."""
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        stubs = GrpcioStubs(channel)
        last_ids: Counter[str] = Counter()

        def publish(subject: str, count: int, body: bytes = b"", expiration_s: int = 0) -> None:
            request = pb.PublishRequest(subject=subject, body=body, expirationSeconds=expiration_s)
            for _ in range(0, count, WAVE):
                wave = [stubs.publish.future(request, timeout=SAFETY_S) for _ in range(WAVE)]
                ids = {future.result().id for future in wave}
                assert ids == set(range(last_ids[subject] + 1, last_ids[subject] + WAVE + 1))
                last_ids[subject] += WAVE

        yield publish


def heard(wire: Wire, stream: Exchange, count: int) -> list[int]:
    """Wait for so many messages; return their ids."""
    wire.read_until(lambda: len(stream.messages()) >= count)
    return [message.id for message in stream.received()]


def check_cut(wire: Wire, slow: Exchange) -> int:
    """Read to the end what a slow subscriber still gets: all up to a last message, and its id. Return that id."""
    failure = wire.failed(slow)
    assert failure.told == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
    ids = [message.id for message in slow.received()]
    assert ids == list(range(1, len(ids) + 1))
    assert failure.metadata == {"last_delivered_id": str(len(ids))}
    return len(ids)


def test_who_gives_no_window_is_cut_and_told_how_far_it_came(
    broker: BrokerProcess, publisher: Publisher, subject: str
) -> None:
    with Wire(broker.address) as healthy, Wire(broker.address, window=0) as slow:
        quick, stalled = healthy.subscribe(subject), slow.subscribe(subject, slow="FAIL")
        healthy.stand(quick)
        slow.stand(stalled)
        publisher(subject, 1500)
        assert heard(healthy, quick, 1500) == list(range(1, 1501))
        eventually(broker.subscribers, 1)
        slow.open_window(stalled, ROOM)
        assert BUFFER_MESSAGES - WAVE < check_cut(slow, stalled) <= BUFFER_MESSAGES


def test_who_gives_no_window_gets_all_it_missed_when_it_does(
    broker: BrokerProcess, publisher: Publisher, subject: str
) -> None:
    with Wire(broker.address) as healthy, Wire(broker.address, window=0) as slow:
        quick, stalled = healthy.subscribe(subject), slow.subscribe(subject)
        healthy.stand(quick)
        slow.stand(stalled)
        publisher(subject, 5000, expiration_s=3600)
        assert heard(healthy, quick, 5000) == list(range(1, 5001))
        assert broker.subscribers() == 2
        slow.open_window(stalled, ROOM)
        assert heard(slow, stalled, 5000) == list(range(1, 5001))
        publisher(subject, 50)
        assert heard(slow, stalled, 5050) == list(range(1, 5051))


def test_64_that_stall_cost_64_that_keep_up_nothing_and_get_all_they_missed(
    broker: BrokerProcess, publisher: Publisher, subject: str
) -> None:
    """What they missed is still in memory: the store is not read, neither for these nor for those."""

    def reads() -> float:
        return broker.metric("trio_broker_store_operation_seconds_count", operation="read")

    def read_up_to(body: bytes, wire: Wire, streams: list[Exchange]) -> None:
        wire.read_until(lambda: all(stream.data.count(body) == 5 * WAVE for stream in streams))

    reads_before, lags_before = reads(), broker.metric("trio_broker_subscriber_lags_total")
    with Wire(broker.address) as healthy, Wire(broker.address, window=0) as slow:
        quick = [healthy.subscribe(subject) for _ in range(64)]
        stalled = [slow.subscribe(subject) for _ in range(64)]
        healthy.stand(*quick)
        slow.stand(*stalled)
        for part in (b"one", b"two", b"three", b"four", b"five", b"six"):
            publisher(subject, 5 * WAVE, part, expiration_s=3600)
            read_up_to(part, healthy, quick)
        assert broker.metric("trio_broker_subscriber_lags_total") - lags_before == 64
        assert reads() == reads_before
        for stream in stalled:
            slow.open_window(stream, ROOM)
        read_up_to(b"six", slow, stalled)
        for stream in (*quick, *stalled):
            assert [message.id for message in stream.received()] == list(range(1, 30 * WAVE + 1))
        assert reads() == reads_before
        assert broker.metric("trio_broker_cache_hits_total") >= 64


def test_what_cannot_be_got_again_is_told_in_its_place(
    broker: BrokerProcess, publisher: Publisher, subject: str
) -> None:
    with Wire(broker.address, window=0) as slow:
        stalled = slow.subscribe(subject, report_gaps=True)
        slow.stand(stalled)
        publisher(subject, 2000)
        slow.open_window(stalled, ROOM)
        slow.read_until(lambda: bool(stalled.messages()) and stalled.received()[-1].HasField("gap"))
        *messages, last = stalled.received()
        assert [message.id for message in messages] == list(range(1, len(messages) + 1))
        assert len(messages) > BUFFER_MESSAGES - WAVE
        assert (getattr(last.gap, "from"), last.gap.to, last.gap.reason) == (len(messages) + 1, 2000, "live_buffer")
        assert (last.id, last.subject) == (0, subject)


def test_what_waits_is_bounded_in_bytes_too(broker: BrokerProcess, publisher: Publisher, subject: str) -> None:
    body = bytes(64 * 1024)
    with Wire(broker.address, window=0) as slow:
        stalled = slow.subscribe(subject, slow="FAIL")
        slow.stand(stalled)
        publisher(subject, 2 * BUFFER_BYTES // len(body), body)
        slow.open_window(stalled, ROOM)
        assert check_cut(slow, stalled) * len(body) <= BUFFER_BYTES


def test_a_slow_stream_does_not_hold_up_the_others_of_its_connection(
    broker: BrokerProcess, publisher: Publisher, subject: str
) -> None:
    with Wire(broker.address, window=0) as wire:
        stalled, quick = wire.subscribe(subject, slow="FAIL"), wire.subscribe(subject)
        wire.stand(stalled, quick)
        wire.open_window(quick, ROOM)
        publisher(subject, 1500)
        assert heard(wire, quick, 1500) == list(range(1, 1501))
        wire.open_window(stalled, ROOM)
        check_cut(wire, stalled)
        again = wire.subscribe(subject)
        wire.stand(again)
        wire.open_window(again, ROOM)
        publisher(subject, 1)
        assert heard(wire, again, 1)[0] == 1501


def test_who_never_reads_costs_no_memory(broker: BrokerProcess, publisher: Publisher, subject: str) -> None:
    """64 MiB pass a subscriber whose socket is full: they are not kept for it."""
    body = bytes(64 * 1024)
    with (
        Wire(broker.address) as healthy,
        Wire(broker.address, window=ROOM, receive_buffer=4096) as deaf,
    ):
        quick, stalled = healthy.subscribe(subject), deaf.subscribe(subject, slow="FAIL")
        healthy.stand(quick)
        deaf.stand(stalled)
        before = broker.system().memory_info().rss
        for _ in range(20):
            publisher(subject, WAVE, body)
            heard(healthy, quick, WAVE)
            quick.data.clear()
        eventually(broker.subscribers, 1)
        assert broker.system().memory_info().rss - before < 32 * 1024 * 1024
        check_cut(deaf, stalled)


async def test_who_still_reads_nothing_is_told_without_a_window(monkeypatch: pytest.MonkeyPatch, subject: str) -> None:
    """What waited is dropped after a while, and the status says what was really delivered."""
    monkeypatch.setattr(subscribing, "LAST_WORDS_S", 0.05)
    async with served("memory:") as (broker, address):

        def stall() -> None:
            with Wire(address, window=0) as slow:
                stalled = slow.subscribe(subject, slow="FAIL")
                slow.stand(stalled)
                for _ in range(BUFFER_MESSAGES + 1):
                    trio.from_thread.run(broker.publish, subject, b"")
                failure = slow.failed(stalled)
                assert failure.told == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
                assert failure.metadata == {"last_delivered_id": "0"}
                assert stalled.received() == []

        await trio.to_thread.run_sync(stall)
        assert broker.subscribers == 0
