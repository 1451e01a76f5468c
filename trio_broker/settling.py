"""Let who subscribes to what is new wait for what is committed already and not acknowledged yet.

Owns:      `Settling`: who has to wait, whom for, and for how long.
Not here:  what is under way here (trio_broker/commit.py), asking other brokers (trio_broker/replicas/links.py).
Threads:   the trio thread only.

The store may have a message for some ms before its publisher is told: the log's end, where a subscription to what is
new begins, is beyond it. So its headers wait until all brokers have acknowledged what was under way when the end was
looked up. What they commit later has higher ids: who is registered gets it.
"""

from collections.abc import Callable, Iterable

import trio

from trio_broker.commit import Committer
from trio_broker.fanout import Span
from trio_broker.start import New, Start

SETTLE_MAX_S = 0.25
"""So long at most: what is not acknowledged then is not waited for."""


class Settling:
    """The waits of one broker's subscriptions."""

    def __init__(self, committer: Committer) -> None:
        self.ask_others: Callable[[], Iterable[trio.Event]] = tuple
        """Asks the others to acknowledge what they have under way; returns what is set when each has, or is gone."""
        self._committer = committer

    async def wait(self, start: Start, span: Span) -> None:
        """Wait as who begins with ``start`` has to, whose registered ``span`` that is. A checkpoint only then."""
        if not isinstance(start, New) or span.after_id is None:
            return
        with trio.move_on_after(SETTLE_MAX_S):
            asked = self.ask_others()
            await self._committer.settle()
            for answered in asked:
                if not answered.is_set():
                    await answered.wait()
