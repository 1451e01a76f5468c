"""Whatever a client gets wrong has a clear status, and harms nobody: a neighbour's stream goes on all the while."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
import pytest
from e2e_broker import BrokerProcess, sqlite_url
from e2e_failure import CallFailed
from e2e_peers import OWN_CONNECTION, GrpcioStubs, grpcio_failures
from e2e_wire import Wire, connect_socket

from trio_broker._proto import broker_pb2 as pb

BODY_MAX = 4 * 1024 * 1024 - 64 * 1024
HEADERS_MAX_BYTES = 16 * 1024
INT32_MAX = 2**31 - 1

BAD_SUBJECTS = {
    "empty": "",
    "over-long": "a" * 256,
    "over-long in bytes": "é" * 128,
    "nul": "a\0b",
    "newline": "a\nb",
    "delete": "a\x7fb",
    "C1 control": "a\x85b",
    "blank": "a b",
    "white space beyond ASCII": "a\u2003b",
    "star": "a.*",
    "greater": "a.>",
    "star within": "a*b",
    "dot": ".",
    "leading dot": ".a",
    "trailing dot": "a.",
    "empty token": "a..b",
}

Publish = Callable[..., pb.PublishResponse]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A durable one. What is wrong is refused before any store sees it."""
    with BrokerProcess(sqlite_url(tmp_path_factory.mktemp("store"))) as process:
        yield process
        process.stop()


@pytest.fixture
def stubs(broker: BrokerProcess) -> Iterator[GrpcioStubs]:
    """The calls, on a connection that the neighbour does not share."""
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        yield GrpcioStubs(channel)


@pytest.fixture(autouse=True)
def _neighbour(broker: BrokerProcess, subject: str) -> Iterator[None]:
    """Somebody who does everything right, before and after; what the test does must not touch them."""
    neighbours = f"{subject}.neighbour"
    with Wire(broker.address) as publisher, Wire(broker.address) as subscriber:
        stream = subscriber.subscribe(neighbours)
        subscriber.stand(stream)
        assert publisher.published(publisher.publish(neighbours, b"before", keep=True)) == 1
        yield
        assert publisher.published(publisher.publish(neighbours, b"after", keep=True)) == 2
        subscriber.read_until(lambda: len(stream.received()) == 2)
        assert [(message.id, message.body) for message in stream.received()] == [(1, b"before"), (2, b"after")]
        assert not stream.over
    assert broker.errors() == []


def refusal(call: Callable[..., object], request: object) -> CallFailed:
    with pytest.raises(CallFailed) as failure, grpcio_failures():
        call(request)
    return failure.value


@pytest.mark.parametrize("bad", BAD_SUBJECTS.values(), ids=BAD_SUBJECTS.keys())
def test_a_bad_subject_is_refused_by_every_call(stubs: GrpcioStubs, bad: str) -> None:
    failures = [
        refusal(stubs.publish, pb.PublishRequest(subject=bad, body=b"x")),
        refusal(stubs.fetch, pb.FetchRequest(subject=bad, id=1)),
        refusal(lambda request: next(stubs.subscribe(request)), pb.SubscribeRequest(subject=bad)),
    ]
    for failure in failures:
        assert failure.told == ("INVALID_ARGUMENT", "INVALID_SUBJECT")
        assert failure.fields == ["subject"]
        assert "a subject is 1-255 bytes" in failure.text


@pytest.mark.parametrize("fill", ["a", "é"])
def test_the_longest_subject_is_taken(stubs: GrpcioStubs, subject: str, fill: str) -> None:
    room = 255 - len(subject) - 1
    longest = f"{subject}.{fill * (room // len(fill.encode()))}"
    longest += "a" * (255 - len(longest.encode()))
    assert stubs.publish(pb.PublishRequest(subject=longest, keep=True)).id == 1
    assert stubs.fetch(pb.FetchRequest(subject=longest, id=1)).subject == longest


@pytest.mark.parametrize(
    "fields",
    [
        {"expirationSeconds": -1},
        {"expirationSeconds": -(2**31)},
        {"expirationSeconds": 1, "keep": True},
        {"expirationSeconds": -1, "keep": True},
    ],
    ids=str,
)
def test_a_bad_expiration_is_refused(stubs: GrpcioStubs, subject: str, fields: dict[str, int]) -> None:
    failure = refusal(stubs.publish, pb.PublishRequest(subject=subject, **fields))
    assert failure.told == ("INVALID_ARGUMENT", "INVALID_EXPIRATION")
    assert failure.fields == ["expirationSeconds"]


def test_an_expiration_beyond_int32_is_refused(broker: BrokerProcess, subject: str) -> None:
    """No client can say it, but anybody can send it: a varint of 2^31 in field 3."""
    with Wire(broker.address) as wire:
        request = pb.PublishRequest(subject=subject).SerializeToString() + b"\x18\x80\x80\x80\x80\x08"
        failure = wire.failed(wire.start("/broker.Broker/Publish", request))
    assert failure.told == ("INVALID_ARGUMENT", "INVALID_EXPIRATION")


def test_the_longest_expiration_is_taken(stubs: GrpcioStubs, subject: str) -> None:
    assert stubs.publish(pb.PublishRequest(subject=subject, body=b"x", expirationSeconds=INT32_MAX)).id == 1
    assert stubs.fetch(pb.FetchRequest(subject=subject, id=1)).body == b"x"


@pytest.mark.parametrize(
    "headers",
    [
        {f"h{n}": b"" for n in range(65)},
        {"h": b"x" * HEADERS_MAX_BYTES},
        {"h" * (HEADERS_MAX_BYTES + 1): b""},
        {"": b"x"},
    ],
    ids=["too many", "values too large", "names too large", "no name"],
)
def test_bad_headers_are_refused(stubs: GrpcioStubs, subject: str, headers: dict[str, bytes]) -> None:
    failure = refusal(stubs.publish, pb.PublishRequest(subject=subject, headers=headers))
    assert failure.told == ("INVALID_ARGUMENT", "INVALID_HEADERS")
    assert failure.fields == ["headers"]


def test_as_many_and_as_large_headers_as_allowed_are_taken(stubs: GrpcioStubs, subject: str) -> None:
    names = [f"h{n:02}" for n in range(64)]
    headers = {name: b"x" * (HEADERS_MAX_BYTES // 64 - len(name)) for name in names}
    assert stubs.publish(pb.PublishRequest(subject=subject, headers=headers, keep=True)).id == 1
    assert dict(stubs.fetch(pb.FetchRequest(subject=subject, id=1)).headers) == headers


@pytest.mark.parametrize("size", [BODY_MAX + 1, 8 * 1024 * 1024])
def test_a_body_over_the_limit_is_refused(stubs: GrpcioStubs, subject: str, size: int) -> None:
    failure = refusal(stubs.publish, pb.PublishRequest(subject=subject, body=bytes(size), keep=True))
    assert failure.told == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert int(failure.metadata["size"]) >= size
    assert stubs.publish(pb.PublishRequest(subject=subject, body=b"small", keep=True)).id == 1


def test_the_largest_body_reaches_clients_that_have_set_no_limits(stubs: GrpcioStubs, subject: str) -> None:
    stream = stubs.subscribe(pb.SubscribeRequest(subject=subject))
    stream.initial_metadata()
    headers = {"h": b"x" * (HEADERS_MAX_BYTES - 1)}
    body = random.Random(1).randbytes(BODY_MAX)
    assert stubs.publish(pb.PublishRequest(subject=subject, body=body, headers=headers, keep=True)).id == 1
    assert next(stream).body == body
    assert stubs.fetch(pb.FetchRequest(subject=subject, id=1)).body == body
    stream.cancel()


@pytest.mark.parametrize(
    "path", ["/broker.Broker/Nothing", "/broker.Broker/publish", "/broker.Nobody/Publish", "/Publish", "/a/b/c"]
)
def test_what_is_no_method_is_unimplemented(broker: BrokerProcess, path: str) -> None:
    with Wire(broker.address) as wire:
        failure = wire.failed(wire.start(path, b""))
        assert failure.code == "UNIMPLEMENTED"
        assert path in failure.text


@pytest.mark.parametrize("method", ["Publish", "Subscribe", "Fetch"])
@pytest.mark.parametrize(
    "request_",
    [b"\xff\xff\xff", b"\x0a\x05abc", b"\x0a\x01\xff", b"\x0f\x00"],
    ids=["no field", "cut short", "no UTF-8", "no wire type"],
)
def test_what_is_no_protobuf_is_malformed(broker: BrokerProcess, method: str, request_: bytes) -> None:
    with Wire(broker.address) as wire:
        failure = wire.failed(wire.start(f"/broker.Broker/{method}", request_))
        assert failure.told == ("INVALID_ARGUMENT", "MALFORMED")
        assert f"broker.{method}Request" in failure.text


def test_a_call_that_is_wrong_leaves_those_beside_it_on_the_connection_alone(
    broker: BrokerProcess, subject: str
) -> None:
    """All in one write, and so in one flush: each is judged alone."""
    with Wire(broker.address) as wire:
        stream = wire.subscribe(subject)
        wire.stand(stream)
        path = "/broker.Broker/Publish"
        first = wire.prepare(path, pb.PublishRequest(subject=subject, body=b"first"))
        wrong = [
            wire.prepare(path, pb.PublishRequest(subject="a b")),
            wire.prepare(path, pb.PublishRequest(subject=subject, expirationSeconds=-1)),
            wire.prepare(path, b"\xff"),
            wire.prepare(path, b"\x00\x00\x00\x00\x7f", raw=True),  # promises more than it brings
            wire.prepare("/broker.Broker/Nothing", b""),
        ]
        last = wire.publish(subject, b"last")
        assert [wire.published(first), wire.published(last)] == [1, 2]
        codes = [wire.failed(exchange).code for exchange in wrong]
        assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "INTERNAL", "UNIMPLEMENTED"]
        wire.read_until(lambda: len(stream.received()) == 2)
        assert [message.body for message in stream.received()] == [b"first", b"last"]


GARBAGE = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n",
    "HTTP/1 upgrade": b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(193),
} | {f"random {seed}": random.Random(seed).randbytes(2000) for seed in range(5)}
AFTER_PREFACE = {
    f"preface, then random {seed}": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(seed).randbytes(5000)
    for seed in range(10, 20)
}


@pytest.mark.parametrize("garbage", [*GARBAGE.values(), *AFTER_PREFACE.values()], ids=[*GARBAGE, *AFTER_PREFACE])
def test_who_does_not_speak_the_protocol_is_hung_up_on(broker: BrokerProcess, garbage: bytes) -> None:
    with connect_socket(broker.address) as sock:
        sock.sendall(garbage)
        with suppress(ConnectionResetError):
            while sock.recv(65536):
                pass


@pytest.mark.parametrize("beginning", [b"", b"P", b"PRI * HTTP/2.0\r\n"])
def test_who_says_too_little_and_leaves_is_let_go(broker: BrokerProcess, beginning: bytes) -> None:
    with connect_socket(broker.address) as sock:
        sock.sendall(beginning)
