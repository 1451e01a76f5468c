"""Learn what others appended by asking for the heads of subjects, again and again.

Owns:      what was seen of each subject that somebody is interested in.
Not here:  who is interested in what (the broker); asking (store.py).
Threads:   the trio thread only.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping

import trio

from persistence.cassandra.buckets import Bucket, find_head, look_at
from persistence.cassandra.steps import Steps
from persistence.errors import StoreUnavailable
from persistence.facade import Wakeups

POLL_INTERVAL_S = 0.5
"""How often heads are asked for, if nothing else is asked for."""

Heads = Mapping[str, Bucket | None]


class Polling(Wakeups):
    """Hints by polling. It asks for no subject but those of interest, and again only when it has been answered."""

    def __init__(
        self,
        interest: Callable[[], Collection[str]],
        ask: Callable[[Heads], Awaitable[Heads]],
        poll_interval_s: float,
    ) -> None:
        self._interest = interest
        self._ask = ask
        self._poll_interval_s = poll_interval_s
        self._heads: Heads = {}
        self._connected: bool | None = None

    @property
    def connected(self) -> bool | None:
        return self._connected

    async def __anext__(self) -> Mapping[str, int]:
        while True:
            await trio.sleep(self._poll_interval_s)
            known = {subject: self._heads.get(subject) for subject in self._interest()}
            if not known:
                self._connected = None
                continue
            try:
                self._heads = await self._ask(known)
            except StoreUnavailable:
                self._connected = False
                return {}
            self._connected = True
            changed = {subject: head for subject, head in self._heads.items() if head != known[subject]}
            if changed:
                return {subject: head.last_id if head else 0 for subject, head in changed.items()}


def look_again(subject: str, head: Bucket | None) -> Steps[Bucket | None]:
    """Return the head of a subject, given what it was."""
    if head is None or head.sealed:
        return (yield from find_head(subject))
    return (yield from look_at(subject, head))
