"""What the store tells: for now, whether this broker hears of what others append.

Owns:      the family ``trio_broker_listen_connected``.
Not here:  the store (persistence/), readiness (trio_broker/serve.py).
Threads:   the trio thread only; no function here is a checkpoint.
"""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONNECTED_HELP: Final = "1 while the store's wake-ups are heard; 0 while they are down and polling stands in."


class StoreMetrics(Collector):
    """What is asked of the store's side at each scrape.

    Args:
        listen_connected: whether wake-ups are heard now; always true of stores that have none.
    """

    def __init__(self, listen_connected: Callable[[], bool]) -> None:
        self._listen_connected = listen_connected

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        yield GaugeMetricFamily("trio_broker_listen_connected", CONNECTED_HELP, float(self._listen_connected()))
