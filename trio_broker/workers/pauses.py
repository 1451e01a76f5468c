"""How long to wait before a worker is started again. A rule: no clock, no process.

A worker that ends once is replaced at once; one that ends again and again, after longer and longer pauses, so that a
machine or a database that it cannot live with is not kept busy with starting workers.
"""

FIRST_S = 0.25
LONGEST_S = 10.0
STEADY_S = 30.0
"""Who has lived for so long does not end again and again."""


class Pauses:
    """The pauses of one worker."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def after(self, lived_s: float) -> float:
        """Return the pause after a worker that has lived for so long. Seconds."""
        if lived_s >= STEADY_S:
            self._in_a_row = 0
        pause_s = min(FIRST_S * 2 ** (self._in_a_row - 1), LONGEST_S) if self._in_a_row else 0.0
        self._in_a_row = min(self._in_a_row + 1, 20)  # beyond, the pause is the longest anyway
        return pause_s
