"""Where messages are kept: one facade over several databases. Never imports ``trio_broker``."""

from persistence.errors import BadContent, CannotOpen, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from persistence.facade import (
    NO_HEADERS,
    Appended,
    Durability,
    ExpiredId,
    Head,
    InvalidId,
    Key,
    Limits,
    NewMessage,
    Outcome,
    Page,
    Record,
    Register,
    Rejected,
    Store,
    Swept,
)
from persistence.opening import open_store

__all__ = [
    "NO_HEADERS",
    "Appended",
    "BadContent",
    "CannotOpen",
    "Durability",
    "ExpiredId",
    "Head",
    "InvalidId",
    "Key",
    "Limits",
    "NewMessage",
    "Outcome",
    "OutcomeUnknown",
    "Page",
    "Record",
    "Register",
    "Rejected",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "Swept",
    "open_store",
]
