"""The same bytes in pieces and as a whole: the server does and says the same.

Owns:      where the bytes are cut, what is compared.
Not here:  what must hold of either (server.py).
"""

from itertools import pairwise

from trio_broker.rpc import frames
from trio_broker.rpc.budget import Budgets

from .choices import Choices
from .server import LIMITS, Side

CUTS_MAX = 8


def pieces(data: bytes) -> None:
    """The first choices say where the rest, which follows a preface, is cut; then it is what a client sends."""
    choices = Choices(data)
    shares = sorted(choices.number(1) for _ in range(choices.below(CUTS_MAX + 1)))
    sent = b"" if choices.below(4) == 3 else frames.PREFACE
    sent += choices.bytes(len(data))
    edges = [0, *(share * len(sent) // 255 for share in shares), len(sent)]
    whole, cut = _outcome([sent]), _outcome([sent[begin:end] for begin, end in pairwise(edges)])
    assert cut == whole, f"cut at {edges[1:-1]}"


def _outcome(parts: list[bytes]) -> tuple[object, ...]:
    """Return what a server has made of the bytes, and said."""
    side = Side(Budgets.of(LIMITS), 0)
    for part in parts:
        side.send(part)
        side.check()
    calls = [
        (call.id, call.message, list(call.inbox or ()), call.status and call.status.int_value, call.closed, call.held)
        for call in side.app.calls
    ]
    failure = side.connection.failure
    output = side.read()
    side.lose()
    return calls, failure, output
