"""How a piece of work with the database is written down: as steps, each of which asks for one thing and gets it.

Owns:      what can be asked for: `Bound`, `Batch`, `AtOnce`, `Pause`; the list of all statements.
Not here:  the statements (buckets.py, writing.py, reading.py, registers.py); asking (database.py).
Threads:   any; nothing waits.

A generator that yields what it wants to know reads from top to bottom, and many of them make progress at once in one
thread: a batch of many subjects, a call for many messages. What it is sent are rows; what it is thrown is a
`StoreError` that says whether what it asked for may have been done.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from persistence.errors import OutcomeUnknown, StoreError, StoreUnavailable

R = TypeVar("R")
Row = Mapping[str, Any]
Rows = Sequence[Row]

RETRY_PAUSE_S = 0.05

STATEMENTS: list["Statement"] = []
"""All there are, each made when its module is imported, for them to be prepared when a database is opened."""


class Unclear(StoreUnavailable):
    """What was asked for may have been done, or may still be."""


class TooFewReplicas(Unclear):
    """Too few of them are alive to be asked. What has a condition may have been decided before they were."""


class OutOfPatience(StoreUnavailable):
    """It was waited for long enough. No further step is taken after that."""


class Statement:
    """A statement in CQL, ``{keyspace}`` in it still to be filled in."""

    def __init__(self, cql: str, *, serial: bool = False, whole: bool = False) -> None:
        """One that reads may have to be more careful than others.

        Args:
            cql: what to prepare.
            serial: take part in deciding, and so read what has been decided; it costs another round.
            whole: see all of a flush or nothing of it. ScyllaDB promises that only to those that are serial.
        """
        self.cql = cql
        self.serial = serial
        self.whole = whole
        STATEMENTS.append(self)

    def __call__(self, *values: object) -> "Bound":
        return Bound(self, values)


class Bound(NamedTuple):
    """A statement with its values."""

    statement: Statement
    values: Sequence[object]


class Batch(NamedTuple):
    """Statements on one partition that take effect together; if any has a condition, only if all conditions hold."""

    parts: Sequence[Bound]


class AtOnce(NamedTuple):
    """Statements, or batches, on any partitions, each for itself. The answer has the rows of all."""

    parts: Sequence[Bound | Batch]


class Pause(NamedTuple):
    """Go on later."""

    seconds: float


Request = Bound | Batch | AtOnce | Pause
Steps = Generator[Request, Rows, R]


def pause(longest_s: float = RETRY_PAUSE_S) -> Pause:
    """Return a pause of random length: several that wait for the same thing had better not come back together."""
    return Pause(random.uniform(0, longest_s))  # noqa: S311


def surely(request: Bound | Batch | AtOnce) -> Steps[Rows]:
    """Ask for what may be done twice, until there is an answer."""
    while True:
        try:
            return (yield request)
        except TooFewReplicas:
            raise
        except Unclear:
            yield pause()


def apply_once(request: Bound | Batch, was_mine: Callable[[], Steps[bool]]) -> Steps[Row | None]:
    """Apply what has a condition, or learn that it cannot be: return None, or the row that stood in its way.

    As long as an answer is missing the same request is sent again. Its condition no longer holds once it was applied:
    so it is applied once at most. But when it is turned down, ``was_mine`` has to look whether that is because of a
    try before. To look without having sent it again would prove nothing: the try before may still be on its way.

    Raises:
        OutcomeUnknown: patience ended before it was known.
        StoreError: it was not applied, and never will be.
    """
    doubt: Unclear | None = None
    try:
        while True:
            try:
                (row, *_) = yield request
                applied = row["[applied]"] or (doubt is not None and (yield from was_mine()))
            except (OutOfPatience, OutcomeUnknown):
                raise
            except Unclear as error:
                doubt = error
            except StoreError:
                if doubt is None:
                    raise
            else:
                return None if applied else row
            yield pause()
    except OutOfPatience as error:
        raise OutcomeUnknown(f"{doubt or error}; it may or may not have been done") from error
