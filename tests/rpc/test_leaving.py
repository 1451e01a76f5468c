"""Connections that are let go: those that have reached their age, and those for which there is no place."""

import pytest
import trio
from h2_peer import ping, words
from purerpc import StatusCode
from toy import Toy, connected, serving
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_broker.rpc import accepting, frames
from trio_broker.rpc.health import Health
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.time_limits import LOOK_S

AGED = Limits(connection_age_s=10, connection_age_grace_s=5)
FULL = Limits(connections_max=1)
UNAVAILABLE = StatusCode.UNAVAILABLE.value
EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED.value


async def until(wire, told):
    """Read until the server has said that."""
    while not any(words(frame) == told for frame in wire.frames):
        assert await wire.read(), "the connection was closed"


async def call(wire, stream_id, method="Echo", order=b"hello"):
    await wire.write(wire.order(stream_id, method, order))
    return (await wire.answered(stream_id)).code


# age


async def test_a_connection_that_has_reached_its_age_takes_calls_until_the_client_knows(mock_clock: MockClock):
    async with serving(Toy(), limits=AGED) as server, connected(server) as wire:
        assert await call(wire, 1) == 0
        mock_clock.jump(8.9)
        await wait_all_tasks_blocked()
        assert await call(wire, 3) == 0
        mock_clock.jump(2.2)
        await until(wire, "PING")
        assert words(wire.frames[-2]) == "GOAWAY max NO_ERROR"
        assert server.connections_aged == 1
        assert await call(wire, 5) == 0
        await wire.write(ping(b"draining", frames.ACK))
        assert await wire.to_the_end() == ["GOAWAY 5 NO_ERROR"]
        async with connected(server) as again:
            assert await call(again, 1) == 0


async def test_a_client_that_answers_no_ping_is_let_go_all_the_same(mock_clock: MockClock):
    async with serving(Toy(), limits=AGED) as server, connected(server) as wire:
        mock_clock.jump(11.1)
        await until(wire, "PING")
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
        assert await wire.to_the_end() == ["GOAWAY 0 NO_ERROR"]


async def test_after_the_grace_period_streams_end_when_they_have_said_what_they_owe(mock_clock: MockClock):
    toy = Toy()
    async with serving(toy, limits=AGED) as server, connected(server) as wire:
        await wire.write(
            wire.order(1, "Drain", b"idle"), wire.order(3, "Repeat", b"wait"), wire.order(5, "Echo", b"wait")
        )
        await wire.begun(1)
        await wire.begun(3)
        mock_clock.jump(11.1)
        await until(wire, "PING")
        await wire.write(ping(b"draining", frames.ACK))
        await until(wire, "GOAWAY 5 NO_ERROR")
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        mock_clock.jump(3.9)
        await wait_all_tasks_blocked()
        assert "retired Drain" not in toy.log
        mock_clock.jump(0.2)
        drained = await wire.answered(1)
        assert (drained.code, drained.body[-4:]) == (UNAVAILABLE, b"last")
        assert (await wire.answered(3)).code == UNAVAILABLE
        await wait_all_tasks_blocked()
        assert "ended Echo" not in toy.log, "what does not stream ends by itself"
        mock_clock.jump(10)
        assert (await wire.answered(5)).code == UNAVAILABLE
        await wire.to_the_end()
        assert toy.log.count("ended Echo") == toy.log.count("ended Repeat") == toy.log.count("closed Drain") == 1


async def test_a_client_that_reads_nothing_is_let_go_in_the_end(mock_clock: MockClock):
    toy = Toy()
    no_window = {frames.INITIAL_WINDOW_SIZE: 0}
    async with serving(toy, limits=AGED) as server, connected(server, no_window) as wire:
        await wire.write(wire.order(1, "Drain", b"three"), wire.order(3, "Echo", b"hello"))
        await wire.begun(3)
        for seconds in (11.1, 1, 4, 10):
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
        told = await wire.to_the_end()
        assert wire.answers[1].code == UNAVAILABLE
        assert "RST_STREAM 3 CANCEL" in told, "its answer could not leave"


async def test_connections_that_came_together_leave_one_after_the_other(mock_clock: MockClock):
    limits = Limits(connection_age_s=10, connection_age_grace_s=1)
    async with serving(Toy(), limits=limits) as server, trio.open_nursery() as nursery:
        left: list[float] = []

        async def come():
            async with connected(server) as wire:
                await wire.to_the_end()
                left.append(trio.current_time())

        for _ in range(50):
            nursery.start_soon(come)
        while server.connections < 50:
            await trio.lowlevel.checkpoint()
        began = trio.current_time()
        while server.connections:
            await wait_all_tasks_blocked()
            mock_clock.jump(0.1)
        await wait_all_tasks_blocked()
    assert min(left) >= began + 9
    assert max(left) <= began + 11 + LOOK_S + 1 + 0.2
    assert max(left) - min(left) > 0.5


async def test_by_default_connections_do_not_age(mock_clock: MockClock):
    async with serving(Toy()) as server, connected(server) as wire:
        mock_clock.jump(50)
        await wait_all_tasks_blocked()
        assert await call(wire, 1) == 0


# no place


async def test_beyond_the_bound_a_client_is_told_so_and_closed_and_others_are_served():
    async with serving(Toy(), limits=FULL) as server, connected(server) as first:
        assert await call(first, 1) == 0  # who has made a call is not closed for another
        async with connected(server) as second:
            await second.write(*(second.order(stream_id, "Echo", b"hello") for stream_id in (1, 3, 5)))
            for stream_id in (1, 3, 5):
                assert (await second.answered(stream_id)).code == EXHAUSTED
            await until(second, "PING")
            await second.write(second.order(7, "Echo", b"hello"))  # it was under way
            await second.write(ping(b"draining", frames.ACK))
            assert (await second.answered(7)).code == EXHAUSTED
            await second.to_the_end()
            assert "GOAWAY 7 NO_ERROR" in map(words, second.frames)
        assert await call(first, 3) == 0
        assert (server.connections, server.connections_refused) == (1, 1)
        await first.stream.aclose()
        while server.connections:
            await trio.lowlevel.checkpoint()
        async with connected(server) as third:
            assert await call(third, 1) == 0


async def test_who_has_found_no_place_and_makes_no_call_is_closed_soon(mock_clock: MockClock):
    async with serving(Toy(), limits=FULL) as server, connected(server) as first:
        assert await call(first, 1) == 0
        async with connected(server) as second:
            for _ in range(2):
                await wait_all_tasks_blocked()
                mock_clock.jump(1)
            assert await second.to_the_end() == ["GOAWAY max NO_ERROR", "PING", "GOAWAY 0 NO_ERROR"]


async def test_who_holds_on_to_a_call_without_a_place_is_closed_too(mock_clock: MockClock):
    async with serving(Toy(), Health("").service, limits=FULL) as server, connected(server) as first:
        assert await call(first, 1) == 0
        async with connected(server) as second:
            await second.write(second.request(1, method="/grpc.health.v1.Health/Check", end=False))
            for _ in range(4):
                await wait_all_tasks_blocked()
                mock_clock.jump(1)
            assert (await second.answered(1)).code == UNAVAILABLE
            await second.to_the_end()


async def test_health_is_told_to_who_has_found_no_place():
    """A probe connects for each question: a process that is only full is not to be killed."""
    health = Health("")
    async with serving(Toy(), health.service, limits=FULL) as server, connected(server) as first:
        assert await call(first, 1) == 0
        async with connected(server) as probe:
            await probe.write(probe.request(1, b"", method="/grpc.health.v1.Health/Check"))
            assert (await probe.answered(1)).code == 0
            await probe.write(probe.request(3, b"", method="/grpc.health.v1.Health/Watch"))
            assert (await probe.answered(3)).code == EXHAUSTED


async def test_only_so_many_are_turned_away_at_once_and_more_wait(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accepting, "ACCEPT_PAUSE_S", 0.1)
    limits = Limits(connections_max=1, turned_away_max=1)
    async with serving(Toy(), limits=limits) as server, connected(server) as first:
        assert await call(first, 1) == 0
        async with (
            connected(server),
            await trio.open_tcp_stream("127.0.0.1", server.port),
        ):
            for _ in range(5):
                await wait_all_tasks_blocked()
                mock_clock.jump(0.1)
            assert server.connections_refused == 1
            for _ in range(40):
                await wait_all_tasks_blocked()
                mock_clock.jump(0.1)
            assert server.connections_refused == 2
