"""Drop what has expired, a few milliseconds at a time; and the rows of writers that are gone.

Owns:      how much one step does.
Not here:  when to sweep, and how often (the broker); giving space back, which is autovacuum's.
Threads:   worker threads; each function blocks. Appends run beside it, on their own connection.
"""

from persistence.facade import Swept
from persistence.postgres.connection import Connection

MESSAGES_MAX = 1_000
BYTES_MAX = 8 * 1024 * 1024
"""Large bodies are stored in pieces of 2 kB, each of which costs as much as a message."""

_LOCK = int.from_bytes(b"swep")
"""The advisory lock of whoever sweeps: of several brokers one at a time does, and the others need not wait."""

# The time is a constant for the index to be searched by; it is NULL, and nothing found, while somebody else sweeps.
_DROP = """
    WITH turn AS MATERIALIZED (
        SELECT CASE WHEN pg_try_advisory_xact_lock(%(lock)s::bigint) THEN clock_timestamp() END AS now
    ), due AS MATERIALIZED (
        SELECT ctid, sum(octet_length(body)) OVER (ORDER BY expires_at ROWS UNBOUNDED PRECEDING) AS size,
               row_number() OVER (ORDER BY expires_at) AS number
        FROM (
            SELECT ctid, body, expires_at FROM trio_broker.messages
            WHERE expires_at <= (SELECT now FROM turn) ORDER BY expires_at LIMIT %(messages_max)s
            FOR UPDATE SKIP LOCKED  -- one row that somebody holds must not keep all others
        ) AS first
    ), dropped AS (
        DELETE FROM trio_broker.messages
        WHERE ctid = ANY (ARRAY (SELECT ctid FROM due WHERE size <= %(bytes_max)s OR number = 1)) RETURNING 1
    )
    SELECT (SELECT count(*) FROM dropped), (SELECT count(*) FROM due)
"""
# One that is locked is appending: it is not gone.
_DROP_WRITERS = """
    DELETE FROM trio_broker.writers WHERE id IN (
        SELECT id FROM trio_broker.writers WHERE seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
    )
"""


def sweep(connection: Connection) -> Swept:
    """Do one step."""
    bounds = {"lock": _LOCK, "messages_max": MESSAGES_MAX, "bytes_max": BYTES_MAX}
    removed, due = connection.execute(_DROP, bounds).fetchone() or (0, 0)
    more = removed > 0 and (removed < due or due == MESSAGES_MAX)  # none: something keeps them, do not try at once
    if not more:
        connection.execute(_DROP_WRITERS)
    return Swept(removed, more)
