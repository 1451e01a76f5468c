"""What several worker processes tell, as one page: each sample with the number of its worker.

Owns:      a worker's families on their way to the process that serves the page, the label ``worker``, and what only
           that process knows: how many workers there are, are ready, were started again.
Not here:  asking the workers (trio_broker/workers/).
Threads:   the trio thread of either process; no function here is a checkpoint.

Nothing is added up: which sums make sense, PromQL can say, and a worker that is worse off than the others shows.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LABEL: Final = "worker"

WORKERS_HELP: Final = "Worker processes that there are to be: --workers."
READY_HELP: Final = "Workers that are ready."
RESTARTS_HELP: Final = "How often a worker ended without being asked to, and was started again."


def pack(registry: CollectorRegistry) -> bytes:
    """Return all that a worker's registry has to tell, for `merge`.

    JSON and not Prometheus' text: that takes ten times as long to read.
    """
    families = []
    for family in registry.collect():
        samples = [(sample.name, sample.labels, sample.value) for sample in family.samples]
        families.append((family.name, family.documentation, family.type, family.unit, samples))
    return json.dumps(families).encode()


def merge(packs: Mapping[str, bytes]) -> list[Metric]:
    """Return the families of several workers, each family once; ``packs``: by what is to be in the label.

    One that is not whole counts for nothing: its worker ended while it told it.
    """
    families: dict[str, Metric] = {}
    for worker, packed in packs.items():
        try:
            told = json.loads(packed)
        except ValueError:
            continue
        for name, documentation, kind, unit, samples in told:
            family = families.get(name)
            if family is None:
                family = families[name] = Metric(name, documentation, kind, unit)
            for sample_name, labels, value in samples:
                family.add_sample(sample_name, {**labels, LABEL: worker}, value)
    return list(families.values())


class WorkersMetrics(Collector):
    """The metrics of a broker of several worker processes."""

    def __init__(self, workers: int, ready: Callable[[], int]) -> None:
        """``ready``: asked at each scrape how many are."""
        self.restarts = dict.fromkeys(map(str, range(workers)), 0)
        """By worker."""
        self.told: list[Metric] = []
        """What the workers told last, merged."""
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        yield GaugeMetricFamily("trio_broker_workers", WORKERS_HELP, len(self.restarts))
        yield GaugeMetricFamily("trio_broker_workers_ready", READY_HELP, self._ready())
        restarts = CounterMetricFamily("trio_broker_worker_restarts", RESTARTS_HELP, labels=[LABEL])
        for worker, count in self.restarts.items():
            restarts.add_metric([worker], count)
        yield restarts
        yield from self.told
