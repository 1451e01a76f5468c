from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Greeting(_message.Message):
    __slots__ = ("secret", "to")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    to: str
    def __init__(self, secret: _Optional[bytes] = ..., to: _Optional[str] = ..., **kwargs) -> None: ...

class TailRequest(_message.Message):
    __slots__ = ("greeting", "add", "remove")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    add: _containers.RepeatedScalarFieldContainer[str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ..., add: _Optional[_Iterable[str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class TailResponse(_message.Message):
    __slots__ = ("subject", "last_id", "messages", "lifetimes", "heard")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    LAST_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    LIFETIMES_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    subject: str
    last_id: int
    messages: bytes
    lifetimes: _containers.RepeatedScalarFieldContainer[int]
    heard: int
    def __init__(self, subject: _Optional[str] = ..., last_id: _Optional[int] = ..., messages: _Optional[bytes] = ..., lifetimes: _Optional[_Iterable[int]] = ..., heard: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("greeting", "messages")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    messages: _containers.RepeatedCompositeFieldContainer[Appending]
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Appending, _Mapping]]] = ...) -> None: ...

class Appending(_message.Message):
    __slots__ = ("subject", "body", "lifetime", "headers", "idempotency_key", "expected_last_id", "group")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LAST_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    subject: str
    body: bytes
    lifetime: int
    headers: _containers.ScalarMap[str, bytes]
    idempotency_key: str
    expected_last_id: int
    group: int
    def __init__(self, subject: _Optional[str] = ..., body: _Optional[bytes] = ..., lifetime: _Optional[int] = ..., headers: _Optional[_Mapping[str, bytes]] = ..., idempotency_key: _Optional[str] = ..., expected_last_id: _Optional[int] = ..., group: _Optional[int] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[AppendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[AppendResult, _Mapping]]] = ...) -> None: ...

class AppendResult(_message.Message):
    __slots__ = ("appended", "duplicate", "conflict", "rejected", "unknown", "unavailable", "full")
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    appended: AppendedAt
    duplicate: AppendedAt
    conflict: int
    rejected: str
    unknown: str
    unavailable: str
    full: str
    def __init__(self, appended: _Optional[_Union[AppendedAt, _Mapping]] = ..., duplicate: _Optional[_Union[AppendedAt, _Mapping]] = ..., conflict: _Optional[int] = ..., rejected: _Optional[str] = ..., unknown: _Optional[str] = ..., unavailable: _Optional[str] = ..., full: _Optional[str] = ...) -> None: ...

class AppendedAt(_message.Message):
    __slots__ = ("id", "time_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    id: int
    time_us: int
    def __init__(self, id: _Optional[int] = ..., time_us: _Optional[int] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("greeting",)
    GREETING_FIELD_NUMBER: _ClassVar[int]
    greeting: Greeting
    def __init__(self, greeting: _Optional[_Union[Greeting, _Mapping]] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
