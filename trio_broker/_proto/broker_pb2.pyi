import datetime

from trio_broker._proto.google.protobuf import duration_pb2 as _duration_pb2
from trio_broker._proto.google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
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

class PublishBatchRequest(_message.Message):
    __slots__ = ("messages", "atomic")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    ATOMIC_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[PublishRequest]
    atomic: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[PublishRequest, _Mapping]]] = ..., atomic: _Optional[bool] = ...) -> None: ...

class PublishBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[PublishResult]
    def __init__(self, results: _Optional[_Iterable[_Union[PublishResult, _Mapping]]] = ...) -> None: ...

class PublishResult(_message.Message):
    __slots__ = ("published", "failed")
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    published: PublishResponse
    failed: Failure
    def __init__(self, published: _Optional[_Union[PublishResponse, _Mapping]] = ..., failed: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "reason", "metadata", "retry_delay")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    metadata: _containers.ScalarMap[str, str]
    retry_delay: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PublishStreamRequest(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[PublishRequest]
    def __init__(self, messages: _Optional[_Iterable[_Union[PublishRequest, _Mapping]]] = ...) -> None: ...

class PublishStreamResponse(_message.Message):
    __slots__ = ("acks",)
    ACKS_FIELD_NUMBER: _ClassVar[int]
    acks: _containers.RepeatedCompositeFieldContainer[Ack]
    def __init__(self, acks: _Optional[_Iterable[_Union[Ack, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("count", "first_id", "published_at", "duplicate", "failed")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    count: int
    first_id: int
    published_at: _timestamp_pb2.Timestamp
    duplicate: bool
    failed: Failure
    def __init__(self, count: _Optional[int] = ..., first_id: _Optional[int] = ..., published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., duplicate: _Optional[bool] = ..., failed: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class MessageBatch(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[MessageResponse]
    def __init__(self, messages: _Optional[_Iterable[_Union[MessageResponse, _Mapping]]] = ...) -> None: ...

class FetchRangeRequest(_message.Message):
    __slots__ = ("subject", "after_id", "until_id", "max_messages")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    UNTIL_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    subject: str
    after_id: int
    until_id: int
    max_messages: int
    def __init__(self, subject: _Optional[str] = ..., after_id: _Optional[int] = ..., until_id: _Optional[int] = ..., max_messages: _Optional[int] = ...) -> None: ...

class FetchRangeResponse(_message.Message):
    __slots__ = ("messages", "scanned_to", "last_id")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SCANNED_TO_FIELD_NUMBER: _ClassVar[int]
    LAST_ID_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[MessageResponse]
    scanned_to: int
    last_id: int
    def __init__(self, messages: _Optional[_Iterable[_Union[MessageResponse, _Mapping]]] = ..., scanned_to: _Optional[int] = ..., last_id: _Optional[int] = ...) -> None: ...

class ListSubjectsRequest(_message.Message):
    __slots__ = ("prefix", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSubjectsResponse(_message.Message):
    __slots__ = ("subjects", "next_page_token")
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    subjects: _containers.RepeatedCompositeFieldContainer[SubjectInfo]
    next_page_token: str
    def __init__(self, subjects: _Optional[_Iterable[_Union[SubjectInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SubjectInfo(_message.Message):
    __slots__ = ("subject", "first_id", "last_id", "first_published_at", "last_published_at", "subscribers")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    FIRST_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    first_id: int
    last_id: int
    first_published_at: _timestamp_pb2.Timestamp
    last_published_at: _timestamp_pb2.Timestamp
    subscribers: int
    def __init__(self, subject: _Optional[str] = ..., first_id: _Optional[int] = ..., last_id: _Optional[int] = ..., first_published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., subscribers: _Optional[int] = ...) -> None: ...

class GetSubjectRequest(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class PurgeSubjectRequest(_message.Message):
    __slots__ = ("subject", "until_id")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    UNTIL_ID_FIELD_NUMBER: _ClassVar[int]
    subject: str
    until_id: int
    def __init__(self, subject: _Optional[str] = ..., until_id: _Optional[int] = ...) -> None: ...

class DeleteSubjectRequest(_message.Message):
    __slots__ = ("subject", "expected_last_id")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LAST_ID_FIELD_NUMBER: _ClassVar[int]
    subject: str
    expected_last_id: int
    def __init__(self, subject: _Optional[str] = ..., expected_last_id: _Optional[int] = ...) -> None: ...
