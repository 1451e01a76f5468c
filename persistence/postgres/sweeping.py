"""Drop messages and keys that have expired or were purged, a few milliseconds at a time; and rows of writers now gone.

Owns:      how much one step does, and from where on it looks.
Not here:  when to sweep, and how often (the broker); giving space back, which is autovacuum's.
Threads:   worker threads, one at a time; each function blocks. Appends run beside it, on their own connection.
"""

import logging
import time
from collections.abc import Callable

import psycopg

from persistence.facade import Swept
from persistence.postgres.connection import Connection
from persistence.postgres.purging import drop_purged

log = logging.getLogger(__name__)

MESSAGES_MAX = 2_000
"""Messages, and keys, in one step."""
BYTES_MAX = 8 * 1024 * 1024
"""Large bodies are stored in pieces of 2 kB, each of which costs as much as a message."""
WHOLE_INTERVAL_S = 60
"""How often a sweep begins with the oldest expiry that the index has."""

SWEEPING = int.from_bytes(b"swep")
"""The advisory lock of whoever sweeps: of several brokers one at a time does, and the others need not wait."""

# The time is a constant for the index to be searched by; it is NULL, and nothing found, while somebody else sweeps.
_DROP_FROM = """
    WITH turn AS MATERIALIZED (
        SELECT CASE WHEN pg_try_advisory_xact_lock(%(lock)s::bigint) THEN clock_timestamp() END AS now
    ), due AS MATERIALIZED (
        SELECT ctid, sum(size) OVER (ORDER BY expires_at ROWS UNBOUNDED PRECEDING) AS size,
               row_number() OVER (ORDER BY expires_at) AS number
        FROM (
            SELECT ctid, {size} AS size, expires_at FROM trio_broker.{table}
            WHERE expires_at >= coalesce('epoch'::timestamptz + %(from_ms)s::bigint * interval '1 ms', '-infinity')
                AND expires_at <= (SELECT now FROM turn)
            ORDER BY expires_at LIMIT %(messages_max)s
            FOR UPDATE SKIP LOCKED  -- one row that somebody holds must not keep all others
        ) AS first
    ), dropped AS (
        DELETE FROM trio_broker.{table}
        WHERE ctid = ANY (ARRAY (SELECT ctid FROM due WHERE size <= %(bytes_max)s OR number = 1)) RETURNING expires_at
    )
    SELECT (SELECT count(*) FROM dropped), (SELECT count(*) FROM due), (SELECT max(expires_at) FROM dropped), now
    FROM turn
"""
_DROP_MESSAGES = _DROP_FROM.format(table="messages", size="octet_length(body)")
_DROP_KEYS = _DROP_FROM.format(table="keys", size="0")
# Only the index gives the oldest without a look at all that is due, and the planner knows too little of a table that
# changes so quickly to see that each time.
_BY_THE_INDEX = ("SET LOCAL enable_bitmapscan = off", "SET LOCAL enable_seqscan = off")
# One that is locked is appending: it is not gone.
_DROP_WRITERS = """
    DELETE FROM trio_broker.writers WHERE id IN (
        SELECT id FROM trio_broker.writers WHERE seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
    )
"""
_A_WHILE_AGO = f"SELECT clock_timestamp() - interval '{WHOLE_INTERVAL_S} seconds'"


class Sweeper:
    """Drops what has expired, messages first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._messages = _Table(_DROP_MESSAGES, clock)
        self._keys = _Table(_DROP_KEYS, clock)

    def sweep(self, connection: Connection) -> Swept:
        """Do one step."""
        removed, more = self._messages.sweep(connection)
        if not more:
            more = self._keys.sweep(connection).more
        if not more:
            purged, more = drop_purged(connection, SWEEPING, MESSAGES_MAX, BYTES_MAX)
            removed += purged
        return Swept(removed, more)


class _Table:
    """A table whose rows expire, and how far sweeping has come in it.

    What was dropped stays in the index until vacuum has been there, and vacuum leaves it as long as any transaction
    might see it: a backup, say, for an hour. A step that began with the oldest would walk over all of it. So a step
    begins where the one before it ended. What that leaves behind is found by the step that once in a while does begin
    with the oldest: what was committed after its own expiry, or with a clock that has gone back, or was locked.
    """

    def __init__(self, drop: str, clock: Callable[[], float]) -> None:
        self._drop_due = drop
        self._clock = clock
        self._from_us: int | None = None
        """Nothing that expires before is left; None: it is not known."""
        self._whole_at_s = clock()

    def sweep(self, connection: Connection) -> Swept:
        """Do one step."""
        whole = self._clock() >= self._whole_at_s
        try:
            removed, due, last_us, now_us = self._drop(connection, None if whole else self._from_us)
        except psycopg.errors.QueryCanceled:
            connection.rollback()
            if not whole:
                raise
            self._leave_for_later(connection)
            return Swept(0, more=True)
        if now_us is None:
            return Swept(0, more=False)
        if whole:
            self._whole_at_s = self._clock() + WHOLE_INTERVAL_S
            connection.execute(_DROP_WRITERS)
        more = removed > 0 and (removed < due or due == MESSAGES_MAX)  # none: something keeps them, do not try at once
        self._from_us = last_us if more else now_us
        return Swept(removed, more)

    def _leave_for_later(self, connection: Connection) -> None:
        """Go on where we were: the oldest cannot be reached in time, as long as vacuum cannot clear the way."""
        self._whole_at_s = self._clock() + WHOLE_INTERVAL_S
        if self._from_us is None:
            ((self._from_us,),) = connection.execute(_A_WHILE_AGO, binary=True).fetchall()
        log.warning("sweep_obstructed why=%r", "an open transaction keeps vacuum from clearing what was dropped")

    def _drop(self, connection: Connection, from_us: int | None) -> tuple[int, int, int | None, int | None]:
        """Return how many were dropped of how many, the last expiry dropped, and the time. No time: not our turn."""
        # an interval is multiplied as a float, which is exact for milliseconds
        from_ms = None if from_us is None else from_us // 1000
        bounds = {"lock": SWEEPING, "messages_max": MESSAGES_MAX, "bytes_max": BYTES_MAX, "from_ms": from_ms}
        with connection.pipeline():  # one round trip
            connection.execute("BEGIN")
            for setting in _BY_THE_INDEX:
                connection.execute(setting)
            cursor = connection.execute(self._drop_due, bounds, binary=True)
            connection.execute("COMMIT")
        ((removed, due, last_us, now_us),) = cursor.fetchall()
        return removed, due, last_us, now_us
