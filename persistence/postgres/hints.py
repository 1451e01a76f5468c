"""What is said on the channel that brokers listen to: which subjects a flush has changed, and their last ids.

Owns:      the channel, its payloads, and saying it beside the flushes on one connection.
Not here:  listening (wakeups.py).
Threads:   one worker thread; only `Hints.finish` waits.

Not part of the statement that appends. NOTIFY locks the database until its transaction is on disk: of four writers on
a disk that takes 3 ms, one at a time could commit, and they made 280 flushes a second instead of 1,000. And it fails
when somebody's listener has let the server's queue fill: that must fail no flush.

A payload is a line for each subject: its name, a tab, its last id. An older release says the name alone, while brokers
of both share a database. And whoever may connect may say anything: what cannot be read hints at anything.
"""

import logging
import re
from collections.abc import Mapping, Sequence

import psycopg

from persistence.postgres.connection import Connection, is_undone, reason

CHANNEL = "trio_broker"

_PAYLOAD_BYTES_MAX = 7_000
"""PostgreSQL takes up to 7,999."""
_SUBJECTS_MAX = _PAYLOAD_BYTES_MAX // 4
"""More are too long in any case: each is a byte at least, and has a tab, a digit and an end of line."""
_LINE = r"\S+(?:\t[0-9]{1,18})?"
_PAYLOAD = re.compile(rf"{_LINE}(?:\n{_LINE})*")
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

    def send(self, subjects: Sequence[bytes], last_ids: Sequence[int]) -> None:
        """Say that these have changed, and do not wait until it is said."""
        payload = b""
        if len(subjects) <= _SUBJECTS_MAX:
            payload = b"\n".join([b"%b\t%d" % pair for pair in zip(subjects, last_ids, strict=True)])
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


def changed_subjects(payload: bytes) -> dict[str, int]:
    """Read a payload, whoever has sent it: a hint, as `Wakeups` gives it."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return {}
    if not _PAYLOAD.fullmatch(text):
        return {}
    lines = [line.partition("\t") for line in text.split("\n")]
    return {subject: int(last_id or 0) for subject, _, last_id in lines}


def add_hint(gathered: dict[str, int], hint: Mapping[str, int]) -> None:
    """Add one hint to another; neither is at anything. Who does not tell a last id may know of a higher one."""
    for subject, last_id in hint.items():
        before = gathered.get(subject, last_id)
        gathered[subject] = max(before, last_id) if before and last_id else 0
