"""What became of the calls: how many, how they ended, how long they took, and who is subscribed now.

Owns:      the families of calls (``method_*``, ``trio_broker_rpc_*``, ``trio_broker_stream_*``) and
           ``active_subscribers``; the only labels they take.
Not here:  when a call ends and with which status (trio_broker/metering.py), HTTP (metrics/http.py).
Threads:   the trio thread only; no function here is a checkpoint.

The names of ``method_count``, ``method_duration`` and ``active_subscribers`` are fixed, and dashboards rely on them.
prometheus_client's own Counter would append ``_total`` and its Summary has no quantiles, so the families are built
here, as prometheus/client_golang exports them. Quantiles of several brokers do not add up; the histograms beside them
do.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from metrics.histograms import SECONDS, Histogram
from metrics.quantiles import SlidingQuantiles

STATUSES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""The names of gRPC's status codes, in the order of their numbers."""

UNKNOWN_METHOD: Final = "unknown"
NO_REASON: Final = "none"
"""The reason of errors that have none."""
QUANTILES: Final = (0.5, 0.95, 0.99)
FIRST_MESSAGE_S: Final = (*SECONDS, 60.0, 600.0)
LIFETIME_S: Final = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)

COUNT_HELP: Final = "Calls that ended, by method and gRPC status. A stream counts once, when it ends."
DURATION_HELP: Final = "How long calls took, in seconds. A stream counts once. Quantiles: of the last minute."
SUBSCRIBERS_HELP: Final = "Subscriptions that are live now."
RPC_HELP: Final = "How long unary calls took, from the request's arrival to the answer."
FIRST_MESSAGE_HELP: Final = "From the call of a stream to its first message; counted when the stream ends."
LIFETIME_HELP: Final = "How long streams lived; counted when they end."
ERRORS_HELP: Final = "Calls that ended with an error, by the reason in its ErrorInfo."


class CallMetrics(Collector):
    """Counts and durations of finished calls, by method and status.

    Clients choose the names of methods and labels live for ever, so only the methods given here have their own;
    all others share ``unknown``. A stream counts once, when it ends.

    Args:
        unary: bare names such as ``Publish``. They are exported from the start, so that dashboards show zero.
        active_subscribers: asked at each scrape how many subscriptions are live.
        streams: bare names, too, of methods whose answer is a stream.
        reasons: what errors may have as a reason; all others count as ``none``.
        faults: those of them that are exported from the start, so that the first error is a rise from zero.
        clock: seconds that never go back, for the window of the quantiles.
    """

    def __init__(
        self,
        unary: Collection[str],
        active_subscribers: Callable[[], int],
        *,
        streams: Collection[str] = (),
        reasons: Collection[str] = (),
        faults: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._active_subscribers = active_subscribers
        self._clock = clock
        self._reasons = frozenset(reasons)
        now = clock()
        self._unary = {method: _Method(now, SECONDS, faults) for method in unary}
        self._streams = {method: _Method(now, LIFETIME_S, faults) for method in streams}
        self._unknown = _Method(now, SECONDS)
        self._known = {**self._unary, **self._streams}

    def ended(self, method: str, status: str, seconds: float) -> None:
        """Count a call that took ``seconds`` (not negative). A ``status`` that gRPC has not counts as UNKNOWN."""
        series = self._known.get(method, self._unknown)
        series.by_status[status if status in series.by_status else "UNKNOWN"] += 1
        series.quantiles.observe(seconds, self._clock())
        series.durations.observe(seconds)

    def failed(self, method: str, reason: str) -> None:
        """Count the reason of a call that ended with an error, besides `ended`."""
        errors = self._known.get(method, self._unknown).by_reason
        reason = reason if reason in self._reasons else NO_REASON
        errors[reason] = errors.get(reason, 0) + 1

    def began(self, method: str, seconds: float) -> None:
        """Count how long a stream took to its first message, besides `ended`."""
        if method in self._streams:
            self._streams[method].first_messages.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        counts = UnknownMetricFamily("method_count", COUNT_HELP, labels=["method", "status"])
        durations = SummaryMetricFamily("method_duration", DURATION_HELP, labels=["method"])
        errors = CounterMetricFamily("trio_broker_rpc_errors", ERRORS_HELP, labels=["method", "reason"])
        for name, method in self._exported():
            for status, count in method.by_status.items():
                if count or (status == "OK" and name != UNKNOWN_METHOD):
                    counts.add_metric([name, status], count)
            values = method.quantiles.quantiles(QUANTILES, self._clock())
            durations.samples.extend(
                Sample("method_duration", {"method": name, "quantile": str(fraction)}, value)
                for fraction, value in zip(QUANTILES, values, strict=True)
            )
            durations.add_metric([name], method.calls, method.durations.sum)
            for reason, count in method.by_reason.items():
                errors.add_metric([name, reason], count)
        yield counts
        yield durations
        yield errors
        yield GaugeMetricFamily("active_subscribers", SUBSCRIBERS_HELP, self._active_subscribers())
        yield from self._histograms()

    def _histograms(self) -> Iterator[Metric]:
        calls = HistogramMetricFamily("trio_broker_rpc_duration_seconds", RPC_HELP, labels=["method"])
        for name, method in self._unary.items():
            method.durations.add_to(calls, [name])
        first = HistogramMetricFamily("trio_broker_stream_first_message_seconds", FIRST_MESSAGE_HELP, labels=["method"])
        lifetimes = HistogramMetricFamily("trio_broker_stream_lifetime_seconds", LIFETIME_HELP, labels=["method"])
        for name, method in self._streams.items():
            method.first_messages.add_to(first, [name])
            method.durations.add_to(lifetimes, [name])
        yield calls
        yield first
        yield lifetimes

    def _exported(self) -> "Iterator[tuple[str, _Method]]":
        yield from self._known.items()
        if self._unknown.calls:
            yield UNKNOWN_METHOD, self._unknown


class _Method:
    """What is known of one method's calls."""

    __slots__ = ("by_reason", "by_status", "durations", "first_messages", "quantiles")

    def __init__(self, now: float, bounds: tuple[float, ...], faults: Collection[str] = ()) -> None:
        self.by_status = dict.fromkeys(STATUSES, 0)
        self.by_reason = dict.fromkeys(sorted(faults), 0)
        self.durations = Histogram(bounds)
        self.first_messages = Histogram(FIRST_MESSAGE_S)
        self.quantiles = SlidingQuantiles(now)

    @property
    def calls(self) -> int:
        return sum(self.by_status.values())
