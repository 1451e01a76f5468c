"""A bound on how often the same is logged, so that a client that fails for ever cannot fill a disk.

Owns:      which lines count as the same, and how many of them are written in a minute.
Not here:  what is logged, and where to (trio_broker/logs.py).
Threads:   any may log. Two that log the same at once may be counted as one.
"""

import logging
from collections.abc import Hashable
from typing import NamedTuple

import structlog
import trio

LINES = 10
"""How many lines that are the same are written in a minute."""
CONNECTION_LINES = 600
"""How many debug lines of connections that are the same: who never gets to make a call causes them too."""
KINDS_MAX = 1000
"""How many kinds of lines are told apart in a minute; all others together are one more."""
PERIOD_S = 60.0
"""The minute."""

_LEFT_OUT = "lines_left_out"

log = structlog.get_logger()


class Kind(NamedTuple):
    """What makes lines the same."""

    level: int
    event: object
    method: object = None
    reason: object = None


class LineBudget(logging.Filter):
    """Lets the first lines of each kind through, until `renew`.

    Debug lines are not counted, but for those of connections: who asks gets all.
    """

    def __init__(self, lines: int = LINES) -> None:
        super().__init__()
        self._lines = lines
        self._counts: dict[Kind, int] = {}

    def is_spent(self, kind: Kind) -> bool:
        """Say whether a line would be left out, and count it then: who is about to log it need not.

        A line costs some 50 us, and this less than one.
        """
        count = self._counts.get(kind, 0)
        if count < self._lines:
            return False
        self._counts[kind] = count + 1
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is to be written."""
        kind = _kind(record)
        if kind.event == _LEFT_OUT or (kind.level <= logging.DEBUG and not _of_connection(kind)):
            return True
        if kind not in self._counts and len(self._counts) >= KINDS_MAX:
            kind = Kind(logging.WARNING, "others")
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count <= self._most(kind)

    def _most(self, kind: Kind) -> int:
        return CONNECTION_LINES if kind.level <= logging.DEBUG else self._lines

    async def keep_renewing(self) -> None:
        """Renew it every minute, until cancelled."""
        while True:
            await trio.sleep(PERIOD_S)
            self.renew()

    def renew(self) -> None:
        """Say how many lines of each kind were left out, at their own level, and begin anew."""
        counts, self._counts = self._counts, {}
        for kind, count in counts.items():
            if count > self._most(kind):
                facts = {name: value for name, value in kind._asdict().items() if value is not None}
                facts["of"] = facts.pop("event")
                log.log(facts.pop("level"), _LEFT_OUT, **facts, lines=count - self._most(kind))


def _of_connection(kind: Kind) -> bool:
    return isinstance(kind.event, str) and kind.event.startswith("connection_")


def _kind(record: logging.LogRecord) -> Kind:
    """Tell lines apart by their event, as logged: by structlog with its values, by logging as a template for them."""
    event: object = record.msg
    if not isinstance(event, dict):
        return Kind(record.levelno, event if isinstance(event, Hashable) else type(event))
    return Kind(record.levelno, event.get("event"), event.get("method"), event.get("reason"))
