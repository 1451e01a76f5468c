"""What is true of a broker now: asked at each scrape.

Owns:      `State` and its families.
Not here:  what is counted or timed (metrics/calls.py, metrics/messages.py, metrics/store.py), who knows it
           (trio_broker/metering.py).
Threads:   the trio thread only; no function here is a checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

BUILD_HELP: Final = "What runs here; always 1."
IN_FLIGHT_HELP: Final = "Calls that are under way now; a stream is, until it ends."
CUT_HELP: Final = "gRPC connections that were closed for a limit on what one client may do."
LEARNED_HELP: Final = "Messages for subscribers here, by how this broker heard of them first."
GAPS_HELP: Final = "Ranges of ids that a subscription did not get: read too late, or not to be kept."
SUBJECT_SUBSCRIBERS_HELP: Final = "Subscriptions that are live now, of the subjects of --metrics-subjects."


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A moment of a broker; one that has just started has the defaults."""

    ready: bool = False
    draining: bool = False
    connections: int = 0
    connections_limit: int = 0
    connections_opened: int = 0
    connections_refused: int = 0
    connections_aged: int = 0
    connections_cut: Mapping[str, int] = field(default_factory=dict)
    """By the limit."""
    subscribers_limit: int = 0
    subscribers_refused: int = 0
    calls_in_flight: Mapping[str, int] = field(default_factory=dict)
    """By method."""
    queue_messages: int = 0
    queue_bytes: int = 0
    queue_limit_messages: int = 0
    queue_limit_bytes: int = 0
    buffer_messages: int = 0
    buffer_bytes: int = 0
    buffer_fill_ratio: float = 0.0
    backlog_bytes: int = 0
    inbound_bytes: int = 0
    outbound_bytes: int = 0
    slow_consumers: int = 0
    lags: int = 0
    gaps: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    cache_bytes: int = 0
    cache_limit_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    store_up: bool = False
    listen_connected: bool | None = None
    """None: there is nothing to be heard of, and no series."""
    wakeups: int = 0
    learned: Mapping[str, int] = field(default_factory=dict)
    """By path; none where nobody else appends."""
    holes_given_up: int | None = None
    """None, here and below: there can be no other brokers, and there is no series."""
    replicas: int | None = None
    replicas_heard: int | None = None
    tail_waiting_bytes: int | None = None
    tail_dropped_batches: int | None = None
    forwarded: int | None = None
    """None: no subject is left to other brokers."""
    forwards_refused: int | None = None
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_pressure: bool = False
    tls_expires_at: float | None = None
    """Seconds since 1970. None: there is no TLS, or it is not known."""
    tls_reload_successful: bool | None = None
    subscribers_of: Mapping[str, int] = field(default_factory=dict)
    """By subject, of those that have series of their own."""


_GAUGES: Final = {
    "ready": ("trio_broker_ready", "1 while /readyz says that calls can be served."),
    "draining": ("trio_broker_draining", "1 while the broker is stopping."),
    "connections": ("trio_broker_connections", "gRPC connections that are open now."),
    "connections_limit": ("trio_broker_connections_limit", "How many gRPC connections there may be; more are refused."),
    "subscribers_limit": ("trio_broker_subscribers_limit", "How many subscriptions there may be; more are refused."),
    "queue_messages": ("trio_broker_publish_queue_messages", "Publishes that wait for the store."),
    "queue_bytes": ("trio_broker_publish_queue_bytes", "The size of the publishes that wait for the store."),
    "queue_limit_messages": (
        "trio_broker_publish_queue_limit_messages",
        "How many publishes may wait for the store; more are refused.",
    ),
    "queue_limit_bytes": (
        "trio_broker_publish_queue_limit_bytes",
        "How large the publishes that wait for the store may be together; more are refused.",
    ),
    "buffer_messages": (
        "trio_broker_subscriber_buffer_messages",
        "Messages that wait for subscribers, over all subscriptions.",
    ),
    "buffer_bytes": ("trio_broker_subscriber_buffer_bytes", "The size of the messages that wait for subscribers."),
    "buffer_fill_ratio": (
        "trio_broker_subscriber_buffer_fill_ratio",
        "How full the fullest buffer of a subscription is, from 0 to 1; beyond, the subscription is cut.",
    ),
    "store_up": ("trio_broker_store_up", "1 while the store is in reach."),
    "listen_connected": (
        "trio_broker_listen_connected",
        "1 while the store's wake-ups are heard; 0 while they are down and polling stands in.",
    ),
    "replicas": ("trio_broker_replicas", "Other brokers on the same store that are known of."),
    "replicas_heard": ("trio_broker_replicas_heard", "Of those, how many stream what they append to this one."),
    "tail_waiting_bytes": (
        "trio_broker_tail_waiting_bytes",
        "The memory of batches that wait to leave for other brokers; one that waits for several counts for each.",
    ),
    "memory_used_bytes": (
        "trio_broker_memory_used_bytes",
        "Memory that counts against the limit: this process's, and what others use of the same cgroup.",
    ),
    "memory_limit_bytes": (
        "trio_broker_memory_limit_bytes",
        "Memory that this process may use: --memory-max, else its cgroup's limit or what the machine has.",
    ),
    "backlog_bytes": (
        "trio_broker_subscriber_backlog_bytes",
        "The memory of what waits for subscribers and is in no cache; what is half sent, and shared, is counted once.",
    ),
    "cache_bytes": ("trio_broker_cache_bytes", "The memory of the recent messages that are kept."),
    "cache_limit_bytes": ("trio_broker_cache_limit_bytes", "How much memory recent messages may take."),
    "inbound_bytes": ("trio_broker_rpc_inbound_bytes", "The memory kept for requests that have not arrived in whole."),
    "outbound_bytes": ("trio_broker_rpc_outbound_bytes", "The memory of replies that clients have not read yet."),
    "memory_pressure": ("trio_broker_memory_pressure", "1 while new work is refused for want of memory."),
    "tls_expires_at": (
        "trio_broker_tls_certificate_expiry_timestamp_seconds",
        "When the certificate that is served expires, or one of its chain, in seconds since 1970.",
    ),
    "tls_reload_successful": (
        "trio_broker_tls_last_reload_successful",
        "0 while the files of the certificate hold what cannot be used, so that the one before is served.",
    ),
}
_COUNTERS: Final = {
    "connections_opened": ("trio_broker_connections_opened", "gRPC connections that were accepted."),
    "connections_refused": ("trio_broker_connections_refused", "gRPC connections for which there was no place."),
    "connections_aged": ("trio_broker_connections_aged", "gRPC connections that reached --connection-max-age."),
    "subscribers_refused": ("trio_broker_subscribers_refused", "Subscriptions for which there was no place."),
    "slow_consumers": ("trio_broker_slow_consumers", "Subscriptions that were cut because they read too slowly."),
    "lags": ("trio_broker_subscriber_lags", "Times that a subscription left the live stream to catch up later."),
    "cache_hits": ("trio_broker_cache_hits", "Pages of the log for subscribers that were read from memory."),
    "cache_misses": ("trio_broker_cache_misses", "Pages of the log for subscribers that the store was asked for."),
    "wakeups": ("trio_broker_wakeups", "Hints that were heard of what this broker or another has appended."),
    "tail_dropped_batches": (
        "trio_broker_tail_dropped_batches",
        "Batches that had no room in a stream to another broker, which reads them from the log.",
    ),
    "holes_given_up": (
        "trio_broker_holes_given_up",
        "Times that live messages were passed on though some before them had not come, which are read from the log.",
    ),
    "forwarded": ("trio_broker_forwarded_messages", "Messages that other brokers have appended for this one."),
    "forwards_refused": (
        "trio_broker_forwards_refused_messages",
        "Messages that others were to append and did not; this one had to.",
    ),
}


class StateMetrics(Collector):
    """The state of a broker, asked at each scrape.

    Args:
        build: labels of ``trio_broker_build_info``.
        ask: returns the state.
    """

    def __init__(self, build: Mapping[str, str], ask: Callable[[], State]) -> None:
        self._build = dict(build)
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        state = self._ask()
        for name, (family, about) in _GAUGES.items():
            yield GaugeMetricFamily(family, about, getattr(state, name))
        for name, (family, about) in _COUNTERS.items():
            yield CounterMetricFamily(family, about, getattr(state, name))
        yield InfoMetricFamily("trio_broker_build", BUILD_HELP, self._build)
        yield _labelled("trio_broker_calls_in_flight", IN_FLIGHT_HELP, "method", state.calls_in_flight)
        yield _labelled("trio_broker_subject_subscribers", SUBJECT_SUBSCRIBERS_HELP, "subject", state.subscribers_of)
        yield _counted("trio_broker_connections_cut", CUT_HELP, "limit", state.connections_cut)
        yield _counted("trio_broker_subscriber_gaps", GAPS_HELP, "reason", state.gaps)
        yield _counted("trio_broker_learned_messages", LEARNED_HELP, "path", state.learned)


def _labelled(name: str, about: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counted(name: str, about: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
