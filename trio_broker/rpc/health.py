"""The gRPC health checking service: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

Owns:      the status of each service name, and who watches it.
Not here:  what makes a service healthy (the caller of `Health.set` knows).
Threads:   the trio thread.
"""

from collections.abc import AsyncGenerator

import trio
from purerpc import InvalidArgumentError, NotFoundError, UnavailableError

from trio_broker._proto.grpc.health.v1 import health_pb2 as pb
from trio_broker._proto.grpc.health.v1.health_grpc import HealthServicer
from trio_broker.rpc.status import shown

NAME = "grpc.health.v1.Health"

_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


_NAME_MAX = 255
"""Characters of a name that may be watched."""


class Health(HealthServicer):
    """Serves grpc.health.v1. The empty name stands for the server as a whole."""

    def __init__(self, *services: str) -> None:
        self._serving = dict.fromkeys(("", *services), False)
        self._changed = trio.Event()
        self._stopping = False

    def set(self, service: str, *, serving: bool) -> None:
        """Change the status of a service; those who watch it are told."""
        if self._serving[service] is not serving:
            self._serving[service] = serving
            self._wake()

    def stop(self) -> None:
        """Nothing is served any more: watchers are told, and then their streams end."""
        self._serving = dict.fromkeys(self._serving, False)
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def Check(self, message: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Answer with the status now; NOT_FOUND for an unknown service."""
        await trio.lowlevel.checkpoint()
        if message.service not in self._serving:
            known = ", ".join(filter(None, self._serving))
            raise NotFoundError(f"unknown service {shown(message.service)}; known are {known}")
        return self._response(message.service)

    async def List(self, message: pb.HealthListRequest) -> pb.HealthListResponse:  # noqa: ARG002
        """Answer with the status of every service."""
        await trio.lowlevel.checkpoint()
        return pb.HealthListResponse(statuses={name: self._response(name) for name in self._serving})

    async def Watch(  # type: ignore[override] # noqa: ASYNC900 - purerpc's interface, which closes it
        self, message: pb.HealthCheckRequest
    ) -> AsyncGenerator[pb.HealthCheckResponse]:
        """Send the status now and whenever it changes."""
        if len(message.service) > _NAME_MAX:  # it is kept for as long as the client likes
            raise InvalidArgumentError(f"a service name of {len(message.service)} characters")
        told = None
        while True:
            changed = self._changed
            response = self._response(message.service)
            if response.status != told:
                told = response.status
                yield response
            if self._stopping:
                raise UnavailableError("the server is stopping")
            await changed.wait()

    def _response(self, service: str) -> pb.HealthCheckResponse:
        serving = self._serving.get(service)
        return pb.HealthCheckResponse(status=_UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING)
