"""The server and its connections over sockets: backpressure, bugs, draining, stopping, leaks, strangers."""

import gc
import socket
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue
from h2_peer import data, ping, settings, words
from purerpc import StatusCode
from toy import MEBIBYTE, Toy, Wire, connected, serve, server_of, serving

from trio_broker.rpc import frames
from trio_broker.rpc import server as server_module
from trio_broker.rpc import transport as transport_module
from trio_broker.rpc.call import Call
from trio_broker.rpc.connection import Connection
from trio_broker.rpc.framing import framed
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.listeners import listen_tcp, listen_unix

WIDE_OPEN = {frames.INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}


async def echoes(wire, stream_id=1):
    """A call of this connection is served."""
    await wire.write(wire.order(stream_id, "Echo", b"hello"))
    return (await wire.answered(stream_id)).code == 0


# backpressure


async def test_a_handler_waits_for_a_client_that_does_not_read():
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Repeat", b"pour"))
        await wire.begun(1)
        await trio.testing.wait_all_tasks_blocked()
        assert toy.produced == 1  # above send_high_bytes already
        before = toy.produced
        while toy.produced == before:
            await wire.write(frames.window_update(0, MEBIBYTE), frames.window_update(1, MEBIBYTE))
            await wire.read()


async def test_a_client_that_does_not_read_answers_is_not_read_from():
    """Its windows are wide open: only the socket's buffers and ours are there to fill."""
    toy = Toy()
    limits = Limits(unsent_max_bytes=100_000)
    async with serving(toy, limits=limits) as server, connected(server, WIDE_OPEN) as wire:
        await wire.write(frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_INITIAL))
        (transport,) = server.transports
        stream_id = 1
        with trio.CancelScope() as writing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_stuck, writing, transport, limits)
                while True:
                    body = framed(BytesValue(value=bytes(8000)).SerializeToString())
                    await wire.write(
                        wire.request(stream_id, method="Group", end=False) + data(stream_id, body, end=True)
                    )
                    stream_id += 2
        assert writing.cancelled_caught
        assert transport._unread_bytes() < limits.unsent_max_bytes + 1_000_000
        await wire.read()
        assert wire.answers[1].code == 0


async def cancel_when_stuck(scope, transport, limits):
    """Cancel when the limit is reached, and nobody, the server included, has anything left to do."""
    while transport._unread_bytes() <= limits.unsent_max_bytes:
        await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked(0.05)
    scope.cancel()


async def test_a_client_that_streams_waits_for_the_handler():
    toy = Toy()
    async with serving(toy, limits=Limits(stream_window_bytes=MEBIBYTE)) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Collect", b"hold", end=False))
        await toy.until("began Collect")
        for _ in range(MEBIBYTE // 16_384 - 1):
            await wire.write(data(1, framed(bytes(16_384 - 5))))
        await wire.write(ping())
        while not any(words(frame) == "PING ACK" for frame in wire.frames):
            await wire.read()
        assert [words(frame) for frame in wire.frames if frame.stream_id == 1] == []  # no more credit
        await wire.write(data(1, bytes(16_384)))
        assert await wire.was_reset(1) == "FLOW_CONTROL_ERROR"
        await toy.until("ended Collect")


@pytest.mark.parametrize(("turn_s", "sizes"), [(1e-9, [4096] + [1024] * 12), (1e9, [4096, 8192])])
async def test_reads_are_as_short_as_what_they_bring_is_costly(turn_s, sizes, monkeypatch):
    """So that others have their turn: the first is short, and each that was filled tells how long the next may be."""
    monkeypatch.setattr(transport_module, "TURN_S", turn_s)
    monkeypatch.setattr(transport_module, "SHORTEST_READ_BYTES", 1024)
    read = []
    receive = Connection.receive
    monkeypatch.setattr(Connection, "receive", lambda self, data: (read.append(len(data)), receive(self, data)))
    async with serving(Toy()) as server, connected(server) as wire:
        read.clear()
        await wire.write(ping(flags=frames.ACK) * (16_384 // 17))
        assert await echoes(wire)
    assert read[: len(sizes)] == sizes


async def test_a_costly_read_that_was_not_filled_makes_the_next_ones_shorter_too(monkeypatch):
    """Else who sends a little less than a read takes, again and again, would have none of its reads shortened."""
    monkeypatch.setattr(transport_module, "TURN_S", 1e9)
    monkeypatch.setattr(transport_module, "SHORTEST_READ_BYTES", 1024)
    read = []
    receive = Connection.receive
    monkeypatch.setattr(Connection, "receive", lambda self, data: (read.append(len(data)), receive(self, data)))
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(ping(flags=frames.ACK) * 1000)  # so that reads are as long as they may be
        assert await echoes(wire)
        monkeypatch.setattr(transport_module, "TURN_S", 1e-9)
        monkeypatch.setattr(transport_module, "LONG_S", 1e-8)
        for stream_id in (3, 5):
            read.clear()
            await wire.write(ping(flags=frames.ACK) * 400)
            assert await echoes(wire, stream_id)
    assert max(read) == 1024


class Ticks(trio.abc.Instrument):
    """Counts the scheduler's ticks."""

    def __init__(self):
        self.passed = 0

    def before_io_wait(self, timeout):
        self.passed += 1


async def test_those_who_send_without_pause_take_turns(monkeypatch):
    """Ten clients have more to say than a read takes: in a tick one of them is read, and each has its share."""
    monkeypatch.setattr(transport_module, "TURN_S", 1e-9)
    monkeypatch.setattr(transport_module, "SHORTEST_READ_BYTES", 1024)
    ticks, filled = Ticks(), []
    receive = Connection.receive

    def note(self, data):
        if len(data) == 1024:
            filled.append((ticks.passed, self))
        receive(self, data)

    monkeypatch.setattr(Connection, "receive", note)
    trio.lowlevel.add_instrument(ticks)
    async with serving(Toy()) as server, AsyncExitStack() as clients:
        wires = [await clients.enter_async_context(connected(server)) for _ in range(10)]
        for wire in wires:
            await wire.write(ping(flags=frames.ACK) * (16_384 // 17))
        for wire in wires:
            assert await echoes(wire)
    trio.lowlevel.remove_instrument(ticks)
    assert len({tick for tick, _ in filled}) == len(filled) > 100
    all_came = next(n for n in range(len(filled)) if len({who for _, who in filled[:n]}) == 10)
    assert sorted(Counter(who for _, who in filled[all_came : all_came + 50]).values()) == [5] * 10


# one connection's bug


async def test_a_bug_in_reading_ends_one_connection(monkeypatch, caplog):
    def on_data(self, data):
        raise ValueError("our bug")

    toy = Toy()
    async with serving(toy) as server, connected(server) as well, connected(server) as hit:
        await hit.write(hit.order(1, "Chat", b"hello", end=False), hit.order(3, "Echo", b"wait"))
        await toy.until("began Echo")
        with monkeypatch.context() as patch:
            patch.setattr(Call, "on_data", on_data)
            await hit.write(data(1, b"x"))
            assert (await hit.to_the_end())[-1] == "GOAWAY 3 INTERNAL_ERROR"
        await toy.until("ended Echo")
        assert await echoes(well)
    (record,) = caplog.records
    assert record.getMessage().startswith("connection_failed peer=127.0.0.1:")


async def test_a_source_that_raises_ends_one_connection(caplog):
    toy = Toy()
    async with serving(toy) as server, connected(server) as well, connected(server) as hit:
        await hit.write(hit.order(1, "Drain", b"idle"))
        await hit.begun(1)
        toy.sources[0].push(b"bug")
        await hit.to_the_end()
        await toy.until("closed Drain")
        assert await echoes(well)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("how", ["deadline", "reset", "lost"])
async def test_a_callback_that_raises_ends_one_connection(how, caplog, monkeypatch):
    def abandoned(self, call):
        self.note("raised")
        raise ValueError("a secret")

    monkeypatch.setattr(Toy, "abandoned", abandoned)
    toy = Toy()
    async with serving(toy) as server, connected(server) as well:
        async with connected(server) as hit:
            more = [("grpc-timeout", "20m")] if how == "deadline" else []
            await hit.write(hit.order(1, "Group", b"wait", more=more), hit.order(3, "Group", b"wait"))
            await toy.until("began Group")
            if how == "reset":
                await hit.write(frames.reset(1, frames.CANCEL))
            if how != "lost":
                await hit.to_the_end()
        await toy.until("raised", 2)
        assert await echoes(well)
        while len(server.transports) > 1:
            await trio.testing.wait_all_tasks_blocked()
    assert {record.getMessage().split()[0] for record in caplog.records} == {"connection_failed"}


async def test_an_account_of_calls_that_raises_does_no_harm(caplog):
    def over(call, seconds):
        raise ValueError("a secret")

    async with serving(Toy(), on_call_over=over) as server, connected(server) as wire:
        assert await echoes(wire)
        assert await echoes(wire, 3)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["rpc_failed"] * 2


async def test_a_stream_tells_how_long_it_took_to_its_first_message_and_other_calls_do_not():
    over = {}

    def on_call_over(call, seconds):
        over[call.id] = call.first_message_s, seconds

    toy = Toy()
    async with serving(toy, on_call_over=on_call_over) as server, connected(server) as wire:
        assert await echoes(wire, 1)
        await wire.write(wire.order(3, "Repeat", b"thrice"))
        await wire.answered(3)
        for stream_id in (5, 7):
            await wire.write(wire.order(stream_id, "Drain", b"idle"))
            await wire.begun(stream_id)
        toy.sources[0].push(b"first")
        toy.sources[0].push(b"second")
        while not wire.answers[5].body:
            await wire.read()
        toy.sources[0].call.finish(server.refusals.stopping())
        toy.sources[1].call.finish(server.refusals.stopping())
        await wire.answered(5)
        await wire.answered(7)
    assert over[1][0] is over[7][0] is None
    for stream_id in (3, 5):
        first_message_s, seconds = over[stream_id]
        assert 0 <= first_message_s <= seconds


async def test_what_goes_on_can_be_asked():
    toy = Toy()
    async with serving(toy) as server:
        assert (server.connections, server.connections_opened) == (0, 0)
        async with connected(server) as wire, connected(server) as other:
            assert await echoes(other)
            await wire.write(wire.order(1, "Drain", b"idle"), wire.order(3, "Group", b"wait"))
            await wire.begun(1)
            await toy.until("began Group")
            assert (server.connections, server.connections_opened) == (2, 2)
            assert server.calls_in_flight() == {"Drain": 1, "Group": 1}
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        assert server.connections_opened == 2
        assert not server.calls_in_flight()


async def test_each_write_is_told_of_once_it_was_made():
    toy = Toy()
    written = []

    def on_written():
        written.append([len(source.messages) for source in toy.sources])

    async with serving(toy, on_written=on_written) as server, connected(server) as wire, connected(server) as other:
        for peer in (wire, other):
            await peer.write(peer.order(1, "Drain", b"idle"))
            await peer.begun(1)
        written.clear()
        for source in toy.sources:
            source.push(b"message")
        while not written:
            await trio.lowlevel.checkpoint()
        assert written == [[0, 0]], "both connections in one tick"


async def test_who_is_told_of_writes_and_raises_does_no_harm(caplog):
    def on_written():
        raise ValueError("a secret")

    async with serving(Toy(), on_written=on_written) as server, connected(server) as wire:
        assert await echoes(wire)
        assert await echoes(wire, 3)
    assert {record.getMessage() for record in caplog.records} == {"on_written_failed"}


# draining and stopping


async def test_draining_lets_calls_finish_and_takes_no_new_connections():
    toy = Toy()
    async with trio.open_nursery() as nursery, serving(toy) as server, connected(server) as wire:
        await wire.write(wire.order(1, "Drain", b"idle"))
        await wire.begun(1)
        drained = trio.Event()
        nursery.start_soon(drain, server, drained)
        while len(wire.frames) < 5:
            await wire.read()
        assert [words(frame) for frame in wire.frames[-2:]] == ["GOAWAY max NO_ERROR", "PING"]
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", server.port)
        await wire.write(wire.order(3, "Echo", b"on its way"), ping(b"draining", frames.ACK))
        assert (await wire.answered(3)).code == 0
        await wire.write(wire.order(5, "Echo", b"too late"))
        assert not drained.is_set()
        toy.sources[0].call.finish(server.refusals.stopping())
        told = await wire.to_the_end()
        assert told == ["HEADERS 1 END_STREAM"]
        assert [words(frame) for frame in wire.frames].count("GOAWAY 3 NO_ERROR") == 1
        assert 5 not in wire.answers
        await wire.stream.aclose()
        await drained.wait()


async def drain(server, drained):
    await server.drain()
    drained.set()


async def test_a_server_that_has_drained_returns():
    server = server_of(Toy())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, server)
        async with connected(server) as wire, trio.open_nursery() as draining:
            assert await echoes(wire)
            draining.start_soon(server.drain)
            while "PING" not in map(words, wire.frames):
                await wire.read()
            await wire.write(ping(b"draining", frames.ACK))
            assert await wire.to_the_end() == ["GOAWAY 1 NO_ERROR"]
            await wire.stream.aclose()


async def test_an_idle_server_drains_at_once():
    server = server_of(Toy())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, server)
        await server.drain()


async def test_a_client_that_answers_no_ping_is_drained_all_the_same(monkeypatch):
    monkeypatch.setattr(server_module, "GOAWAY_WAIT_S", 0.01)
    server = server_of(Toy())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, server)
        async with connected(server) as wire, trio.open_nursery() as draining:
            draining.start_soon(server.drain)
            assert await wire.to_the_end() == ["GOAWAY max NO_ERROR", "PING", "GOAWAY 0 NO_ERROR"]
            await wire.stream.aclose()


@pytest.mark.parametrize("method", ["Echo", "Repeat", "Collect", "Chat", "Group", "Drain"])
async def test_cancelling_the_server_ends_calls_unavailable(method):
    toy = Toy()
    server = server_of(toy)
    async with trio.open_nursery() as nursery:
        serving_scope = await nursery.start(serve, server)
        async with connected(server) as wire:
            await wire.write(wire.order(1, method, b"wait"))
            await toy.until(f"began {method}")
            serving_scope.cancel()
            assert (await wire.answered(1)).code == StatusCode.UNAVAILABLE.value
            await wire.to_the_end()
    abandoned = ["abandoned Group"] if method == "Group" else []
    assert sorted(toy.log[1:]) == [*abandoned, f"ended {method}", f"over {method} {StatusCode.UNAVAILABLE.value}"]
    assert server.transports == {}


# leaks


def held():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), trio.lowlevel.current_statistics().tasks_living


async def settled(server, connections):
    """Wait until the server has forgotten all but so many connections."""
    while len(server.transports) > connections:
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("method", ["Echo", "Repeat", "Chat", "Drain"])
async def test_a_thousand_streams_leave_nothing(method):
    toy = Toy()
    async with serving(toy) as server, connected(server) as wire:
        assert await echoes(wire)
        before = held()
        for begin in range(3, 2003, 200):
            ids = range(begin, begin + 200, 2)
            await wire.write(*[wire.order(stream_id, method, b"wait", end=method != "Chat") for stream_id in ids])
            await toy.until(f"began {method}", (begin - 3) // 2 + 100)
            await wire.write(*[frames.reset(stream_id, frames.CANCEL) for stream_id in ids])
            await toy.until(f"over {method} None", (begin - 3) // 2 + 100)
        assert await echoes(wire, 9999)
        await trio.testing.wait_all_tasks_blocked()
        assert held() == before
        (transport,) = server.transports
        connection = transport.connection
        assert (connection.streams, connection._blocked, len(connection._dirty), connection.held) == ({}, {}, 0, 0)


async def test_a_hundred_connections_leave_nothing():
    toy = Toy()
    async with serving(toy) as server:
        async with connected(server) as wire:
            assert await echoes(wire)
        await settled(server, 0)
        before = held()
        for number in range(100):
            async with connected(server) as wire:
                await wire.write(wire.order(1, "Chat", b"wait", end=False))
                await toy.until("began Chat", number + 1)
        await toy.until("over Chat None", 100)
        await settled(server, 0)
        assert held() == before


# strangers


@pytest.mark.parametrize(
    "hello",
    [b"get / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16" * 11, b"\0" * 200_000],
    ids=["almost HTTP/1", "almost TLS", "zeros"],
)
async def test_what_does_not_speak_http2_is_told_so_and_closed(hello, caplog):
    async with serving(Toy()) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            wire = Wire(stream)
            await wire.write(hello)
            assert (await wire.to_the_end())[-1] == "GOAWAY 0 PROTOCOL_ERROR"
        await settled(server, 0)
    assert not caplog.records


async def test_the_last_words_arrive_although_the_peer_has_sent_much_more():
    """A socket that is closed with unread input resets the connection: the GOAWAY would be lost."""
    async with serving(Toy()) as server, connected(server) as wire:
        await wire.write(ping(b"short"), bytes(300_000))
        assert await wire.to_the_end() == ["GOAWAY 0 FRAME_SIZE_ERROR"]


async def test_clients_that_say_nothing_or_vanish_are_no_news(caplog):
    async with serving(Toy()) as server:
        for linger in (False, True):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                if linger:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await settled(server, 0)
        async with connected(server) as wire:
            assert await echoes(wire)
    assert not caplog.records


# listeners


async def test_several_listeners_of_every_family(tmp_path):
    server = server_of(Toy())
    path = str(tmp_path / "socket")
    listeners = [listen_tcp("127.0.0.1", 0), listen_tcp("::1", 0), listen_unix(path)]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_on, listeners)
        streams = [
            await trio.open_tcp_stream("127.0.0.1", listeners[0].getsockname()[1]),
            await trio.open_tcp_stream("::1", listeners[1].getsockname()[1]),
            await trio.open_unix_socket(path),
        ]
        for stream in streams:
            async with stream:
                wire = Wire(stream)
                await wire.write(frames.PREFACE, settings())
                assert await echoes(wire)
        nursery.cancel_scope.cancel()
    assert [listener.fileno() for listener in listeners] == [-1] * 3
