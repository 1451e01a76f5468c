"""A message broker that any gRPC client can use without an SDK.

`connect`, `open_broker` and `Broker` are imported on first use, so that a client's process never imports the
server's packages (``persistence`` and ``metrics``, names that its own modules may have).
"""

from typing import TYPE_CHECKING

from trio_broker._version import __version__
from trio_broker.errors import (
    Aborted,
    BrokerClosed,
    BrokerError,
    CannotOpen,
    Conflict,
    ConnectionLost,
    Draining,
    ExpiredId,
    InvalidArgument,
    InvalidBatch,
    InvalidExpiration,
    InvalidHeaders,
    InvalidId,
    InvalidKey,
    InvalidPage,
    InvalidPosition,
    InvalidSubject,
    Malformed,
    MessageTooLarge,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    SlowConsumer,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.message import Draft, Gap, Message, MessagePage, SubjectInfo, SubjectPage
from trio_broker.start import After, At, AtEnd, Earliest, Last, New, SlowPolicy

if TYPE_CHECKING:
    from trio_broker.broker import Broker, open_broker
    from trio_broker.client import connect

__all__ = [
    "Aborted",
    "After",
    "At",
    "AtEnd",
    "Broker",
    "BrokerClosed",
    "BrokerError",
    "CannotOpen",
    "Conflict",
    "ConnectionLost",
    "Draft",
    "Draining",
    "Earliest",
    "ExpiredId",
    "Gap",
    "InvalidArgument",
    "InvalidBatch",
    "InvalidExpiration",
    "InvalidHeaders",
    "InvalidId",
    "InvalidKey",
    "InvalidPage",
    "InvalidPosition",
    "InvalidSubject",
    "Last",
    "Malformed",
    "Message",
    "MessagePage",
    "MessageTooLarge",
    "New",
    "NotApplied",
    "OutcomeUnknown",
    "Overloaded",
    "Rejected",
    "SlowConsumer",
    "SlowPolicy",
    "StorageFull",
    "StorageUnavailable",
    "SubjectInfo",
    "SubjectPage",
    "__version__",
    "connect",
    "open_broker",
]


def __getattr__(name: str) -> object:
    if name in ("Broker", "open_broker"):
        from trio_broker import broker

        return getattr(broker, name)
    if name == "connect":
        from trio_broker import client

        return client.connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
