"""A server that is short of memory: what it refuses, what it lets go, and that all of it comes back."""

import itertools
from contextlib import suppress

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import Answer
from h2_peer import data
from purerpc import Status, StatusCode
from toy import MEBIBYTE, Toy, connected, serving

from trio_broker.rpc import frames
from trio_broker.rpc import server as server_module
from trio_broker.rpc.call import framed
from trio_broker.rpc.limits import Limits

EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED.value
LARGE = framed(BytesValue(value=bytes(600_000)).SerializeToString())


def is_empty(server):
    return all(budget.held_bytes == 0 for budget in server.budgets)


async def test_a_call_can_be_refused_by_its_headers():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        server.refuse = lambda call: Status(StatusCode.RESOURCE_EXHAUSTED) if call.method.name == "Group" else None
        await wire.write(wire.request(1, method="Group", end=False))
        assert (await wire.answered(1)).code == EXHAUSTED
        await wire.write(data(1, LARGE[:16_000]), wire.order(3, "Echo", b"hello"))
        assert (await wire.answered(3)).code == 0
        assert is_empty(server)
        server.refuse = None
        await wire.write(wire.order(5, "Group", b"hello"))
        assert (await wire.answered(5)).code == 0
        assert toy.groups == [1]


@pytest.mark.parametrize("bound", ["no more accepted", "connections_max"])
async def test_connections_wait_to_be_accepted(bound, monkeypatch):
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE_S", 0)
    async with serving(Toy(), limits=Limits(connections_max=1)) as server, connected(server) as first:
        server.accepts = bound != "no more accepted"
        async with trio.open_nursery() as nursery:
            served = trio.Event()

            async def second():
                async with connected(server) as wire:
                    await wire.write(wire.order(1, "Echo", b"hello"))
                    assert (await wire.answered(1)).code == 0
                    served.set()

            nursery.start_soon(second)
            for number in range(10):
                await first.write(first.order(2 * number + 1, "Echo", b"hello"))
                assert (await first.answered(2 * number + 1)).code == 0
            assert not served.is_set()
            server.accepts = True
            await first.stream.aclose()


async def test_unfinished_requests_that_keep_others_out_are_ended():
    limits = Limits(inbound_total_bytes=MEBIBYTE, starved_s=0.01)
    async with serving(Toy(), limits=limits) as server, connected(server) as hog, connected(server) as wire:
        await hog.write(hog.request(1, method="Group", end=False), data(1, LARGE[:16_000]))
        await hog.write(hog.order(3, "Echo", b"hello"))
        assert (await hog.answered(3)).code == 0
        stream_id = 1
        while True:
            await wire.write(wire.request(stream_id, method="Group", end=False), data(stream_id, LARGE[:16_000]))
            if not await refused(wire, stream_id):
                break
            stream_id += 2
        assert (await hog.answered(1)).code == EXHAUSTED
        await wire.write(*[data(stream_id, LARGE[cut : cut + 16_000]) for cut in range(16_000, len(LARGE), 16_000)])
        await wire.write(data(stream_id, end=True), frames.window_update(0, MEBIBYTE))
        await wire.write(frames.window_update(stream_id, MEBIBYTE))
        assert (await wire.answered(stream_id)).code == 0
        assert is_empty(server)


async def refused(wire, stream_id):
    """Say whether the beginning of a request was refused; a PING is answered after it was read."""
    await wire.write(frames.frame(frames.PING, 0, 0, b"%08d" % stream_id))
    pongs = sum(frame.type == frames.PING for frame in wire.frames)
    while sum(frame.type == frames.PING for frame in wire.frames) == pongs:
        assert await wire.read()
    answer = wire.answers.get(stream_id)
    return answer is not None and answer.ended


async def test_replies_that_nobody_reads_and_that_keep_others_out_are_dropped():
    limits = Limits(outbound_total_bytes=MEBIBYTE, starved_s=0.01)
    order = bytes(600_000)
    async with serving(Toy(), limits=limits) as server, connected(server) as hog, connected(server) as wire:
        await hog.write(*large_order(hog, 1, order))
        await hog.begun(1)
        stream_id = 1
        while True:
            await wire.write(*large_order(wire, stream_id, order))
            answer = wire.answers.setdefault(stream_id, Answer())
            while answer.headers is None and not answer.ended:
                assert await wire.read()
            if not answer.ended:
                break
            assert answer.code == EXHAUSTED
            stream_id += 2
        assert await hog.was_reset(1) == "ENHANCE_YOUR_CALM"
        await wire.write(frames.window_update(0, MEBIBYTE), frames.window_update(stream_id, MEBIBYTE))
        assert (await wire.answered(stream_id)).code == 0
        assert is_empty(server)


def large_order(wire, stream_id, order):
    body = framed(BytesValue(value=order).SerializeToString())
    cuts = range(0, len(body), 16_000)
    return [
        wire.request(stream_id, method="Echo", end=False),
        *[data(stream_id, body[cut : cut + 16_000], end=cut == cuts[-1]) for cut in cuts],
    ]


async def test_a_socket_that_takes_nothing_is_closed_when_others_are_kept_out():
    limits = Limits(outbound_total_bytes=MEBIBYTE, starved_s=0.01)
    wide = {frames.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}
    async with serving(Toy(), limits=limits) as server, connected(server, wide) as hog:
        await hog.write(frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_INITIAL))
        (transport,) = server._transports
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_until_closed, hog)
            while not transport._broken:
                server.budgets.outbound.has_room(MEBIBYTE)  # somebody else asks
                await trio.testing.wait_all_tasks_blocked(0.005)
        while server._transports:
            await trio.testing.wait_all_tasks_blocked()
        assert is_empty(server)


async def write_until_closed(wire):
    """Order large replies, and read none."""
    with suppress(trio.BrokenResourceError):
        for stream_id in itertools.count(1, 2):
            await wire.write(*large_order(wire, stream_id, bytes(400_000)))
