"""The wire never changes under a client: names and numbers are golden, the generated code is what protoc makes."""

import os
import subprocess
import sys
from pathlib import Path

import purerpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from trio_broker._proto import broker_pb2 as pb
from trio_broker._proto.broker_grpc import AdminServicer, BrokerServicer
from trio_broker.start import SlowPolicy

ROOT = Path(__file__).parent.parent

GOLDEN = {
    "PublishRequest": {
        "subject": (1, "STRING"),
        "body": (2, "BYTES"),
        "expirationSeconds": (3, "INT32"),
        "headers": (4, "map<STRING, BYTES>"),
        "idempotency_key": (5, "STRING"),
        "keep": (6, "BOOL"),
        "expected_last_id": (7, "INT64"),
    },
    "PublishResponse": {
        "id": (1, "INT64"),
        "published_at": (2, "google.protobuf.Timestamp"),
        "duplicate": (3, "BOOL"),
    },
    "SubscribeRequest": {
        "subject": (1, "STRING"),
        "earliest": (2, "BOOL"),
        "after_id": (3, "INT64"),
        "at": (4, "google.protobuf.Timestamp"),
        "last": (5, "INT64"),
        "until_id": (6, "INT64"),
        "at_end": (7, "BOOL"),
        "report_gaps": (8, "BOOL"),
        "slow": (9, "ENUM"),
    },
    "FetchRequest": {"subject": (1, "STRING"), "id": (2, "INT64")},
    "MessageResponse": {
        "body": (1, "BYTES"),
        "id": (2, "INT64"),
        "subject": (3, "STRING"),
        "published_at": (4, "google.protobuf.Timestamp"),
        "headers": (5, "map<STRING, BYTES>"),
        "gap": (6, "broker.Gap"),
    },
    "PublishBatchRequest": {"messages": (1, "broker.PublishRequest"), "atomic": (2, "BOOL")},
    "PublishBatchResponse": {"results": (1, "broker.PublishResult")},
    "PublishResult": {"published": (1, "broker.PublishResponse"), "failed": (2, "broker.Failure")},
    "Failure": {
        "code": (1, "INT32"),
        "message": (2, "STRING"),
        "reason": (3, "STRING"),
        "metadata": (4, "map<STRING, STRING>"),
        "retry_delay": (5, "google.protobuf.Duration"),
    },
    "PublishStreamRequest": {"messages": (1, "broker.PublishRequest")},
    "PublishStreamResponse": {"acks": (1, "broker.Ack")},
    "Ack": {
        "count": (1, "INT64"),
        "first_id": (2, "INT64"),
        "published_at": (3, "google.protobuf.Timestamp"),
        "duplicate": (4, "BOOL"),
        "failed": (5, "broker.Failure"),
    },
    "MessageBatch": {"messages": (1, "broker.MessageResponse")},
    "FetchRangeRequest": {
        "subject": (1, "STRING"),
        "after_id": (2, "INT64"),
        "until_id": (3, "INT64"),
        "max_messages": (4, "INT32"),
    },
    "FetchRangeResponse": {
        "messages": (1, "broker.MessageResponse"),
        "scanned_to": (2, "INT64"),
        "last_id": (3, "INT64"),
    },
    "ListSubjectsRequest": {"prefix": (1, "STRING"), "page_size": (2, "INT32"), "page_token": (3, "STRING")},
    "ListSubjectsResponse": {"subjects": (1, "broker.SubjectInfo"), "next_page_token": (2, "STRING")},
    "SubjectInfo": {
        "subject": (1, "STRING"),
        "first_id": (2, "INT64"),
        "last_id": (3, "INT64"),
        "first_published_at": (4, "google.protobuf.Timestamp"),
        "last_published_at": (5, "google.protobuf.Timestamp"),
        "subscribers": (6, "INT64"),
    },
    "GetSubjectRequest": {"subject": (1, "STRING")},
    "PurgeSubjectRequest": {"subject": (1, "STRING"), "until_id": (2, "INT64")},
    "DeleteSubjectRequest": {"subject": (1, "STRING"), "expected_last_id": (2, "INT64")},
    "Gap": {"from": (1, "INT64"), "to": (2, "INT64"), "reason": (3, "STRING")},
}
SLOW_POLICIES = {"CATCH_UP": 0, "DROP_OLDEST": 1, "FAIL": 2}

CALLS = {
    "Publish": ("PublishRequest", "PublishResponse", False, False),
    "Subscribe": ("SubscribeRequest", "MessageResponse", False, True),
    "Fetch": ("FetchRequest", "MessageResponse", False, False),
    "PublishBatch": ("PublishBatchRequest", "PublishBatchResponse", False, False),
    "PublishStream": ("PublishStreamRequest", "PublishStreamResponse", True, True),
    "SubscribeBatch": ("SubscribeRequest", "MessageBatch", False, True),
    "FetchRange": ("FetchRangeRequest", "FetchRangeResponse", False, False),
}
ADMIN_CALLS = {
    "ListSubjects": ("ListSubjectsRequest", "ListSubjectsResponse", False, False),
    "GetSubject": ("GetSubjectRequest", "SubjectInfo", False, False),
    "PurgeSubject": ("PurgeSubjectRequest", "SubjectInfo", False, False),
    "DeleteSubject": ("DeleteSubjectRequest", "SubjectInfo", False, False),
}

TYPE_NAMES = {
    value: name.removeprefix("TYPE_") for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")
}


def kind(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return TYPE_NAMES[field.type]
    if not field.message_type.GetOptions().map_entry:
        return field.message_type.full_name
    key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    return f"map<{TYPE_NAMES[key.type]}, {TYPE_NAMES[value.type]}>"


def test_field_names_numbers_and_types_never_change() -> None:
    assert pb.DESCRIPTOR.package == "broker"
    found = {
        message.name: {field.name: (field.number, kind(field)) for field in message.fields}
        for message in pb.DESCRIPTOR.message_types_by_name.values()
    }
    assert found == GOLDEN


def test_policies_never_change_and_are_the_same_in_python() -> None:
    assert dict(pb.SubscribeRequest.SlowPolicy.items()) == SLOW_POLICIES
    assert {policy.name: policy.value for policy in SlowPolicy} == SLOW_POLICIES


@pytest.mark.parametrize(
    ("name", "calls", "servicer"), [("Broker", CALLS, BrokerServicer), ("Admin", ADMIN_CALLS, AdminServicer)]
)
def test_calls_never_change(name: str, calls: dict[str, object], servicer: type[purerpc.Servicer]) -> None:
    service = pb.DESCRIPTOR.services_by_name[name]
    assert service.full_name == f"broker.{name}"
    found = {
        call.name: (call.input_type.name, call.output_type.name, call.client_streaming, call.server_streaming)
        for call in service.methods
    }
    assert found == calls
    assert set(servicer().service.methods) == set(calls)


def test_generating_again_gives_the_same(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # protoc finds purerpc's plugin there
    subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", tmp_path], check=True, env={**os.environ, "PATH": path}
    )
    checked_in = ROOT / "trio_broker" / "_proto"
    generated = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*")}
    assert generated
    for name in sorted(generated):
        assert (tmp_path / name).read_text() == (checked_in / name).read_text(), name
    own = {Path("__init__.py"), Path("pool.py")}
    assert {
        path.relative_to(checked_in) for path in checked_in.rglob("*.py*") if path.suffix != ".pyc"
    } <= generated | own


def test_a_users_own_stubs_of_the_same_package_live_in_the_same_process(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={tmp_path}", "broker.proto"],
        check=True,
    )
    program = """
from trio_broker._proto import broker_pb2 as ours
from trio_broker._proto.google.rpc import status_pb2
import broker_pb2 as theirs
assert ours.PublishRequest is not theirs.PublishRequest
request = theirs.PublishRequest(subject="orders", body=b"x", headers={"k": b"v"})
assert ours.PublishRequest.FromString(request.SerializeToString()).headers["k"] == b"v"
from google.protobuf import descriptor_pool
assert descriptor_pool.Default().FindFileByName("broker.proto") is not ours.DESCRIPTOR
"""
    for order in (program, "import broker_pb2\n" + program):
        subprocess.run([sys.executable, "-W", "error", "-c", order], check=True, cwd=tmp_path)
