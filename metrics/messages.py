"""The messages: how many were published, delivered and dropped, and how long they took on their way.

Owns:      the families of messages, and those of single subjects.
Not here:  what is buffered now (metrics/state.py), who counts (trio_broker/measured_store.py, deliveries.py).
Threads:   the trio thread only; no function here is a checkpoint.

Clients choose subjects, and labels live for ever: only the subjects that the operator names have series of their own.
"""

from collections.abc import Collection, Iterator
from typing import Final, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from metrics.histograms import Histogram, histogram

PUBLISHED_HELP: Final = "Messages that were appended."
PUBLISHED_BYTES_HELP: Final = "The bodies and headers of the messages that were appended."
DEDUPLICATED_HELP: Final = "Messages that were not appended, since one with the same idempotency key was before."
DELIVERED_HELP: Final = "Messages that were given to subscribers: each counts once for each that took it."
DELIVERED_BYTES_HELP: Final = "The bodies and headers of the messages that were given to subscribers."
EXPIRED_HELP: Final = "Expired messages that sweeps of this process have removed."
LAG_HELP: Final = "From the commit of a message to its handing over to a subscriber's socket."
SUBJECT_PUBLISHED_HELP: Final = "Messages that were appended, of the subjects of --metrics-subjects."
SUBJECT_DELIVERED_HELP: Final = "Messages that were given to subscribers, of the subjects of --metrics-subjects."


class Delivery(Protocol):
    """Messages of one subject that subscribers took together."""

    @property
    def subject(self) -> str: ...

    @property
    def messages(self) -> Collection[object]: ...

    @property
    def size_bytes(self) -> int: ...


class MessageMetrics(Collector):
    """Counts of messages, over all subjects and for each of ``subjects``."""

    def __init__(self, subjects: Collection[str] = ()) -> None:
        self.published = 0
        self.published_bytes = 0
        self.deduplicated = 0
        self.expired = 0
        self.published_of = dict.fromkeys(subjects, 0)
        """By subject; the keys are all there will ever be."""
        self._delivered = 0
        self._delivered_bytes = 0
        self._delivered_of = dict.fromkeys(subjects, 0)
        self._lag = Histogram()

    def delivered(self, what: Delivery, takers: int, lag_s: float | None) -> None:
        """Count what was committed ``lag_s`` ago and has just been given to so many subscribers.

        None: it was read from the log, and how old it is says nothing of this broker.
        """
        messages = len(what.messages) * takers
        self._delivered += messages
        self._delivered_bytes += what.size_bytes * takers
        if lag_s is not None:
            self._lag.observe_times(lag_s, messages)
        if self._delivered_of and what.subject in self._delivered_of:
            self._delivered_of[what.subject] += messages

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        yield CounterMetricFamily("trio_broker_messages_published", PUBLISHED_HELP, self.published)
        yield CounterMetricFamily("trio_broker_published_bytes", PUBLISHED_BYTES_HELP, self.published_bytes)
        yield CounterMetricFamily("trio_broker_messages_deduplicated", DEDUPLICATED_HELP, self.deduplicated)
        yield CounterMetricFamily("trio_broker_messages_delivered", DELIVERED_HELP, self._delivered)
        yield CounterMetricFamily("trio_broker_delivered_bytes", DELIVERED_BYTES_HELP, self._delivered_bytes)
        yield CounterMetricFamily("trio_broker_messages_expired", EXPIRED_HELP, self.expired)
        yield histogram("trio_broker_delivery_lag_seconds", LAG_HELP, self._lag)
        yield _by_subject("trio_broker_subject_messages_published", SUBJECT_PUBLISHED_HELP, self.published_of)
        yield _by_subject("trio_broker_subject_messages_delivered", SUBJECT_DELIVERED_HELP, self._delivered_of)


def _by_subject(name: str, about: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=["subject"])
    for subject, count in counts.items():
        family.add_metric([subject], count)
    return family
