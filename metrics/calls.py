"""What became of the calls: how many, how they ended, how long they took, and who is subscribed now.

Owns:      the families ``method_count``, ``method_duration`` and ``active_subscribers``; the only labels they take.
Not here:  when a call ends and with which status (trio_broker/service/), HTTP (metrics/http.py).
Threads:   the trio thread only; no function here is a checkpoint.

The names are fixed, and dashboards rely on them. prometheus_client's own Counter would append ``_total`` and its
Summary has no quantiles, so the families are built here, as prometheus/client_golang exports them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric, SummaryMetricFamily, UnknownMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

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
QUANTILES: Final = (0.5, 0.95, 0.99)

COUNT_HELP: Final = "Calls that ended, by method and gRPC status. A stream counts once, when it ends."
DURATION_HELP: Final = "How long calls took, in seconds. A stream counts once. Quantiles: of the last minute."
SUBSCRIBERS_HELP: Final = "Subscriptions that are live now."


class CallMetrics(Collector):
    """Counts and durations of finished calls, by method and status.

    Clients choose the names of methods and labels live for ever, so only the ``methods`` given here have their own;
    all others share ``unknown``. A stream counts once, when it ends.

    Args:
        methods: bare names such as ``Publish``. They are exported from the start, so that dashboards show zero.
        active_subscribers: asked at each scrape how many subscriptions are live.
        clock: seconds that never go back, for the window of the quantiles.
    """

    def __init__(
        self,
        methods: Iterable[str],
        active_subscribers: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._active_subscribers = active_subscribers
        self._clock = clock
        self._known = {method: _Method(clock()) for method in methods}
        self._unknown = _Method(clock())

    def ended(self, method: str, status: str, seconds: float) -> None:
        """Count a call that took ``seconds`` (not negative). A ``status`` that gRPC has not counts as UNKNOWN."""
        series = self._known.get(method, self._unknown)
        series.by_status[status if status in series.by_status else "UNKNOWN"] += 1
        series.seconds += seconds
        series.durations.observe(seconds, self._clock())

    def ended_many(self, method: str, status: str, seconds: Sequence[float]) -> None:
        """Count calls that ended together, such as the publishes of one flush: cheaper than `ended` for each."""
        series = self._known.get(method, self._unknown)
        series.by_status[status if status in series.by_status else "UNKNOWN"] += len(seconds)
        series.seconds += sum(seconds)
        series.durations.observe_many(seconds, self._clock())

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        counts = UnknownMetricFamily("method_count", COUNT_HELP, labels=["method", "status"])
        durations = SummaryMetricFamily("method_duration", DURATION_HELP, labels=["method"])
        for name, method in self._exported():
            for status, count in method.by_status.items():
                if count or (status == "OK" and name != UNKNOWN_METHOD):
                    counts.add_metric([name, status], count)
            values = method.durations.quantiles(QUANTILES, self._clock())
            durations.samples.extend(
                Sample("method_duration", {"method": name, "quantile": str(fraction)}, value)
                for fraction, value in zip(QUANTILES, values, strict=True)
            )
            durations.add_metric([name], method.calls, method.seconds)
        yield counts
        yield durations
        yield GaugeMetricFamily("active_subscribers", SUBSCRIBERS_HELP, self._active_subscribers())

    def _exported(self) -> "Iterator[tuple[str, _Method]]":
        yield from self._known.items()
        if self._unknown.calls:
            yield UNKNOWN_METHOD, self._unknown


class _Method:
    """What is known of one method's calls."""

    __slots__ = ("by_status", "durations", "seconds")

    def __init__(self, now: float) -> None:
        self.by_status = dict.fromkeys(STATUSES, 0)
        self.seconds = 0.0
        self.durations = SlidingQuantiles(now)

    @property
    def calls(self) -> int:
        return sum(self.by_status.values())
