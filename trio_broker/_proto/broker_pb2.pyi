import datetime

from trio_broker._proto.google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishRequest(_message.Message):
    __slots__ = ("subject", "body", "expirationSeconds", "headers", "idempotency_key", "keep", "expected_last_id")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    EXPIRATIONSECONDS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LAST_ID_FIELD_NUMBER: _ClassVar[int]
    subject: str
    body: bytes
    expirationSeconds: int
    headers: _containers.ScalarMap[str, bytes]
    idempotency_key: str
    keep: bool
    expected_last_id: int
    def __init__(self, subject: _Optional[str] = ..., body: _Optional[bytes] = ..., expirationSeconds: _Optional[int] = ..., headers: _Optional[_Mapping[str, bytes]] = ..., idempotency_key: _Optional[str] = ..., keep: _Optional[bool] = ..., expected_last_id: _Optional[int] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("id", "published_at", "duplicate")
    ID_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    id: int
    published_at: _timestamp_pb2.Timestamp
    duplicate: bool
    def __init__(self, id: _Optional[int] = ..., published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("subject", "earliest", "after_id", "at", "last", "until_id", "at_end", "report_gaps", "slow")
    class SlowPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CATCH_UP: _ClassVar[SubscribeRequest.SlowPolicy]
        DROP_OLDEST: _ClassVar[SubscribeRequest.SlowPolicy]
        FAIL: _ClassVar[SubscribeRequest.SlowPolicy]
    CATCH_UP: SubscribeRequest.SlowPolicy
    DROP_OLDEST: SubscribeRequest.SlowPolicy
    FAIL: SubscribeRequest.SlowPolicy
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    UNTIL_ID_FIELD_NUMBER: _ClassVar[int]
    AT_END_FIELD_NUMBER: _ClassVar[int]
    REPORT_GAPS_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    subject: str
    earliest: bool
    after_id: int
    at: _timestamp_pb2.Timestamp
    last: int
    until_id: int
    at_end: bool
    report_gaps: bool
    slow: SubscribeRequest.SlowPolicy
    def __init__(self, subject: _Optional[str] = ..., earliest: _Optional[bool] = ..., after_id: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last: _Optional[int] = ..., until_id: _Optional[int] = ..., at_end: _Optional[bool] = ..., report_gaps: _Optional[bool] = ..., slow: _Optional[_Union[SubscribeRequest.SlowPolicy, str]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("subject", "id")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    subject: str
    id: int
    def __init__(self, subject: _Optional[str] = ..., id: _Optional[int] = ...) -> None: ...

class MessageResponse(_message.Message):
    __slots__ = ("body", "id", "subject", "published_at", "headers", "gap")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    BODY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    id: int
    subject: str
    published_at: _timestamp_pb2.Timestamp
    headers: _containers.ScalarMap[str, bytes]
    gap: Gap
    def __init__(self, body: _Optional[bytes] = ..., id: _Optional[int] = ..., subject: _Optional[str] = ..., published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., headers: _Optional[_Mapping[str, bytes]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("to", "reason")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    to: int
    reason: str
    def __init__(self, to: _Optional[int] = ..., reason: _Optional[str] = ..., **kwargs) -> None: ...
