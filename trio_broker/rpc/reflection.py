"""gRPC server reflection, v1 and v1alpha: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md

Owns:      answers about the descriptors of one pool.
Not here:  which services are served (given by their names).
Threads:   the trio thread.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from purerpc import Cardinality, RPCSignature, Service, StatusCode

from trio_broker._proto.grpc.reflection.v1 import reflection_pb2 as v1
from trio_broker._proto.grpc.reflection.v1alpha import reflection_pb2 as v1alpha


def reflection_services(pool: DescriptorPool, names: Sequence[str]) -> list[Service]:
    """Return the reflection services, of both versions, for the services of these names."""
    return [_service(module, pool, names) for module in (v1, v1alpha)]


def _service(pb: Any, pool: DescriptorPool, names: Sequence[str]) -> Service:  # noqa: ANN401 - a generated module
    file: FileDescriptor = pb.DESCRIPTOR
    service = Service(f"{file.package}.ServerReflection")

    async def info(requests: AsyncIterator[Any]) -> AsyncGenerator[Any]:  # noqa: ASYNC900 - purerpc's interface
        async for request in requests:
            response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            try:
                _answer(pool, names, request, response)
            except (KeyError, ValueError) as error:
                response.error_response.error_code = StatusCode.NOT_FOUND.value
                response.error_response.error_message = f"not found: {error.args[0]}"
            yield response

    signature = RPCSignature(Cardinality.STREAM_STREAM, pb.ServerReflectionRequest, pb.ServerReflectionResponse)
    service.add_method("ServerReflectionInfo", info, signature)
    return service


def _answer(pool: DescriptorPool, names: Sequence[str], request: Any, response: Any) -> None:  # noqa: ANN401
    """Fill in the response to one request.

    Raises:
        KeyError: there is no such thing.
    """
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        for name in names:
            response.list_services_response.service.add(name=name)
    elif kind == "file_by_filename":
        _describe(pool.FindFileByName(request.file_by_filename), response)
    elif kind == "file_containing_symbol":
        _describe(_file_of(pool, request.file_containing_symbol), response)
    elif kind == "file_containing_extension":
        wanted = request.file_containing_extension
        message = pool.FindMessageTypeByName(wanted.containing_type)
        extension = pool.FindExtensionByNumber(message, wanted.extension_number)
        _describe(pool.FindFileContainingSymbol(extension.full_name), response)
    elif kind == "all_extension_numbers_of_type":
        message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
        response.all_extension_numbers_response.base_type_name = message.full_name
        numbers = sorted(extension.number for extension in pool.FindAllExtensions(message))
        response.all_extension_numbers_response.extension_number.extend(numbers)
    else:
        raise KeyError("a request without a question")


def _file_of(pool: DescriptorPool, symbol: str) -> FileDescriptor:
    """Find the file of a type, a service or a method, which the pool does not count as a symbol.

    Raises:
        KeyError: there is no such thing.
    """
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        return pool.FindMethodByName(symbol).containing_service.file


def _describe(file: FileDescriptor, response: Any) -> None:  # noqa: ANN401
    """Answer with a file and all it needs, itself first."""
    found = dict.fromkeys(_with_dependencies(file))
    response.file_descriptor_response.file_descriptor_proto.extend(each.serialized_pb for each in found)


def _with_dependencies(file: FileDescriptor) -> Iterator[FileDescriptor]:
    yield file
    for dependency in file.dependencies:
        yield from _with_dependencies(dependency)
