"""Who is accepted: bounds for each address, and a process without descriptors."""

import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count

import pytest
import trio
from h2_peer import settings
from purerpc import StatusCode
from toy import Toy, Wire, connected, server_of, serving
from trio.testing import wait_all_tasks_blocked

from trio_broker.rpc import accepting, descriptors, frames
from trio_broker.rpc.health import Health
from trio_broker.rpc.limits import Limits
from trio_broker.rpc.listeners import listen_tcp, listen_unix
from trio_broker.rpc.server import Server

EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED.value


async def call(wire: Wire, stream_id: int, order: bytes = b"hello") -> int:
    await wire.write(wire.order(stream_id, "Echo", order))
    return (await wire.answered(stream_id)).code


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Take all that this process may have, for the length of the block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    first = os.dup(0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + 50, before[1]))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for each in (first, *taken):
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# descriptors


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "ACCEPT_PAUSE_S", 0.001)


@pytest.mark.usefixtures("impatient")
async def test_without_descriptors_a_client_is_told_so_and_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    strangers = [trio.socket.socket() for _ in range(3)]
    async with serving(Toy()) as server, connected(server) as wire:
        with no_descriptors():
            for stranger in strangers:
                await stranger.connect(("127.0.0.1", server.port))
                assert await told_to_leave(stranger)
            assert await call(wire, 1) == 0
        for stranger in strangers:
            stranger.close()  # not before: its descriptor is this process's, too
        async with connected(server) as later:
            assert await call(later, 1) == 0
        assert server.connections == 2
    (record,) = caplog.records
    assert record.getMessage().startswith(f"accept_failed address=127.0.0.1:{server.port} error=[Errno 24] ")


async def told_to_leave(stranger: trio.socket.SocketType) -> bool:
    """The server has closed."""
    try:
        return await stranger.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.usefixtures("impatient")
async def test_it_is_said_again_after_a_while_how_many_clients_there_was_no_descriptor_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = count(1000, descriptors.SAID_AGAIN_S / 4)
    monkeypatch.setattr("trio_broker.rpc.descriptors.time.monotonic", lambda: next(now))
    with listen_tcp("127.0.0.1", 0) as listener:
        strangers = [trio.socket.socket() for _ in range(9)]
        for stranger in strangers:
            await stranger.connect(listener.getsockname())
        reserve = descriptors.Reserve()
        with no_descriptors():
            for _ in strangers:
                assert reserve.accept(listener) is None
                assert reserve.short
        for stranger in strangers:
            assert await told_to_leave(stranger)
            stranger.close()
        assert reserve.accept(listener) is None, "nobody is left"
        assert not reserve.short
        reserve.close()
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["closed=1", "closed=4", "closed=4"]


# addresses


@asynccontextmanager
async def from_address(server: Server, address: str, host: str = "127.0.0.1") -> AsyncIterator[Wire]:
    """Connect from one of this machine's own addresses."""
    stream = await trio.open_tcp_stream(host, server.port, local_address=address)
    async with stream:
        wire = Wire(stream)
        await wire.write(frames.PREFACE, settings())
        yield wire


async def test_connections_of_one_address_are_bounded_and_those_of_others_are_not() -> None:
    limits = Limits(connections_per_address=2)
    async with serving(Toy(), limits=limits) as server, from_address(server, "127.0.0.2") as other:
        async with connected(server) as first, connected(server) as second:
            assert await call(first, 1) == await call(second, 1) == 0
            async with connected(server) as third:
                assert await call(third, 1) == EXHAUSTED
            assert await call(other, 1) == await call(first, 3) == 0
            assert (server.connections, server.connections_refused) == (3, 1)
        while server.connections > 1:
            await wait_all_tasks_blocked()
        async with connected(server) as again:
            assert await call(again, 1) == 0


async def test_an_address_that_has_too_many_does_not_keep_others_from_being_told() -> None:
    limits = Limits(connections_per_address=1, turned_away_max=2)
    async with serving(Toy(), limits=limits) as server, connected(server) as first, connected(server) as second:
        assert await call(first, 1) == 0
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as third:
            assert await told_to_leave(third.socket)
        assert await call(second, 1) == EXHAUSTED
        assert server.connections_refused == 2


async def test_addresses_are_forgotten_with_their_last_connection() -> None:
    limits = Limits(connections_per_address=1)
    async with serving(Toy(), limits=limits) as server:
        for number in range(2, 12):
            async with from_address(server, f"127.0.0.{number}") as wire:
                assert await call(wire, 1) == 0
            while server.connections:
                await wait_all_tasks_blocked()
        assert server.entrance.origins == {}


async def test_clients_on_a_unix_socket_have_no_address(tmp_path: object) -> None:
    path = f"{tmp_path}/socket"
    server = server_of(Toy(), limits=Limits(connections_per_address=1, streams_per_address=1))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_on, [listen_unix(path)])
        async with (
            await trio.open_unix_socket(path) as first,
            await trio.open_unix_socket(path) as second,
        ):
            for wire in (Wire(first), Wire(second)):
                await wire.write(frames.PREFACE, settings(), wire.order(1, "Group", b"wait"))
                assert await call(wire, 3) == 0
        nursery.cancel_scope.cancel()


def test_one_host_has_all_of_an_ipv6_network() -> None:
    key = accepting.address_key
    assert key("2001:db8:1:2::1") == key("2001:db8:1:2:ffff::9")
    assert key("2001:db8:1:2::1") != key("2001:db8:1:3::1")
    assert key("192.0.2.1") != key("192.0.2.2")
    assert key("fe80::1%eth0") == key("fe80::2")


# calls


async def test_calls_over_all_connections_are_bounded() -> None:
    toy = Toy()
    limits = Limits(streams_total=3)
    async with (
        serving(toy, Health("").service, limits=limits) as server,
        connected(server) as one,
        connected(server) as two,
    ):
        await one.write(one.order(1, "Group", b"wait"), one.order(3, "Group", b"wait"))
        await toy.until("began Group", 1)
        assert await call(two, 1) == 0, "the third"
        await two.write(two.order(3, "Group", b"wait"), two.order(5, "Echo", b"hello"))
        assert (await two.answered(5)).code == EXHAUSTED
        assert await call(one, 5) == EXHAUSTED
        await one.write(one.request(7, b"", method="/grpc.health.v1.Health/Check"))
        assert (await one.answered(7)).code == 0, "a process that is only full is not to be taken for a sick one"
        await two.write(frames.reset(3, frames.CANCEL))
        await toy.until("abandoned Group", 1)
        assert await call(one, 9) == 0
        assert server.streams == 2
    assert server.streams == 0


async def test_calls_of_one_address_are_bounded_and_those_of_others_are_not() -> None:
    toy = Toy()
    limits = Limits(streams_per_address=2)
    async with (
        serving(toy, limits=limits) as server,
        connected(server) as one,
        connected(server) as two,
        from_address(server, "127.0.0.2") as other,
    ):
        await one.write(one.order(1, "Group", b"wait"))
        await two.write(two.order(1, "Group", b"wait"))
        await toy.until("began Group", 2)
        assert await call(one, 3) == await call(two, 3) == EXHAUSTED
        assert await call(other, 1) == 0
        await two.stream.aclose()
        await toy.until("abandoned Group", 1)
        await wait_all_tasks_blocked()
        assert await call(one, 5) == 0
