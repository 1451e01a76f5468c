"""The calls of broker.Admin.

Owns:      what a request is to the broker's administration, and what its answer is on the wire; page tokens.
Not here:  the rules (trio_broker/administration.py), statuses (statuses.py).
Threads:   the trio thread. Each call is a task.
"""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager

from purerpc import RpcFailedError

from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.broker_grpc import AdminServicer
from trio_broker.administration import Administration
from trio_broker.errors import BrokerError, InvalidPage
from trio_broker.message import SubjectInfo
from trio_broker.rpc.call import Call
from trio_broker.rpc.handlers import Context
from trio_broker.service.statuses import status_of
from trio_broker.subject import check_subject

NAME = "broker.Admin"
DROPPING = frozenset({"PurgeSubject", "DeleteSubject"})
"""The calls that make room."""


class AdminService(AdminServicer):
    """A broker's `Administration` behind gRPC."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def ListSubjects(self, message: pb.ListSubjectsRequest) -> pb.ListSubjectsResponse:
        """Return a page of subjects."""
        with _answering():
            after = _read_token(message.page_token)
            subjects, next_after = await self._administration.list(message.prefix, size=message.page_size, after=after)
        return pb.ListSubjectsResponse(
            subjects=[_on_the_wire(info) for info in subjects], next_page_token=_write_token(next_after)
        )

    async def GetSubject(self, message: pb.GetSubjectRequest) -> pb.SubjectInfo:
        """Return what is known of a subject."""
        with _answering():
            return _on_the_wire(await self._administration.info(message.subject))

    async def PurgeSubject(  # type: ignore[override] # purerpc's generated signature lacks the context
        self, message: pb.PurgeSubjectRequest, request: Context
    ) -> pb.SubjectInfo:
        """Drop messages of a subject."""
        peer = _who(request.call)
        with _answering():
            return _on_the_wire(await self._administration.purge(message.subject, message.until_id, asked_by=peer))

    async def DeleteSubject(  # type: ignore[override] # as above
        self, message: pb.DeleteSubjectRequest, request: Context
    ) -> pb.SubjectInfo:
        """Drop a subject."""
        expected = message.expected_last_id if message.HasField("expected_last_id") else None
        peer = _who(request.call)
        with _answering():
            return _on_the_wire(await self._administration.delete(message.subject, expected, asked_by=peer))


def _who(call: Call) -> str:
    """Say who asks, for the log: by the address, and by the certificate if there is one."""
    return call.app.peer if call.identity is None else f"{call.identity.name} at {call.app.peer}"


@contextmanager
def _answering() -> Iterator[None]:
    """Turn errors of the broker into the status of the call."""
    try:
        yield
    except BrokerError as error:
        raise RpcFailedError(status_of(error)) from None


def _on_the_wire(info: SubjectInfo) -> pb.SubjectInfo:
    made = pb.SubjectInfo(
        subject=info.subject, first_id=info.first_id, last_id=info.last_id, subscribers=info.subscribers
    )
    if info.first_published_at is not None:
        made.first_published_at.FromDatetime(info.first_published_at)
    if info.last_published_at is not None:
        made.last_published_at.FromDatetime(info.last_published_at)
    return made


def _write_token(after: str) -> str:
    return base64.urlsafe_b64encode(after.encode()).decode()


def _read_token(token: str) -> str:
    """Return what `_write_token` wrote.

    Raises:
        InvalidPage: it did not.
    """
    if not token:
        return ""
    try:
        after = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        check_subject(after)
    except (binascii.Error, ValueError):
        raise InvalidPage("page_token is none that ListSubjects has returned") from None
    else:
        return after
