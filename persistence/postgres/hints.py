"""What is said on the channel that brokers listen to: which subjects a flush has changed.

Owns:      the channel, its payloads, and saying it beside the flushes on one connection.
Not here:  listening (wakeups.py).
Threads:   one worker thread; only `Hints.finish` waits.

Not part of the statement that appends. NOTIFY locks the database until its transaction is on disk: of four writers on
a disk that takes 3 ms, one at a time could commit, and they made 280 flushes a second instead of 1,000. And it fails
when somebody's listener has let the server's queue fill: that must fail no flush.
"""

import logging
from collections.abc import Iterable

import psycopg

from persistence.postgres.connection import Connection, is_undone, reason

CHANNEL = "trio_broker"

_PAYLOAD_BYTES_MAX = 7_000
"""PostgreSQL takes up to 7,999."""
_SEPARATOR = b"\n"
"""In no subject."""
_STATEMENT = b"trio_broker_hint"
_BINARY = 1

log = logging.getLogger(__name__)


class Hints:
    """The hints of one connection that appends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = False
        connection.pgconn.send_prepare(_STATEMENT, f"SELECT pg_notify('{CHANNEL}', $1)".encode())
        connection.results()

    def send(self, subjects: Iterable[bytes]) -> None:
        """Say that these have changed, and do not wait until it is said."""
        payload = _SEPARATOR.join(subjects)
        if len(payload) > _PAYLOAD_BYTES_MAX:
            payload = b""
        try:
            self._connection.pgconn.send_query_prepared(_STATEMENT, [payload], [_BINARY])
            self._connection.pgconn.flush()
        except psycopg.Error:
            self._connection.close()  # it is lost, and who uses it next finds that
        else:
            self._sent = True

    def finish(self) -> None:
        """Wait until what was sent is said, so that the connection can be used for the next statement."""
        if not self._sent:
            return
        self._sent = False
        try:
            self._connection.results()
        except psycopg.Error as error:
            if not is_undone(error):
                raise
            log.warning("hint_failed why=%s", reason(error))


def changed_subjects(payload: bytes) -> frozenset[str]:
    """Read a payload, whoever has sent it; none are named when any may have changed."""
    return frozenset(payload.decode(errors="replace").split(_SEPARATOR.decode())) if payload else frozenset()
