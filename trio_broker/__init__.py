"""trio-broker: a message broker that any gRPC client can use, whose log is the database you already run.

`open_broker` and `Broker` are imported on first use, so that a client's process never imports the server's
packages (``persistence`` and ``metrics``, names that its own modules may have).
"""

from typing import TYPE_CHECKING

from trio_broker._version import __version__
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    Draining,
    ExpiredId,
    InvalidArgument,
    InvalidExpiration,
    InvalidHeaders,
    InvalidId,
    InvalidSubject,
    MessageTooLarge,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    SlowConsumer,
    StorageFull,
    StorageUnavailable,
)
from trio_broker.message import Message

if TYPE_CHECKING:
    from trio_broker.broker import Broker, open_broker

__all__ = [
    "Broker",
    "BrokerClosed",
    "BrokerError",
    "Draining",
    "ExpiredId",
    "InvalidArgument",
    "InvalidExpiration",
    "InvalidHeaders",
    "InvalidId",
    "InvalidSubject",
    "Message",
    "MessageTooLarge",
    "NotApplied",
    "OutcomeUnknown",
    "Overloaded",
    "SlowConsumer",
    "StorageFull",
    "StorageUnavailable",
    "__version__",
    "open_broker",
]


def __getattr__(name: str) -> object:
    if name in ("Broker", "open_broker"):
        from trio_broker import broker

        return getattr(broker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
