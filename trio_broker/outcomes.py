"""What the store says became of a message, as those who publish are told.

Owns:      `result_of`.
Not here:  errors of a whole flush (trio_broker/storage.py); statuses of gRPC (trio_broker/service/statuses.py).
Threads:   any: pure functions.
"""

from typing import assert_never

import persistence
from persistence import Appended, Duplicate, Failed, NewMessage, Outcome
from trio_broker.errors import Aborted, BrokerError, Conflict, Rejected
from trio_broker.runs import Result
from trio_broker.storage import broker_error


def result_of(message: NewMessage, outcome: Outcome) -> Result | None:
    """Return what became of a message; None: its content, or a neighbour's, kept the store from appending it."""
    match outcome:
        case Appended() | Duplicate():
            return outcome
        case persistence.Conflict(last_id, of_neighbour):
            return _conflict(message, last_id, of_neighbour=of_neighbour)
        case persistence.Rejected(why):
            return Rejected(why)
        case Failed(persistence.BadContent()):
            return None
        case Failed(error):
            return broker_error(error)
        case _:
            assert_never(outcome)


def _conflict(message: NewMessage, last_id: int, *, of_neighbour: bool) -> BrokerError:
    if of_neighbour:
        return Aborted(f"another message of the batch to {message.subject!r} conflicts; nothing was appended of them")
    expected = message.expected_last_id
    differs = f"and not {expected}" if expected != last_id else "but others of the batch go before this message"
    return Conflict(
        f"the last id of {message.subject!r} is {last_id}, {differs}; nothing was appended", last_id=last_id
    )
