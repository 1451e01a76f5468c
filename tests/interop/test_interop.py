"""gRPC's interoperability tests against our layer: by grpc-go's own client, and by grpcio what that leaves out.

grpcio does not show whether what it got was compressed: tests/rpc/test_compression.py looks at the bytes.

https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md names the cases. Left out are those of
credentials and load balancing, which are not the server's.
"""

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import grpc
import pytest
import trio
from go_tools import go_tool
from interop_service import message, payload, service, signature

from trio_broker.rpc.server import Server

CLIENT = "google.golang.org/grpc/interop/client@v1.84.0"
PATIENCE_S = 60
REQUEST_BYTES, RESPONSE_BYTES = 271828, 314159
GZIP = grpc.Compression.Gzip


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    server = Server()
    server.add_service(service())
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(server.serve_async)
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def client() -> str:
    return go_tool(CLIENT, "grpc-go-interop-client")


@pytest.mark.parametrize(
    "case",
    [
        "empty_unary",
        "large_unary",
        "client_streaming",
        "server_streaming",
        "ping_pong",
        "empty_stream",
        "cancel_after_begin",
        "cancel_after_first_response",
        "timeout_on_sleeping_server",
        "status_code_and_message",
        "special_status_message",
        "unimplemented_method",
        "unimplemented_service",
        "custom_metadata",
    ],
)
async def test_grpc_go(client: str, case: str) -> None:
    async with serving() as port:
        command = [client, "--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}"]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0, done.stdout.decode()


class Stub:
    """The methods that the cases of compression call, by grpcio."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.unary = self._method(channel.unary_unary, "UnaryCall")
        self.output = self._method(channel.unary_stream, "StreamingOutputCall")
        self.input = self._method(channel.stream_unary, "StreamingInputCall")

    def _method(self, kind: Callable[..., Any], name: str) -> Any:
        types = signature(name)
        return kind(
            f"/grpc.testing.TestService/{name}",
            request_serializer=types.request_type.SerializeToString,
            response_deserializer=types.response_type.FromString,
        )


def flag(value: bool) -> Any:
    return message("BoolValue")(value=value)


def simple(**fields: Any) -> Any:
    return message("SimpleRequest")(response_size=RESPONSE_BYTES, payload=payload(REQUEST_BYTES), **fields)


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def client_compressed_unary(stub: Stub) -> None:
    with refused():
        stub.unary(simple(expect_compressed=flag(True)))
    for compresses, compression in ((True, GZIP), (True, grpc.Compression.Deflate), (False, None)):
        answer = stub.unary(simple(expect_compressed=flag(compresses)), compression=compression)
        assert answer.payload.body == bytes(RESPONSE_BYTES)


def client_compressed_streaming(stub: Stub) -> None:
    request = message("StreamingInputCallRequest")
    with refused():
        stub.input(iter([request(expect_compressed=flag(True), payload=payload(27182))]))
    first = request(expect_compressed=flag(True), payload=payload(27182))
    second = request(expect_compressed=flag(False), payload=payload(45904))
    assert stub.input(iter([first, second]), compression=GZIP).aggregated_payload_size == 73086


def server_compressed_unary(stub: Stub) -> None:
    for compresses in (True, False):
        answer = stub.unary(simple(response_compressed=flag(compresses)))
        assert answer.payload.body == bytes(RESPONSE_BYTES)


def server_compressed_streaming(stub: Stub) -> None:
    parameters = message("ResponseParameters")
    asked = [(31415, True), (92653, False)]
    wanted = [parameters(size=size, compressed=flag(compresses)) for size, compresses in asked]
    request = message("StreamingOutputCallRequest")(response_parameters=wanted)
    assert [len(answer.payload.body) for answer in stub.output(request)] == [31415, 92653]


@pytest.mark.parametrize(
    "case",
    [client_compressed_unary, client_compressed_streaming, server_compressed_unary, server_compressed_streaming],
    ids=lambda case: case.__name__,
)
async def test_grpcio(case: Callable[[Stub], None]) -> None:
    def use(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            case(Stub(channel))

    async with serving() as port:
        await trio.to_thread.run_sync(partial(use, port))
