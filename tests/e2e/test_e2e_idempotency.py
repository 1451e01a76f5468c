"""Idempotency keys and expected last ids over gRPC, by other libraries, our client and the command line."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trio
from e2e_broker import BrokerProcess, sqlite_url
from e2e_failure import CallFailed
from e2e_peers import OWN_CONNECTION, GrpcioStubs, grpcio_failures
from e2e_wire import Wire

from trio_broker import Conflict, InvalidKey, connect
from trio_broker._proto import broker_pb2 as pb
from trio_broker.cli.main import run_command_line


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(sqlite_url(tmp_path_factory.mktemp("store"))) as process:
        yield process
        process.stop()


@pytest.fixture
def stubs(broker: BrokerProcess) -> Iterator[GrpcioStubs]:
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        yield GrpcioStubs(channel)


def refusal(stubs: GrpcioStubs, request: pb.PublishRequest) -> CallFailed:
    with pytest.raises(CallFailed) as failure, grpcio_failures():
        stubs.publish(request)
    return failure.value


def deduplicated(broker: BrokerProcess) -> float:
    return broker.metric("trio_broker_messages_deduplicated_total")


def test_a_duplicate_is_told_as_such_counted_and_not_delivered(
    broker: BrokerProcess, stubs: GrpcioStubs, subject: str
) -> None:
    before = deduplicated(broker)
    with Wire(broker.address) as subscriber:
        stream = subscriber.subscribe(subject)
        subscriber.stand(stream)
        first = stubs.publish(pb.PublishRequest(subject=subject, body=b"1", keep=True, idempotency_key="k"))
        again = stubs.publish(pb.PublishRequest(subject=subject, body=b"2", keep=True, idempotency_key="k"))
        stubs.publish(pb.PublishRequest(subject=subject, body=b"3", keep=True))
        subscriber.read_until(lambda: len(stream.received()) == 2)
        assert [message.body for message in stream.received()] == [b"1", b"3"]
    assert (first.id, first.duplicate) == (1, False)
    assert (again.id, again.duplicate, again.published_at) == (1, True, first.published_at)
    assert deduplicated(broker) == before + 1


def test_a_conflict_says_what_the_last_id_is(stubs: GrpcioStubs, subject: str) -> None:
    assert stubs.publish(pb.PublishRequest(subject=subject, keep=True, expected_last_id=0)).id == 1
    failure = refusal(stubs, pb.PublishRequest(subject=subject, keep=True, expected_last_id=0))
    assert failure.told == ("FAILED_PRECONDITION", "CONFLICT")
    assert failure.metadata["last_id"] == "1"
    assert stubs.publish(pb.PublishRequest(subject=subject, keep=True, expected_last_id=1)).id == 2


def test_a_key_that_is_too_long_is_refused(stubs: GrpcioStubs, subject: str) -> None:
    failure = refusal(stubs, pb.PublishRequest(subject=subject, idempotency_key="k" * 256))
    assert failure.told == ("INVALID_ARGUMENT", "INVALID_KEY")
    assert failure.fields == ["idempotency_key"]


async def test_our_client_repeats_with_a_key_and_hears_of_conflicts(broker: BrokerProcess, subject: str) -> None:
    with trio.fail_after(30):
        async with connect(broker.address) as client:
            assert await client.publish(subject, b"1", None, idempotency_key="k", expected_last_id=0) == 1
            assert await client.publish(subject, b"1", None, idempotency_key="k", expected_last_id=0) == 1
            with pytest.raises(Conflict) as conflict:
                await client.publish(subject, b"2", None, expected_last_id=0)
            assert conflict.value.metadata["last_id"] == "1"
            with pytest.raises(InvalidKey):
                await client.publish(subject, b"2", None, idempotency_key="k" * 256)


def test_the_same_command_with_a_key_prints_the_same_id(
    broker: BrokerProcess, subject: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_BROKER_SERVER", broker.address)
    for _ in range(2):
        assert run_command_line(["pub", subject, "hello", "--keep", "--key", "k"]) == 0
        assert capfd.readouterr().out == "1\n"


def test_keys_outlive_a_broker_that_is_killed(tmp_path: Path, subject: str) -> None:
    request = pb.PublishRequest(subject=subject, body=b"1", keep=True, idempotency_key="k")
    for duplicate in (False, True):
        with BrokerProcess(sqlite_url(tmp_path)) as process, grpc.insecure_channel(process.address) as channel:
            response = GrpcioStubs(channel).publish(request)
            assert (response.id, response.duplicate) == (1, duplicate)
            process.kill()
