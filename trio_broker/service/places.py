"""How many subscriptions a process serves at once, and who has them.

Owns:      `Places`: the bound, and each connection's share of it.
Not here:  subscriptions (subscribing.py), what the bound is (trio_broker/memory.py, trio_broker/config.py).
Threads:   the trio thread only; plain data, no function here is a checkpoint.
"""

from collections import Counter
from collections.abc import Hashable

from trio_broker.errors import Overloaded

RETRY_AFTER_S = 1.0


class Places:
    """Places for subscriptions, shared by connections.

    A connection never has more than then stay free: alone half of them, and beside others that take as many as they can
    get the same as each of these. So one that opens streams without end leaves places for whoever comes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self.refused = 0
        """How many subscriptions have found no place so far."""
        self._taken_by: Counter[Hashable] = Counter()

    def enter(self, connection: Hashable) -> None:
        """Take a place, until `leave`.

        Raises:
            Overloaded: there is none for this connection now.
        """
        mine = self._taken_by[connection]
        if mine >= self.most - self.taken:
            self.refused += 1
            error = Overloaded(
                f"{self.taken} subscriptions are live, {mine} of them on this connection: at most {self.most} may be "
                "(--subscribers-max), and on one connection as many as stay free",
                limit=self.most,
            )
            error.retry_after_s = RETRY_AFTER_S
            raise error
        self.taken += 1
        self._taken_by[connection] = mine + 1

    def leave(self, connection: Hashable) -> None:
        """Give a place back."""
        self.taken -= 1
        self._taken_by[connection] -= 1
        if not self._taken_by[connection]:
            del self._taken_by[connection]
