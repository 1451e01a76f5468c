"""Server reflection, both versions, over sockets; and by grpcurl where it is installed."""

import json
import subprocess

import pytest
import trio
from go_tools import go_tool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_peer import deframed
from purerpc import StatusCode
from toy import Toy, connected, serving

from trio_broker._proto.grpc.reflection.v1 import reflection_pb2 as v1
from trio_broker._proto.grpc.reflection.v1alpha import reflection_pb2 as v1alpha
from trio_broker._proto.pool import POOL
from trio_broker.rpc.health import Health
from trio_broker.rpc.reflection import reflection_services

HEALTH = "grpc.health.v1.Health"
SERVICES = reflection_services(POOL, [HEALTH])


def extended_pool():
    """A pool in which a message has extensions, in a file that needs another one, which needs a third."""
    pool = DescriptorPool()
    leaf = FileDescriptorProto(name="leaf.proto", package="ext")
    base = FileDescriptorProto(name="base.proto", package="ext", dependency=["leaf.proto"])
    base.message_type.add(name="Base").extension_range.add(start=100, end=200)
    top = FileDescriptorProto(name="top.proto", package="ext", dependency=["base.proto", "leaf.proto"])
    for number in (102, 101):
        top.extension.add(name=f"e{number}", number=number, extendee=".ext.Base", type="TYPE_INT32", label=1)
    for file in (leaf, base, top):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@pytest.fixture(params=[v1, v1alpha], ids=["v1", "v1alpha"])
def pb(request):
    return request.param


async def ask(pb, *questions, services=SERVICES):
    """Ask all questions in one call; return the answers."""
    path = f"/{pb.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo"
    async with serving(Toy(), *services) as server, connected(server) as wire:
        messages = [pb.ServerReflectionRequest(host="h", **each).SerializeToString() for each in questions]
        await wire.write(wire.request(1, *messages, method=path))
        answer = await wire.answered(1)
        assert answer.code == 0
        found = [pb.ServerReflectionResponse.FromString(message) for message in deframed(answer.body)]
        assert [each.valid_host for each in found] == ["h"] * len(questions)
        assert [each.original_request.SerializeToString() for each in found] == messages
        return found


def files(answer):
    return [FileDescriptorProto.FromString(file).name for file in answer.file_descriptor_response.file_descriptor_proto]


async def test_the_services(pb):
    (answer,) = await ask(pb, {"list_services": "*"})
    assert [service.name for service in answer.list_services_response.service] == [HEALTH]


async def test_files_come_with_all_they_need_and_once(pb):
    services = reflection_services(extended_pool(), [])
    by_name, by_symbol, by_extension = await ask(
        pb,
        {"file_by_filename": "top.proto"},
        {"file_containing_symbol": "ext.Base"},
        {"file_containing_extension": {"containing_type": "ext.Base", "extension_number": 101}},
        services=services,
    )
    assert files(by_name) == ["top.proto", "base.proto", "leaf.proto"]
    assert files(by_symbol) == ["base.proto", "leaf.proto"]
    assert files(by_extension) == ["top.proto", "base.proto", "leaf.proto"]


async def test_numbers_of_extensions(pb):
    services = reflection_services(extended_pool(), [])
    (answer,) = await ask(pb, {"all_extension_numbers_of_type": "ext.Base"}, services=services)
    assert answer.all_extension_numbers_response.base_type_name == "ext.Base"
    assert list(answer.all_extension_numbers_response.extension_number) == [101, 102]


@pytest.mark.parametrize(
    "symbol",
    [
        HEALTH,
        f"{HEALTH}.Check",
        "grpc.health.v1.HealthCheckRequest.service",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
        "grpc.health.v1.HealthCheckResponse.SERVING",
    ],
)
async def test_symbols_of_every_kind(pb, symbol):
    (answer,) = await ask(pb, {"file_containing_symbol": symbol})
    assert len(files(answer)) == 1


async def test_what_is_not_there_fails_by_itself_and_the_stream_goes_on(pb):
    missing = [
        {"file_by_filename": "no.proto"},
        {"file_containing_symbol": "no.Such"},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {"file_containing_extension": {"containing_type": "grpc.health.v1.HealthCheckRequest", "extension_number": 1}},
        {"all_extension_numbers_of_type": "no.Such"},
        {},
    ]
    *failures, answer = await ask(pb, *missing, {"list_services": ""})
    assert [each.error_response.error_code for each in failures] == [StatusCode.NOT_FOUND.value] * len(missing)
    assert all(each.error_response.error_message.startswith("not found: ") for each in failures)
    assert answer.list_services_response.service


@pytest.fixture(scope="module")
def grpcurl():
    return go_tool("github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4")


async def test_grpcurl_needs_no_proto_file(grpcurl):
    health = Health()
    health.set("", serving=True)
    async with serving(Toy(), health.service, *SERVICES) as server:
        for arguments, expected in (
            (["list"], f"{HEALTH}\n"),
            (["describe", f"{HEALTH}.Check"], "rpc Check ( .grpc.health.v1.HealthCheckRequest )"),
        ):
            assert expected in await run(grpcurl, "-plaintext", f"127.0.0.1:{server.port}", *arguments)
        answer = await run(grpcurl, "-plaintext", "-d", "{}", f"127.0.0.1:{server.port}", f"{HEALTH}/Check")
        assert json.loads(answer) == {"status": "SERVING"}


async def run(*command):
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)
    return done.stdout.decode()
