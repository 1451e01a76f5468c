"""grpc.health.v1 and server reflection, with nothing of ours in the client but the standards' own messages."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import grpc
import pytest
from e2e_broker import SAFETY_S, BrokerProcess
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from trio_broker._proto.grpc.health.v1 import health_pb2 as health
from trio_broker._proto.grpc.reflection.v1 import reflection_pb2 as reflection_v1
from trio_broker._proto.grpc.reflection.v1alpha import reflection_pb2 as reflection_v1alpha

SERVING = health.HealthCheckResponse.SERVING
NOT_SERVING = health.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with BrokerProcess("memory:") as process:
        with grpc.insecure_channel(process.address) as channel:
            yield channel
        process.stop()


def check(channel: grpc.Channel, service: str) -> int:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health.HealthCheckRequest.SerializeToString,
        health.HealthCheckResponse.FromString,
    )
    return call(health.HealthCheckRequest(service=service), timeout=SAFETY_S).status


@pytest.mark.parametrize("service", ["", "broker.Broker", "broker.Admin"])
def test_a_ready_broker_is_serving(channel: grpc.Channel, service: str) -> None:
    assert check(channel, service) == SERVING


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        check(channel, "nobody")
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND


def test_who_watches_is_told_when_the_broker_stops() -> None:
    with BrokerProcess("memory:") as broker, grpc.insecure_channel(broker.address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health.HealthCheckRequest.SerializeToString,
            health.HealthCheckResponse.FromString,
        )(health.HealthCheckRequest(service="broker.Broker"), timeout=SAFETY_S)
        while next(watch).status != SERVING:  # a moment after it is ready
            pass
        broker.terminate()
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert broker.wait() == 0


Ask = Callable[..., Any]


@pytest.fixture(params=[reflection_v1, reflection_v1alpha], ids=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest, channel: grpc.Channel) -> Ask:
    """Asks the reflection service one question."""
    pb: ModuleType = request.param
    call = channel.stream_stream(
        f"/{pb.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )

    def ask_one(**question: str) -> Any:
        (answer,) = call(iter([pb.ServerReflectionRequest(**question)]), timeout=SAFETY_S)
        return answer

    return ask_one


def test_reflection_lists_the_services(ask: Ask) -> None:
    listed = {service.name for service in ask(list_services="*").list_services_response.service}
    assert {"broker.Broker", "broker.Admin", "grpc.health.v1.Health"} <= listed


@pytest.mark.parametrize(
    "question",
    [
        {"file_containing_symbol": "broker.Broker"},
        {"file_containing_symbol": "broker.Broker.Publish"},
        {"file_containing_symbol": "broker.MessageResponse"},
        {"file_by_filename": "broker.proto"},
    ],
    ids=str,
)
def test_who_knows_nothing_but_the_address_can_use_the_broker(
    ask: Ask, channel: grpc.Channel, question: dict[str, str], subject: str
) -> None:
    """As grpcurl does: descriptors from the server, messages made of them, calls with those."""
    pool = DescriptorPool()
    for data in ask(**question).file_descriptor_response.file_descriptor_proto:
        file = FileDescriptorProto.FromString(data)
        if file.name == "broker.proto":
            for name in file.dependency:
                pool.AddSerializedFile(file_of(ask, name))
            pool.AddSerializedFile(data)
    service = pool.FindServiceByName("broker.Broker")

    def call(method_name: str, **fields: object) -> Any:
        method = service.methods_by_name[method_name]
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        path = f"/{service.full_name}/{method.name}"
        stub = channel.unary_unary(path, request_class.SerializeToString, response_class.FromString)
        return stub(request_class(**fields), timeout=SAFETY_S)

    published = call("Publish", subject=subject, body=b"by reflection", keep=True)
    fetched = call("Fetch", subject=subject, id=published.id)
    assert (fetched.body, fetched.published_at) == (b"by reflection", published.published_at)


def file_of(ask: Ask, name: str) -> bytes:
    (data,) = ask(file_by_filename=name).file_descriptor_response.file_descriptor_proto
    return data


def test_what_there_is_not_is_not_found(ask: Ask) -> None:
    assert ask(file_containing_symbol="broker.Nobody").error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
