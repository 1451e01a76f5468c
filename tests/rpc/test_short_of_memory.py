"""A server that is short of memory: what it refuses, what it lets go, and that all of it comes back."""

import itertools
from contextlib import suppress

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_peer import Answer
from h2_peer import data, ping
from purerpc import Status, StatusCode
from toy import MEBIBYTE, Toy, connected, serving

from trio_broker.rpc import accepting, frames
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.transport import TIGHT_BYTES, Transport

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


async def test_connections_wait_to_be_accepted(monkeypatch):
    monkeypatch.setattr(accepting, "ACCEPT_PAUSE_S", 0)
    async with serving(Toy()) as server, connected(server) as first:
        server.accepts = False
        async with trio.open_nursery() as nursery:
            served = trio.Event()

            async def second():
                async with connected(server) as wire:
                    await wire.write(wire.order(1, "Echo", b"hello"))
                    assert (await wire.answered(1)).code == 0
                    served.set()

            nursery.start_soon(second)
            for number in range(50, 60):
                await first.write(first.order(2 * number + 1, "Echo", b"hello"))
                assert (await first.answered(2 * number + 1)).code == 0
            assert not served.is_set()
            server.accepts = True


async def test_a_client_that_has_just_come_keeps_its_place():
    limits = Limits(connections_max=1, first_call_s=3600)
    async with (
        serving(Toy(), limits=limits) as server,
        connected(server) as first,
        await trio.open_tcp_stream("127.0.0.1", server.port),
    ):
        await trio.testing.wait_all_tasks_blocked()
        await first.write(first.order(1, "Echo", b"hello"))
        assert (await first.answered(1)).code == 0
        assert server.connections == 1


async def test_a_client_that_never_made_a_call_makes_room_for_another():
    limits = Limits(connections_max=2, first_call_s=1e-6)
    async with serving(Toy(), limits=limits) as server, connected(server) as busy:
        await busy.write(busy.order(1, "Echo", b"hello"))
        assert (await busy.answered(1)).code == 0
        async with connected(server) as older, connected(server) as newer:
            assert await older.to_the_end() == []
            for wire in (busy, newer):
                await wire.write(wire.order(3, "Echo", b"hello"))
                assert (await wire.answered(3)).code == 0
            assert (server.connections, server.connections_cut["no_call"]) == (2, 1)


HALF_A_FRAME = data(0, bytes(16_000))[:-1]
HALF_A_BLOCK = frames.frame(frames.HEADERS, 0, 1, bytes(9)) + frames.frame(frames.CONTINUATION, 0, 1, bytes(16_000))


@pytest.mark.parametrize("piece", [HALF_A_FRAME, HALF_A_BLOCK], ids=["frame", "block"])
async def test_who_does_not_end_a_frame_or_header_block_and_keeps_others_out_is_closed(piece):
    limits = Limits(inbound_total_bytes=30_000, starved_s=0.01)
    async with serving(Toy(), limits=limits) as server, connected(server) as hog, connected(server) as wire:
        await hog.write(piece)
        while server.budgets.inbound.held_bytes < 16_000:
            await trio.testing.wait_all_tasks_blocked()
        stream_id = 1
        while True:
            begin = framed(bytes(20_000))[:16_000]
            await wire.write(wire.request(stream_id, method="Group", end=False), data(stream_id, begin))
            if not await refused(wire, stream_id):
                break
            stream_id += 2
        assert (await hog.to_the_end())[-1] == "GOAWAY 0 ENHANCE_YOUR_CALM"
        assert not server.budgets.inbound.tight or server.budgets.inbound.held_bytes == 20_005


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


async def heard(wire):
    """Wait until all that was written was read: a PING is answered after it."""
    await wire.write(ping())
    pongs = sum(frame.type == frames.PING for frame in wire.frames)
    while sum(frame.type == frames.PING for frame in wire.frames) == pongs:
        assert await wire.read()


async def refused(wire, stream_id):
    """Say whether the beginning of a request was refused."""
    await heard(wire)
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
        (transport,) = server.transports
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_until_closed, hog)
            while not transport._broken:
                server.budgets.outbound.has_room(MEBIBYTE)  # somebody else asks
                await trio.testing.wait_all_tasks_blocked(0.005)
        while server.transports:
            await trio.testing.wait_all_tasks_blocked()
        assert is_empty(server)
        assert server.connections_cut["memory"] == 1


async def write_until_closed(wire):
    """Order large replies, and read none."""
    with suppress(trio.BrokenResourceError):
        for stream_id in itertools.count(1, 2):
            await wire.write(*large_order(wire, stream_id, bytes(400_000)))


async def test_little_of_a_read_is_answered_at_once_while_many_replies_wait(monkeypatch):
    written = []

    def send(self, data):
        written.append(len(data))
        return sent(self, data)

    sent = Transport._send
    monkeypatch.setattr(Transport, "_send", send)
    limits = Limits(write_max_bytes=20_000)
    async with serving(Toy(), limits=limits) as server, connected(server) as wire:
        await wire.write(wire.request(1, method="Nothing"))
        await wire.answered(1)
        budget = server.budgets.outbound
        budget.held_bytes += budget.max_bytes // 2 + 1  # somebody else's
        burst = b"".join(wire.request(stream_id, method="Nothing") for stream_id in range(3, 6003, 2))
        assert len(burst) > 10 * TIGHT_BYTES
        await wire.write(burst)
        await wire.answered(6001)
        assert max(written) < limits.write_max_bytes + 20 * TIGHT_BYTES


async def test_large_messages_of_one_read_are_parsed_one_after_the_other():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Group", b"a"), wire.order(3, "Group", b"b"))
        await wire.answered(1)
        await wire.answered(3)
        assert toy.groups == [2]
        ends = []
        for stream_id in (5, 7, 9):
            body = framed(BytesValue(value=bytes(40_000)).SerializeToString())
            parts = [data(stream_id, body[cut : cut + 10_000]) for cut in range(0, 40_000, 10_000)]
            await wire.write(wire.request(stream_id, method="Group", end=False), *parts)
            ends.append(data(stream_id, body[40_000:], end=True))
        await heard(wire)
        await wire.write(*ends, frames.window_update(0, MEBIBYTE), wire.order(11, "Group", b"c"))
        for stream_id in (5, 7, 9, 11):
            assert (await wire.answered(stream_id)).code == 0
        assert sorted(toy.groups[1:]) == [1, 1, 2]


async def test_calls_that_stream_from_tasks_are_bounded_over_all_connections():
    limits = Limits(task_streams_total=1)
    async with serving(Toy(), limits=limits) as server, connected(server) as wire, connected(server) as other:
        await wire.write(wire.order(1, "Chat", b"wait", end=False))
        await wire.begun(1)
        await other.write(other.order(1, "Chat", b"hello"))
        assert (await other.answered(1)).code == EXHAUSTED
        await wire.write(frames.reset(1, frames.CANCEL))
        await heard(wire)
        await other.write(other.order(3, "Chat", b"hello"))
        assert (await other.answered(3)).code == 0


async def test_calls_that_stream_from_tasks_are_bounded_on_each_connection():
    toy = Toy()
    limits = Limits(task_streams_max=2)
    async with serving(toy, limits=limits) as server, connected(server) as wire, connected(server) as other:
        await wire.write(*[wire.order(stream_id, "Chat", b"wait", end=False) for stream_id in (1, 3, 5)])
        assert (await wire.answered(5)).code == EXHAUSTED
        await wire.write(wire.order(7, "Echo", b"hello"), wire.order(9, "Drain", b"hello"))
        assert (await wire.answered(7)).code == 0
        await wire.begun(9)
        await other.write(other.order(1, "Chat", b"hello"))
        assert (await other.answered(1)).code == 0
        await wire.write(frames.reset(1, frames.CANCEL), wire.order(11, "Repeat", b"hello"))
        assert (await wire.answered(11)).code == 0
