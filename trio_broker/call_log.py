"""What the log says of calls: a line for each that failed or was slow.

Owns:      which calls are worth a line, at which level, and what the line says. Never bodies, never metadata but the
           two that identify a call.
Not here:  counting calls (metrics/), how many lines are written (trio_broker/line_budget.py).
Threads:   the trio thread.
"""

import logging

import structlog
from purerpc import Status, StatusCode

from trio_broker.errors import FAULTS
from trio_broker.line_budget import Kind, LineBudget
from trio_broker.rpc.call import Call
from trio_broker.rpc.request import REQUEST_ID, TRACEPARENT, Request
from trio_broker.rpc.status import CODE_NAMES, OK

WHY_MAX = 200
"""How many characters of a status's text are logged."""

_OUR_FAULT = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS, StatusCode.UNAVAILABLE}
_LEVELS = {
    **dict.fromkeys(FAULTS, logging.WARNING),
    "DRAINING": logging.INFO,  # as was asked
    "CLOSED": logging.INFO,
    "INVALID_ID": logging.DEBUG,  # answers to questions, not mistakes
    "EXPIRED_ID": logging.DEBUG,
}
"""By reason, where the code alone says too little."""


class CallLog:
    """Writes the lines, as long as there is budget for them."""

    def __init__(self, slow_call_s: float, budget: LineBudget) -> None:
        self._slow_call_s = slow_call_s
        self._budget = budget
        self._log = structlog.get_logger(__name__).bind()  # once: to bind takes longer than all else for most failures

    def over(self, call: Call, seconds: float) -> None:
        """Log a call that has ended, if it failed, or if it was unary and took long."""
        status = call.status
        if status is None:
            self._tell(logging.DEBUG, "call_cancelled", call, seconds)
        elif status is not OK:
            self._tell(level_of(status), "call_failed", call, seconds)
        elif seconds >= self._slow_call_s and not (call.method.request_streams or call.method.response_streams):
            self._tell(logging.INFO, "call_slow", call, seconds)

    def _tell(self, level: int, event: str, call: Call, seconds: float) -> None:
        if not self._log.is_enabled_for(level):
            return
        method = "unknown" if call.method is None else call.method.path[1:]
        failure = call.status if call.status is not OK else None
        reason = getattr(failure, "reason", None)
        if self._budget.is_spent(Kind(level, event, method, reason)):
            return
        facts = {"method": method, "seconds": round(seconds, 6), "peer": call.app.peer, **_ids(call)}
        if call.identity is not None:
            facts["client"] = call.identity.name
        if failure is not None:
            facts["status"] = CODE_NAMES[failure.int_value]
            facts["why"] = _printable(failure.status_message[:WHY_MAX])
            facts["request_id"] = call.request_id()
        if reason is not None:
            facts["reason"] = reason
        self._log.log(level, event, **facts)


def level_of(status: Status) -> int:
    """Return how loud a failure is: a warning if the broker or its store is to blame, else information.

    Fetches that found nothing are everyday life: debug, as are calls that the client ended.
    """
    by_code = logging.WARNING if status.status_code in _OUR_FAULT else logging.INFO
    return _LEVELS.get(getattr(status, "reason", ""), by_code)


def _ids(call: Call) -> dict[str, object]:
    """Return what the client calls the call."""
    assert isinstance(call.request, Request)
    echo = dict(call.request.echo)
    ids: dict[str, object] = {}
    if REQUEST_ID in echo:
        ids["request_id"] = echo[REQUEST_ID]
    if TRACEPARENT in echo:
        ids["trace_id"] = echo[TRACEPARENT][3:35]
    return ids


def _printable(text: str) -> str:
    """Escape what would act on a terminal: the path of an unknown method is the client's."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
