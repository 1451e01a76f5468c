"""The server's side of gRPC's interoperability tests: grpc.testing.TestService, on our layer.

https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md says what it has to do.
"""

import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import purerpc
import trio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc
from purerpc import Cardinality, RpcFailedError, RPCSignature, Status, StatusCode

from trio_broker.rpc.handlers import Context, compressed

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
KINDS = {
    (False, False): Cardinality.UNARY_UNARY,
    (False, True): Cardinality.UNARY_STREAM,
    (True, False): Cardinality.STREAM_UNARY,
    (True, True): Cardinality.STREAM_STREAM,
}


@cache
def pool() -> DescriptorPool:
    """Compile the files beside this one."""
    here = Path(__file__).parent
    found = DescriptorPool()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "interop")
        names = ["empty.proto", "messages.proto", "test.proto"]
        assert protoc.main(["protoc", f"-I{here}", f"--descriptor_set_out={out}", *names]) == 0
        for file in FileDescriptorSet.FromString(out.read_bytes()).file:
            found.Add(file)
    return found


def message(name: str) -> Any:
    """Return the class of a message."""
    return GetMessageClass(pool().FindMessageTypeByName(f"grpc.testing.{name}"))


def signature(name: str) -> RPCSignature:
    """Return the kind and the types of a method."""
    method = pool().FindServiceByName("grpc.testing.TestService").methods_by_name[name]
    kind = KINDS[method.client_streaming, method.server_streaming]
    return RPCSignature(kind, GetMessageClass(method.input_type), GetMessageClass(method.output_type))


def service() -> purerpc.Service:
    """Return the service."""
    made = purerpc.Service("grpc.testing.TestService")
    for name, handler in (
        ("EmptyCall", empty_call),
        ("UnaryCall", unary_call),
        ("StreamingOutputCall", streaming_output_call),
        ("StreamingInputCall", streaming_input_call),
        ("FullDuplexCall", full_duplex_call),
    ):
        made.add_method(name, handler, signature(name))
    return made


async def empty_call(request: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return request


@compressed
async def unary_call(asked: Any, request: Context) -> Any:
    await trio.lowlevel.checkpoint()
    echo_metadata(request)
    check_compressed(asked, request)
    fail_if_told(asked)
    request.call.compresses &= asked.response_compressed.value
    return message("SimpleResponse")(payload=payload(asked.response_size))


@compressed
async def streaming_output_call(asked: Any, request: Context) -> AsyncIterator[Any]:
    accepted = request.call.compresses
    for parameters in asked.response_parameters:
        await trio.sleep(parameters.interval_us / 1e6)
        request.call.compresses = accepted and parameters.compressed.value
        yield message("StreamingOutputCallResponse")(payload=payload(parameters.size))


async def streaming_input_call(messages: AsyncIterator[Any], request: Context) -> Any:
    size = 0
    async for each in messages:
        if each.expect_compressed.value:
            check_compressed(each, request)
        size += len(each.payload.body)
    return message("StreamingInputCallResponse")(aggregated_payload_size=size)


def full_duplex_call(messages: AsyncIterator[Any], request: Context) -> AsyncIterator[Any]:
    echo_metadata(request)
    return duplex(messages)


async def duplex(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for asked in messages:
        fail_if_told(asked)
        for parameters in asked.response_parameters:
            await trio.sleep(parameters.interval_us / 1e6)
            yield message("StreamingOutputCallResponse")(payload=payload(parameters.size))


def payload(size: int) -> Any:
    return message("Payload")(body=bytes(size))


def echo_metadata(request: Context) -> None:
    """Send back what custom_metadata asks for."""
    given = dict(request.custom_metadata)
    if INITIAL in given:
        request.call.initial_metadata = [(INITIAL, given[INITIAL])]
    if TRAILING in given:
        request.call.trailing_metadata = [*request.call.trailing_metadata, (TRAILING, given[TRAILING])]


def check_compressed(asked: Any, request: Context) -> None:
    """Refuse a message that is not compressed as it says. Of a stream it is known whether any was."""
    if asked.HasField("expect_compressed") and asked.expect_compressed.value != (request.call.inflow is not None):
        raise RpcFailedError(Status(StatusCode.INVALID_ARGUMENT, "compressed, or not, against expect_compressed"))


def fail_if_told(asked: Any) -> None:
    if asked.response_status.code:
        code, text = StatusCode(asked.response_status.code), asked.response_status.message
        raise RpcFailedError(Status(code, text))
