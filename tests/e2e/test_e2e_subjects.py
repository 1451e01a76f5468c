"""broker.Admin by grpcio and the Python client, on each store."""

from collections.abc import Iterator

import grpc
import pytest
import trio
from e2e_broker import SAFETY_S, BrokerProcess
from e2e_peers import OWN_CONNECTION

from trio_broker import Conflict, InvalidId, connect
from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.google.rpc.error_details_pb2 import ErrorInfo
from trio_broker._proto.google.rpc.status_pb2 import Status

HOUR = 3600


class Client:
    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, path: str, request: object, answer: type) -> object:
        return self._channel.unary_unary(path, type(request).SerializeToString, answer.FromString)(
            request, timeout=SAFETY_S
        )

    def publish(self, subject: str, count: int = 1, **fields: object) -> int:
        drafts = [pb.PublishRequest(subject=subject, body=b"x", **{"expirationSeconds": HOUR, **fields})] * count
        request = pb.PublishBatchRequest(messages=drafts)
        return self.call("/broker.Broker/PublishBatch", request, pb.PublishBatchResponse).results[-1].published.id

    def fetch(self, subject: str, id_: int) -> pb.MessageResponse:
        return self.call("/broker.Broker/Fetch", pb.FetchRequest(subject=subject, id=id_), pb.MessageResponse)

    def page(self, **fields: object) -> pb.ListSubjectsResponse:
        return self.call("/broker.Admin/ListSubjects", pb.ListSubjectsRequest(**fields), pb.ListSubjectsResponse)

    def names(self, prefix: str) -> list[str]:
        return [info.subject for info in self.page(prefix=prefix, page_size=1000).subjects]

    def get(self, subject: str) -> pb.SubjectInfo:
        return self.call("/broker.Admin/GetSubject", pb.GetSubjectRequest(subject=subject), pb.SubjectInfo)

    def purge(self, subject: str, until_id: int = 0) -> pb.SubjectInfo:
        request = pb.PurgeSubjectRequest(subject=subject, until_id=until_id)
        return self.call("/broker.Admin/PurgeSubject", request, pb.SubjectInfo)

    def delete(self, subject: str, **fields: object) -> pb.SubjectInfo:
        request = pb.DeleteSubjectRequest(subject=subject, **fields)
        return self.call("/broker.Admin/DeleteSubject", request, pb.SubjectInfo)


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[Client]:
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        yield Client(channel)


def reason_of(failure: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    details = dict(failure.value.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert Status.FromString(details).details[0].Unpack(info)
    return failure.value.code(), info.reason, dict(info.metadata)


def test_a_subject_is_what_was_published_to_it(client: Client, subject: str) -> None:
    assert client.get(subject) == pb.SubjectInfo(subject=subject, first_id=1, last_id=0)
    assert client.publish(subject, 3) == 3
    info = client.get(subject)
    assert (info.first_id, info.last_id, info.subscribers) == (1, 3, 0)
    assert info.first_published_at == client.fetch(subject, 1).published_at
    assert info.last_published_at == client.fetch(subject, 3).published_at
    client.publish(subject, expirationSeconds=0)
    info = client.get(subject)
    assert (info.first_id, info.last_id, info.HasField("last_published_at")) == (1, 4, False)


def test_who_listens_is_counted(broker: BrokerProcess, client: Client, subject: str) -> None:
    async def listen() -> int:
        async with connect(broker.address) as other, other.subscribe(subject), other.subscribe(subject):
            return (await other.get_subject(subject)).subscribers

    assert trio.run(listen) == 2


def test_what_is_purged_is_expired_at_once_and_ids_go_on(client: Client, subject: str) -> None:
    client.publish(subject, 10)
    assert client.purge(subject, 4).first_id == 5
    with pytest.raises(grpc.RpcError) as failure:
        client.fetch(subject, 4)
    assert reason_of(failure)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "EXPIRED_ID")
    assert client.fetch(subject, 5).id == 5
    info = client.purge(subject)
    assert (info.first_id, info.last_id) == (11, 10)
    assert client.publish(subject) == 11
    assert client.names(subject) == [subject]


def test_only_ids_that_were_assigned_are_purged(client: Client, subject: str) -> None:
    client.publish(subject, 2)
    for id_ in (3, -1, 2**63 - 1):
        with pytest.raises(grpc.RpcError) as failure:
            client.purge(subject, id_)
        assert reason_of(failure) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ID", {"last_id": "2"})
    assert client.get(subject).first_id == 1
    with pytest.raises(grpc.RpcError) as failure:
        client.purge("a b")
    assert reason_of(failure)[1] == "INVALID_SUBJECT"


def test_a_deleted_subject_is_gone_until_it_is_published_to(client: Client, subject: str) -> None:
    client.publish(subject, 3)
    with pytest.raises(grpc.RpcError) as failure:
        client.delete(subject, expected_last_id=2)
    assert reason_of(failure) == (grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT", {"last_id": "3"})
    assert client.names(subject) == [subject]
    info = client.delete(subject, expected_last_id=3)
    assert (info.first_id, info.last_id) == (4, 3)
    assert client.names(subject) == []
    assert client.delete(subject).last_id == 3
    assert client.publish(subject) == 4
    assert client.names(subject) == [subject]


def test_subjects_are_listed_page_by_page(client: Client, subject: str) -> None:
    names = sorted([f"{subject}.{name}" for name in ("a", "b", "ü", "z.1", "z.2", "\U0001f600")], key=str.encode)
    for name in names:
        client.publish(name)
    client.publish(f"{subject}!")  # after those with a dot, before nothing of them
    assert client.names(f"{subject}.") == names
    assert client.names(f"{subject}.z") == [f"{subject}.z.1", f"{subject}.z.2"]
    assert client.names(f"{subject}.\U0001f600") == [f"{subject}.\U0001f600"]
    assert client.names(f"{subject}.c") == []
    listed, token = [], ""
    while True:
        page = client.page(prefix=f"{subject}.", page_size=4, page_token=token)
        listed.append([info.subject for info in page.subjects])
        token = page.next_page_token
        if not token:
            break
    assert listed == [names[:4], names[4:]]


@pytest.mark.parametrize("prefix", ["\x00", "a\x01", "a b"])
def test_no_subject_begins_with_what_none_may_hold(client: Client, prefix: str) -> None:
    assert client.page(prefix=prefix) == pb.ListSubjectsResponse()


@pytest.mark.parametrize(
    "fields", [{"page_size": -1}, {"page_token": "?"}, {"page_token": "_w=="}, {"page_token": "AA=="}]
)
def test_a_page_that_is_none_is_refused(client: Client, fields: dict[str, object]) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        client.page(**fields)
    assert reason_of(failure)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE")


def test_the_python_client_asks_the_same(broker: BrokerProcess, subject: str) -> None:
    async def scenario() -> None:
        async with connect(broker.address) as client:
            for _ in range(3):
                await client.publish(subject, b"x", HOUR)
            page = await client.list_subjects(subject, page_size=1)
            assert ([info.subject for info in page.subjects], page.next_token) == ([subject], "")
            message = await client.fetch(subject, 1)
            info = await client.get_subject(subject)
            assert (info.first_id, info.last_id) == (1, 3)
            assert info.first_published_at == message.published_at
            assert (await client.purge_subject(subject, 2)).first_id == 3
            with pytest.raises(InvalidId):
                await client.purge_subject(subject, 9)
            with pytest.raises(Conflict):
                await client.delete_subject(subject, 0)
            deleted = await client.delete_subject(subject)
            assert (deleted.last_id, deleted.last_published_at) == (3, None)

    trio.run(scenario)


def test_a_replay_goes_over_what_is_purged_and_tells_the_gap(
    broker: BrokerProcess, client: Client, subject: str
) -> None:
    client.publish(subject, 5)
    client.purge(subject, 2)
    with grpc.insecure_channel(broker.address, OWN_CONNECTION) as channel:
        stream = channel.unary_stream(
            "/broker.Broker/Subscribe", pb.SubscribeRequest.SerializeToString, pb.MessageResponse.FromString
        )
        request = pb.SubscribeRequest(subject=subject, earliest=True, at_end=True, report_gaps=True)
        assert [message.id for message in stream(request, timeout=SAFETY_S)] == [3, 4, 5]
        request = pb.SubscribeRequest(subject=subject, after_id=1, at_end=True, report_gaps=True)
        gap, *messages = stream(request, timeout=SAFETY_S)
    assert (getattr(gap.gap, "from"), gap.gap.to, gap.gap.reason) == (2, 2, "unavailable")
    assert [message.id for message in messages] == [3, 4, 5]


def test_a_broker_without_admin_has_no_such_service() -> None:
    with BrokerProcess("memory:", "--no-admin") as process:
        with grpc.insecure_channel(process.address, OWN_CONNECTION) as channel, pytest.raises(grpc.RpcError) as failure:
            Client(channel).get("orders")
        process.stop()
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_who_dropped_what_is_logged() -> None:
    with BrokerProcess("memory:") as process:
        with grpc.insecure_channel(process.address, OWN_CONNECTION) as channel:
            client = Client(channel)
            client.publish("orders", 3)
            client.purge("orders", 2)
            client.delete("orders")
        process.stop()
    lines = [line for line in process.log if str(line["event"]).startswith("subject_")]
    assert [(line["event"], line["level"], line["subject"], line["until_id"]) for line in lines] == [
        ("subject_purged", "info", "orders", 2),
        ("subject_deleted", "info", "orders", 3),
    ]
    assert all(str(line["peer"]).startswith("127.0.0.1:") for line in lines)
