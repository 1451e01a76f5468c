"""The store: what it was asked, how long it took, how it failed, and who waits for it.

Owns:      the families of the store's operations, flushes, pools and sweeping.
Not here:  the store (persistence/), who measures it (trio_broker/measured_store.py), whether it is there
           (metrics/state.py).
Threads:   the trio thread only; no function here is a checkpoint.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from metrics.histograms import Histogram, histogram, histograms

FLUSH_MESSAGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

FLUSH_MESSAGES_HELP: Final = "Messages of a flush: what went to the store at once, and was taken."
FLUSH_SECONDS_HELP: Final = "How long the store took for a flush, and thereby for every publish in it."
OPERATION_HELP: Final = "How long the store took for an operation, whether it succeeded or not."
ERRORS_HELP: Final = "Operations of the store that failed; an append that failed in part counts once for each kind."
POOL_SIZE_HELP: Final = "How many may work at once: a thread each, with a connection to the database."
POOL_IN_USE_HELP: Final = "How many work now."
POOL_WAITING_HELP: Final = "Operations that wait for their turn."
POOL_WAIT_HELP: Final = "How long operations waited for their turn; most do not wait."
SWEEP_HELP: Final = "How long ago sweeping last had nothing left to do."


class Pool(Protocol):
    """Threads that work for the store, each with its connection."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def in_use(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def turns(self) -> int: ...

    @property
    def waited_s(self) -> float: ...


class StoreMetrics(Collector):
    """What the store was asked.

    Args:
        operations: all there are; exported from the start.
        pools: asked at each scrape.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        operations: Collection[str],
        pools: Callable[[], Iterable[Pool]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = {operation: Histogram() for operation in operations}
        self._errors: dict[tuple[str, str], int] = {}
        self._flush_messages = Histogram(FLUSH_MESSAGES)
        self._flush_seconds = Histogram()
        self._pools = pools
        self._clock = clock
        self._swept_at = clock()

    def took(self, operation: str, seconds: float) -> None:
        """Count an operation that has ended."""
        self._seconds[operation].observe(seconds)

    def failed(self, operation: str, kind: str) -> None:
        """Count how an operation failed, besides `took`."""
        key = operation, kind
        self._errors[key] = self._errors.get(key, 0) + 1

    def flushed(self, messages: int, seconds: float) -> None:
        """Count a flush that the store took, besides `took`."""
        self._flush_messages.observe(messages)
        self._flush_seconds.observe(seconds)

    def swept(self) -> None:
        """Note that nothing is left to sweep."""
        self._swept_at = self._clock()

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        yield histogram("trio_broker_flush_messages", FLUSH_MESSAGES_HELP, self._flush_messages)
        yield histogram("trio_broker_flush_seconds", FLUSH_SECONDS_HELP, self._flush_seconds)
        yield histograms("trio_broker_store_operation_seconds", OPERATION_HELP, "operation", self._seconds)
        errors = CounterMetricFamily("trio_broker_store_errors", ERRORS_HELP, labels=["operation", "kind"])
        for key, count in self._errors.items():
            errors.add_metric(key, count)
        yield errors
        yield from self._pool_families()
        yield GaugeMetricFamily("trio_broker_sweep_behind_seconds", SWEEP_HELP, self._clock() - self._swept_at)

    def _pool_families(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("trio_broker_store_pool_size", POOL_SIZE_HELP, labels=["pool"])
        in_use = GaugeMetricFamily("trio_broker_store_pool_in_use", POOL_IN_USE_HELP, labels=["pool"])
        waiting = GaugeMetricFamily("trio_broker_store_pool_waiting", POOL_WAITING_HELP, labels=["pool"])
        waited = SummaryMetricFamily("trio_broker_store_pool_wait_seconds", POOL_WAIT_HELP, labels=["pool"])
        for pool in self._pools():
            size.add_metric([pool.name], pool.size)
            in_use.add_metric([pool.name], pool.in_use)
            waiting.add_metric([pool.name], pool.waiting)
            waited.add_metric([pool.name], pool.turns, pool.waited_s)
        yield size
        yield in_use
        yield waiting
        yield waited
