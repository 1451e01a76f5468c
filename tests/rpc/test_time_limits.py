"""What takes too long is ended: silence, frames, requests, answers; and nothing that is only slow is."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from h2_peer import data, ping, words
from purerpc import StatusCode
from toy import Toy, Wire, connected, server_of
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_broker.rpc import frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.server import Server

LIMITS = Limits(keepalive_s=30, keepalive_timeout_s=10, frame_s=5, request_s=6, answer_s=7, unread_s=8)
LATE = StatusCode.DEADLINE_EXCEEDED.value
NO_WINDOW = {frames.INITIAL_WINDOW_SIZE: 0}


async def wait(clock: MockClock, seconds: int) -> None:
    """Let so much time pass, a second after the other."""
    for _ in range(seconds):
        await wait_all_tasks_blocked()
        clock.jump(1)
    await wait_all_tasks_blocked()


async def heard(wire: Wire) -> list[str]:
    """Return all that has come so far: a PING is answered after it."""
    payload = b"%8d" % len(wire.frames)
    await wire.write(ping(payload))
    while not (wire.frames and wire.frames[-1].type == frames.PING and wire.frames[-1].opaque_data == payload):
        assert await wire.read(), "the connection was closed"
    return [words(frame) for frame in wire.frames if frame.type != frames.PING or frame.opaque_data != payload]


async def is_served(wire: Wire, stream_id: int) -> bool:
    await wire.write(wire.order(stream_id, "Echo", b"hello"), frames.window_update(stream_id, 1000))
    return (await wire.answered(stream_id)).code == 0


@asynccontextmanager
async def toy_server(limits: Limits = LIMITS) -> AsyncIterator[Server]:
    """Serve for the length of the block, which may take any time of a clock that is not the real one."""
    server = server_of(Toy(), limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_async)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def why(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "trio_broker.rpc.transport")
    return caplog


# silence


async def test_who_is_silent_is_asked_and_closed_when_no_answer_comes(
    mock_clock: MockClock, why: pytest.LogCaptureFixture
) -> None:
    async with toy_server() as server, connected(server) as wire:
        await wait(mock_clock, 30)
        assert server.connections == 1
        await wait(mock_clock, 9)
        assert server.connections == 1
        await wait(mock_clock, 2)
        assert server.connections == 0
        with suppress(trio.BrokenResourceError):
            assert await wire.to_the_end() == ["PING"]
        assert server.connections_cut["silent"] == 1
    assert any("no answer to a PING within 10 s" in record.getMessage() for record in why.records)


@pytest.mark.parametrize("word", [ping(b"anybody?", frames.ACK), frames.window_update(0, 1)], ids=["ACK", "anything"])
async def test_who_answers_stays(mock_clock: MockClock, word: bytes) -> None:
    async with toy_server() as server, connected(server) as wire:
        for _ in range(3):
            await wait(mock_clock, 31)
            while not any(words(frame) == "PING" for frame in wire.frames):
                assert await wire.read()
            wire.frames.clear()
            await wire.write(word)
        await wait(mock_clock, 9)
        assert await is_served(wire, 1)


async def test_who_has_calls_open_is_asked_as_well(mock_clock: MockClock) -> None:
    """A subscription may be quiet for days; a dead subscriber is noticed all the same."""
    async with toy_server() as server, connected(server) as wire:
        await wire.write(wire.order(1, "Drain", b"idle"))
        await wire.begun(1)
        await wait(mock_clock, 41)
        assert server.connections == 0
    assert server.streams == 0


async def test_nobody_is_asked_where_that_is_off(mock_clock: MockClock) -> None:
    async with toy_server(Limits(keepalive_s=float("inf"))) as server, connected(server) as wire:
        await wait(mock_clock, 200)
        assert "PING" not in await heard(wire)


async def test_time_in_which_the_process_did_not_run_does_not_count(mock_clock: MockClock) -> None:
    async with toy_server() as server, connected(server) as wire:
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(1000)
        assert "PING" not in await heard(wire)


# frames


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (ping()[:-3], b"\0"),
        (frames.frame(frames.HEADERS, 0, 1, b"\x82"), frames.frame(frames.CONTINUATION, 0, 1, b"\x82")),
    ],
    ids=["frame", "block"],
)
async def test_a_frame_or_header_block_has_to_end(mock_clock: MockClock, begin: bytes, more: bytes) -> None:
    async with toy_server() as server, connected(server) as wire:
        await wire.write(begin)
        await wait(mock_clock, 3)
        await wire.write(more)
        await wait(mock_clock, 2)
        assert server.connections == 1
        await wire.write(more)
        await wait(mock_clock, 2)
        assert (await wire.to_the_end())[-1] == "GOAWAY 0 ENHANCE_YOUR_CALM"


async def test_frames_that_come_in_pieces_each_have_their_time(mock_clock: MockClock) -> None:
    async with toy_server() as server, connected(server) as wire:
        for _ in range(6):
            await wire.write(ping()[:9])
            await wait(mock_clock, 4)
            await wire.write(ping()[9:])
        assert await is_served(wire, 1)


# requests


async def test_a_request_of_one_message_has_to_arrive(mock_clock: MockClock) -> None:
    body = framed(bytes(100))
    async with toy_server() as server, connected(server) as wire:
        await wire.write(wire.request(1, method="Group", end=False))
        for cut in range(7):
            assert not wire.answers.get(1)
            await wire.write(data(1, body[cut : cut + 1]))
            await wait(mock_clock, 1)
        await heard(wire)
        assert wire.answers[1].code == LATE
        assert await is_served(wire, 3)


async def test_what_is_no_call_has_to_arrive_too(mock_clock: MockClock) -> None:
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "localhost")]
    async with toy_server() as server, connected(server) as wire:
        await wire.write(wire.headers(1, fields))
        await wait(mock_clock, 7)
        assert await wire.was_reset(1) == "CANCEL"


async def test_a_request_that_arrived_may_take_long_and_one_that_streams_too(mock_clock: MockClock) -> None:
    async with toy_server() as server, connected(server) as wire:
        await wire.write(wire.request(1, method="Group", end=False))
        await wait(mock_clock, 3)
        await wire.write(data(1, framed(b"\x0a\x04wait"), end=True), wire.request(3, method="Chat", end=False))
        await wait(mock_clock, 20)
        await heard(wire)
        assert not any(wire.answers[stream_id].ended for stream_id in (1, 3) if stream_id in wire.answers)


# answers


async def test_an_answer_that_gets_no_window_is_dropped(mock_clock: MockClock) -> None:
    async with toy_server() as server, connected(server, NO_WINDOW) as wire:
        await wire.write(wire.order(1, "Echo", b"hello"), wire.order(3, "Drain", b"hello"))
        await wire.begun(1)
        await wire.begun(3)
        await wait(mock_clock, 6)
        await wire.write(frames.window_update(1, 1))
        await wait(mock_clock, 7)
        assert wire.answers[1].reset is None, "a byte has left"
        await wait(mock_clock, 2)
        assert await wire.was_reset(1) == "ENHANCE_YOUR_CALM"
        await heard(wire)
        assert not wire.answers[3].ended, "a stream may be read as slowly as one likes"
        assert all(budget.held_bytes == 0 for budget in server.budgets)
        assert await is_served(wire, 5)


async def test_who_reads_nothing_is_closed(mock_clock: MockClock, why: pytest.LogCaptureFixture) -> None:
    wide = {frames.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}
    async with toy_server() as server, connected(server, wide) as wire, trio.open_nursery() as nursery:
        (transport,) = server.transports
        await wire.write(frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_INITIAL))
        nursery.start_soon(write_on, wire)
        while not transport.stuck:
            await wait_all_tasks_blocked()
        await wait(mock_clock, 7)
        assert server.connections == 1
        await wait(mock_clock, 3)
        assert server.connections == 0
        nursery.cancel_scope.cancel()
    assert any("the client has read nothing for 8 s" in record.getMessage() for record in why.records)


async def test_who_reads_nothing_is_closed_though_it_talks(
    mock_clock: MockClock, why: pytest.LogCaptureFixture
) -> None:
    """As long as little waits for a client it is read from: that does not make it one that reads."""
    wide = {frames.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}
    limits = replace(LIMITS, unsent_max_bytes=1 << 30)
    async with toy_server(limits) as server, connected(server, wide) as wire:
        (transport,) = server.transports
        await wire.write(frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_INITIAL))
        await wire.write(wire.order(1, "Repeat", b"pour"))
        while not transport.stuck:
            await wait_all_tasks_blocked()
        for _ in range(10):
            with suppress(trio.BrokenResourceError):
                await wire.write(frames.frame(frames.PRIORITY, 0, 1, bytes(4) + b"\1"))
            await wait(mock_clock, 1)
        assert (server.connections, server.connections_cut["unread"]) == (0, 1)
    assert any("the client has read nothing for 8 s" in record.getMessage() for record in why.records)


async def write_on(wire: Wire) -> None:
    """Order large messages, and read none."""
    with suppress(trio.BrokenResourceError):
        await wire.write(wire.order(1, "Repeat", b"pour"), wire.order(3, "Repeat", b"pour"))
        for stream_id in range(5, 2005, 2):
            body = framed(b"\x0a\x80\x80\x04" + bytes(65536))
            parts = [data(stream_id, body[cut : cut + 16_000]) for cut in range(0, len(body), 16_000)]
            await wire.write(wire.request(stream_id, method="Echo", end=False), *parts, data(stream_id, end=True))


async def test_control_frames_for_a_peer_that_does_not_read_are_bounded() -> None:
    """Each PING, SETTINGS and bad frame has an answer: they stay below a bound since nothing more is read."""
    limits = Limits(unsent_max_bytes=50_000, control_burst=10**9, ping_burst=10**9)
    async with toy_server(limits) as server, connected(server) as wire:
        (transport,) = server.transports
        with trio.move_on_after(10) as writing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_full, writing, transport, limits)
                while True:
                    await wire.write(ping() * 10_000)
        most = limits.unsent_max_bytes + 64 * 1024
        assert limits.unsent_max_bytes < transport._unread_bytes() <= most
        assert transport.connection.waiting_bytes <= most


async def cancel_when_full(scope: trio.CancelScope, transport: object, limits: Limits) -> None:
    while transport._unread_bytes() <= limits.unsent_max_bytes:
        await wait_all_tasks_blocked()
    await wait_all_tasks_blocked(0.05)
    scope.cancel()


# idle connections


async def test_who_makes_no_call_for_long_is_asked_to_connect_again(mock_clock: MockClock) -> None:
    limits = Limits(idle_s=20, connection_age_grace_s=5)
    async with toy_server(limits) as server, connected(server) as wire:
        await wait(mock_clock, 15)
        assert await is_served(wire, 1)
        await wire.write(wire.order(3, "Drain", b"idle"))
        await wire.begun(3)
        await wait(mock_clock, 40)
        await wire.write(frames.reset(3, frames.CANCEL))
        await wait(mock_clock, 19)
        assert not any(told.startswith("GOAWAY") for told in await heard(wire))
        await wait(mock_clock, 3)
        told = await wire.to_the_end()
        assert told[0] == "GOAWAY max NO_ERROR"
        assert told[-1] == "GOAWAY 3 NO_ERROR"
        assert server.connections_aged == 0


async def test_by_default_a_client_may_be_idle(mock_clock: MockClock) -> None:
    async with toy_server(Limits(keepalive_s=10**9)) as server, connected(server) as wire:
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(100_000)
        assert await is_served(wire, 1)


def test_limits_are_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="keepalive_s must be positive, not 0"):
        Limits(keepalive_s=0)
