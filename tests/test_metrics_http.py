from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import NamedTuple

import h11
import pytest
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from metrics import CallMetrics, Readiness, build_registry, serve_http
from metrics.http import CONNECTIONS_MAX, HEAD_MAX_BYTES, LINGER_S, REPLY_TIMEOUT_S, REQUEST_TIMEOUT_S, Endpoint
from metrics.pages import Pages

Address = tuple[str, int]
GET = b"GET /healthz HTTP/1.1\r\nHost: broker\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Client:
    """An HTTP/1.1 client on a stream, which can send what no client should."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(self, target: str = "/healthz", method: str = "GET", *, raw: bytes | None = None) -> Answer:
        """Send a request, or ``raw`` in its place (``b""``: it was sent before), and read one reply."""
        request = self._h11.send(h11.Request(method=method, target=target, headers=[("Host", "broker")]))
        request += self._h11.send(h11.EndOfMessage())
        if sent := request if raw is None else raw:
            await self.stream.send_all(sent)
        body = b""
        while not isinstance(event := self._h11.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                self._h11.receive_data(bytes(await self.stream.receive_some()))
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Answer(response.status_code, headers, body.decode())

    async def at_end(self) -> bool:
        """Wait for more; say whether the server closed instead."""
        return await self.stream.receive_some() == b""


def ready() -> Readiness:
    return Readiness(ready=True, detail="ready")


@pytest.fixture
async def address(nursery: trio.Nursery) -> Address:
    registry = build_registry(CallMetrics(["Publish", "Subscribe", "Fetch"], lambda: 3))
    return await nursery.start(serve_http, "127.0.0.1", 0, registry, ready)


@asynccontextmanager
async def connect(address: Address) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream(*address) as stream:
        yield Client(stream)


async def serve_stream(stream: trio.abc.HalfCloseableStream) -> None:
    """Serve one connection to its end."""
    async with stream:
        await Endpoint(Pages(build_registry(), ready)).serve(stream)


# what clients get


async def test_an_ordinary_client_gets_every_page_on_one_connection(address: Address) -> None:
    asked = [("GET", "/healthz"), ("HEAD", "/metrics"), ("GET", "/readyz"), ("GET", "/"), ("GET", "/metrics")]

    def browse() -> list[tuple[int, str]]:
        client = HTTPConnection(*address)
        client.connect()
        client.auto_open = False  # a second connection would be an error
        answers = []
        for method, path in asked:
            client.request(method, path)
            reply = client.getresponse()
            answers.append((reply.status, reply.read().decode()))
        client.close()
        return answers

    answers = await trio.to_thread.run_sync(browse)
    assert answers[:3] == [(200, "ok\n"), (200, ""), (200, "ready\n")]
    assert answers[3][0] == 404
    families = {family.name: family for family in parse_text(answers[4][1])}
    assert families["active_subscribers"].samples[0].value == 3


async def test_head_has_the_length_of_the_body_and_no_body(address: Address) -> None:
    async with connect(address) as client:
        head = await client.ask("/healthz", "HEAD")
        get = await client.ask("/healthz")
        assert head.headers["content-length"] == get.headers["content-length"] == "3"
        assert (head.body, get.body) == ("", "ok\n")
        assert "date" in get.headers


async def test_not_ready_is_503_and_the_reason(nursery: trio.Nursery) -> None:
    why = ["starting"]
    readiness = lambda: Readiness(not why, why[0] if why else "ready")  # noqa: E731
    address = await nursery.start(serve_http, "127.0.0.1", 0, CollectorRegistry(), readiness)
    async with connect(address) as client:
        assert (await client.ask("/readyz"))[::2] == (503, "starting\n")
        why.clear()
        assert (await client.ask("/readyz"))[::2] == (200, "ready\n")
        why.append("draining")
        assert (await client.ask("/readyz"))[::2] == (503, "draining\n")
        assert (await client.ask("/healthz")).status == 200


async def test_pipelined_requests_are_answered_in_order(address: Address) -> None:
    async with connect(address) as client:
        statuses = [(await client.ask(raw=GET + GET.replace(b"healthz", b"nowhere") + GET)).status]
        statuses += [(await client.ask(raw=b"")).status, (await client.ask(raw=b"")).status]
        assert statuses == [200, 404, 200]


@pytest.mark.parametrize("raw", [GET.replace(b"1.1", b"1.0"), GET[:-2] + b"Connection: close\r\n\r\n"])
async def test_a_client_that_does_not_keep_the_connection_is_closed(address: Address, raw: bytes) -> None:
    async with connect(address) as client:
        assert (await client.ask(raw=raw)).status == 200
        assert await client.at_end()


async def test_a_client_that_half_closes_still_gets_its_reply(address: Address) -> None:
    async with connect(address) as client:
        await client.stream.send_all(GET)
        await client.stream.send_eof()
        assert (await client.ask(raw=b"")).status == 200
        assert await client.at_end()


# what is refused


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n"),
        (400, b"GET /healthz\r\n\r\n"),
        (400, b"GET /healthz HTTP/1.1\r\n\r\n"),  # no Host
        (400, b"GET /health\xff HTTP/1.1\r\nHost: broker\r\n\r\n"),
        (400, GET[:-2] + b"Content-Length: two\r\n\r\n"),
        (431, GET[:-2] + b"X: " + b"x" * HEAD_MAX_BYTES),
        (501, GET[:-2] + b"Transfer-Encoding: gzip\r\n\r\n"),
        (413, GET[:-2] + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000),
        (413, GET[:-2] + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"),
        (405, GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello")),
    ],
)
async def test_what_is_no_proper_request_is_refused_and_the_connection_closed(
    address: Address, status: int, raw: bytes
) -> None:
    async with connect(address) as client, connect(address) as neighbour:
        await client.ask(method="HEAD")  # whose reply has no body: the next has one again
        answer = await client.ask(raw=raw)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.body
        assert await client.at_end()
        assert (await neighbour.ask()).status == 200


async def test_a_method_that_is_not_allowed_leaves_the_connection_open(address: Address) -> None:
    async with connect(address) as client:
        answer = await client.ask("/metrics", "DELETE")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        assert (await client.ask(raw=upgrade)).status == 200
        assert (await client.ask()).status == 200


# what goes wrong


class Faulty:
    """A collector with a bug."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("a secret")


async def test_a_bug_in_a_page_is_500_and_logged_and_the_connection_goes_on(nursery: trio.Nursery) -> None:
    registry = CollectorRegistry()
    registry.register(Faulty())
    address = await nursery.start(serve_http, "127.0.0.1", 0, registry, ready)
    with capture_logs() as logs:
        async with connect(address) as client:
            answer = await client.ask("/metrics")
            assert answer.status == 500
            assert "secret" not in answer.body
            assert (await client.ask("/healthz")).status == 200
    assert [(entry["event"], entry["target"]) for entry in logs] == [("http_request_failed", "/metrics")]


class FaultyReceiveStream(trio.abc.ReceiveStream):
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise RuntimeError("a bug in the transport")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_bug_in_a_connection_is_logged_and_goes_no_further() -> None:
    ours, _ = memory_stream_pair()
    with capture_logs() as logs:
        await serve_stream(trio.StapledStream(ours.send_stream, FaultyReceiveStream()))
    assert [entry["event"] for entry in logs] == ["http_connection_failed"]


async def test_clients_that_break_off_are_no_event(address: Address) -> None:
    with capture_logs() as logs:
        for sent in (b"", GET[:10], GET * 100, b"garbage\r\n\r\n"):
            for _ in range(20):
                stream = await trio.open_tcp_stream(*address)
                await stream.send_all(sent)
                stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                stream.socket.close()  # resets the connection
        async with connect(address) as client:
            assert (await client.ask()).status == 200
    assert logs == []


# bounds


async def test_one_connection_too_many_closes_the_oldest(address: Address) -> None:
    clients = []
    for _ in range(CONNECTIONS_MAX):
        clients.append(Client(await trio.open_tcp_stream(*address)))
        assert (await clients[-1].ask()).status == 200
    async with connect(address) as probe:
        assert (await probe.ask()).status == 200
        assert await clients[0].at_end()
        assert (await clients[1].ask()).status == 200
    for client in clients:
        await client.stream.aclose()


async def test_connections_that_ended_do_not_count(address: Address) -> None:
    async with connect(address) as old:
        assert (await old.ask()).status == 200
        for _ in range(3 * CONNECTIONS_MAX):
            async with connect(address) as client:
                assert (await client.ask(raw=GET.replace(b"1.1", b"1.0"))).status == 200
                assert await client.at_end()
        assert (await old.ask()).status == 200


@pytest.mark.parametrize("sent", [b"", GET[:20], GET + GET[:-2]])
async def test_a_request_that_does_not_arrive_ends_the_connection(autojump_clock: MockClock, sent: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(sent)
    began = trio.current_time()
    await serve_stream(ours)
    assert trio.current_time() - began == pytest.approx(REQUEST_TIMEOUT_S)


async def test_a_client_that_trickles_its_request_gets_no_more_time(autojump_clock: MockClock) -> None:
    async def trickle() -> None:
        for byte in GET:
            await theirs.send_all(bytes([byte]))
            await trio.sleep(REQUEST_TIMEOUT_S / 10)

    ours, theirs = memory_stream_pair()
    began = trio.current_time()
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as inner:
            inner.start_soon(trickle)
            await serve_stream(ours)
            assert trio.current_time() - began == pytest.approx(REQUEST_TIMEOUT_S)


async def test_a_client_that_does_not_take_its_reply_is_closed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ours, theirs = lockstep_stream_pair()
    nursery.start_soon(theirs.send_all, GET)
    began = trio.current_time()
    await serve_stream(ours)
    assert trio.current_time() - began == pytest.approx(REPLY_TIMEOUT_S)


async def test_a_client_that_does_not_close_is_waited_for_a_little(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"garbage\r\n\r\n")
    began = trio.current_time()
    await serve_stream(ours)
    assert trio.current_time() - began == pytest.approx(LINGER_S)


async def test_a_connection_can_be_cancelled_while_it_sends(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ours, theirs = lockstep_stream_pair()
    nursery.start_soon(theirs.send_all, GET)
    with trio.move_on_after(REPLY_TIMEOUT_S / 2) as scope:
        await serve_stream(ours)
    assert scope.cancelled_caught


# the listener


async def test_an_address_in_use_is_an_error_that_names_it(address: Address) -> None:
    host, port = address
    with pytest.raises(OSError, match=rf"cannot serve metrics on {host}:{port}: Address already in use"):
        await serve_http(host, port, CollectorRegistry(), ready)


@pytest.mark.parametrize(
    ("host", "named"),
    [("192.0.2.1", "192.0.2.1:9464"), ("2001:db8::1", "[2001:db8::1]:9464")],
)
async def test_an_address_that_is_not_here_is_an_error_that_names_it(host: str, named: str) -> None:
    with pytest.raises(OSError, match="cannot serve metrics on ") as caught:
        await serve_http(host, 9464, CollectorRegistry(), ready)
    assert named in str(caught.value.strerror)


@pytest.mark.parametrize("sent", [b"", GET[:20], GET, b"garbage\r\n\r\n"])
async def test_cancelling_closes_the_listener_and_every_connection(sent: bytes) -> None:
    async with trio.open_nursery() as serving:
        address = await serving.start(serve_http, "127.0.0.1", 0, CollectorRegistry(), ready)
        async with connect(address) as client:
            await client.stream.send_all(sent)
            await wait_all_tasks_blocked()
            serving.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while not await client.at_end():
                    pass
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(*address)
