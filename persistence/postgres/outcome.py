"""The writer's row: by it, a flush whose answer was lost has a known outcome.

Owns:      the table ``writers``.
Not here:  when to ask (writing.py), the statement that writes the row (flush.py).
Threads:   worker threads; each function blocks.

Each connection that appends begins by taking the row over: it raises the epoch, and learns what the last flush was.
That waits for a flush of the connection before it which is under way, and fences one that has not begun: it will find
another epoch, and append nothing. So what the row says then is final.
"""

from typing import NamedTuple
from uuid import UUID, uuid4

from persistence.postgres.connection import Connection
from persistence.postgres.flush import Answer

_REGISTER = """
    INSERT INTO trio_broker.writers (id, epoch, flush, last_ids, times, seen_at)
    VALUES (%s, 1, 0, '{}', '{}', clock_timestamp())
"""
_TAKE_OVER = """
    UPDATE trio_broker.writers SET epoch = epoch + 1, seen_at = clock_timestamp()
    WHERE id = %s RETURNING epoch, flush, last_ids, times
"""


class Turn(NamedTuple):
    """A connection's right to append."""

    writer: UUID
    epoch: int
    last_flush: int
    """The last flush that was applied; 0: none."""
    answer: Answer
    """What it did."""


def register(connection: Connection) -> Turn:
    """Begin as a new writer."""
    turn = Turn(uuid4(), epoch=1, last_flush=0, answer=Answer([], []))
    connection.execute(_REGISTER, [turn.writer])
    return turn


def take_over(connection: Connection, writer: UUID) -> Turn | None:
    """Go on as a writer that has had another connection; None: its row is gone."""
    row = connection.execute(_TAKE_OVER, [writer], binary=True).fetchone()
    if row is None:
        return None
    epoch, flush, last_ids, times_us = row
    return Turn(writer, epoch, flush, Answer(last_ids, times_us))
