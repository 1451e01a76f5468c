"""What a broker process tells of itself, gathered: who counts what, and who is asked at a scrape.

Owns:      the collectors of one process and what feeds them.
Not here:  the families (metrics/), serving them (metrics/http.py), starting and stopping (trio_broker/serve.py).
Threads:   the trio thread only; no function here is a checkpoint.
"""

import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import trio
from prometheus_client import CollectorRegistry

from metrics import (
    UNKNOWN_METHOD,
    CallMetrics,
    MessageMetrics,
    ProcessMetrics,
    State,
    StateMetrics,
    StoreMetrics,
    build_registry,
)
from persistence import Store
from trio_broker._version import __version__
from trio_broker.broker import Broker
from trio_broker.config import Config
from trio_broker.errors import FAULTS, reasons
from trio_broker.measured_store import OPERATIONS, MeasuredStore, Operating
from trio_broker.message import GAP_REASONS
from trio_broker.replicas import Replicas
from trio_broker.rpc.call import Call
from trio_broker.rpc.server import Server
from trio_broker.rpc.status import CODE_NAMES, OK
from trio_broker.rpc.transport import CUT_BY
from trio_broker.service.places import Places

UNARY: Final = (
    *("Publish", "PublishBatch", "Fetch", "FetchRange", "Check", "List"),
    *("ListSubjects", "GetSubject", "PurgeSubject", "DeleteSubject"),
)
STREAMS: Final = ("PublishStream", "Subscribe", "SubscribeBatch", "Watch", "ServerReflectionInfo")
"""The calls that have a label of their own."""
_NO_CALLS: Final = dict.fromkeys((*UNARY, *STREAMS), 0)
_NO_CUTS: Final = dict.fromkeys(CUT_BY, 0)
_NO_GAPS: Final = dict.fromkeys(GAP_REASONS, 0)
CANCELLED_BY_PEER: Final = "cancelled_by_peer"
"""The reason of calls that the client ended, or that ended with its connection."""


class Metering:
    """The metrics of one broker process."""

    def __init__(self, config: Config, of_process: Callable[[], State]) -> None:
        """``of_process``: asked at each scrape for the part of the state that the process itself knows."""
        self._config = config
        self._of_process = of_process
        self._store: Store | None = None
        self._broker: Broker | None = None
        self._server: Server | None = None
        self._replicas: Replicas | None = None
        self._places = Places(0)
        self._calls = CallMetrics(
            UNARY, self._subscribers, streams=STREAMS, reasons={*reasons(), CANCELLED_BY_PEER}, faults=FAULTS
        )
        self._messages = MessageMetrics(config.metrics_subjects)
        self._operations = StoreMetrics(OPERATIONS, lambda: self._store.pools() if self._store else ())
        self.process = ProcessMetrics()
        """Its `ProcessMetrics.keep_measuring` is to be run."""

    def registry(self) -> CollectorRegistry:
        """Return what /metrics exposes."""
        build = {
            "version": __version__,
            "python": platform.python_version(),
            "trio": trio.__version__,
            "store": self._config.store.partition(":")[0],
        }
        state = StateMetrics(build, self._state)
        return build_registry(self._calls, self._messages, self._operations, state, self.process)

    def measured(self, store: Store, operating: Operating = nullcontext) -> Store:
        """Return ``store``, measured from now on. ``operating`` is entered around each operation."""
        self._store = store
        return MeasuredStore(store, self._operations, self._messages, operating)

    def watch(self, broker: Broker, server: Server, places: Places) -> None:
        """Tell of these from now on."""
        self._broker, self._server, self._places = broker, server, places
        broker.fanout.deliveries.on_delivered = self._messages.delivered

    def watch_replicas(self, replicas: Replicas) -> None:
        """Tell from now on of other brokers, too."""
        self._replicas = replicas

    def call_over(self, call: Call, seconds: float) -> None:
        """Count a call that has ended."""
        name = UNKNOWN_METHOD if call.method is None else call.method.name
        status = call.status
        if status is OK:
            self._calls.ended(name, "OK", seconds)
        elif status is None:
            self._calls.ended(name, "CANCELLED", seconds)
            self._calls.failed(name, CANCELLED_BY_PEER)
        else:
            self._calls.ended(name, CODE_NAMES[status.int_value], seconds)
            if status.int_value:
                self._calls.failed(name, getattr(status, "reason", ""))
        if call.first_message_s is not None:
            self._calls.began(name, call.first_message_s)

    def _subscribers(self) -> int:
        return self._broker.subscribers if self._broker else 0

    def _state(self) -> State:
        config = self._config
        state = replace(
            self._of_process(),
            calls_in_flight=_NO_CALLS,
            gaps=_NO_GAPS,
            connections_cut=_NO_CUTS,
            queue_limit_messages=config.queue_messages,
            queue_limit_bytes=config.queue_bytes,
            cache_limit_bytes=config.cache_bytes,
            subscribers_of=dict.fromkeys(config.metrics_subjects, 0),
        )
        if self._broker is None or self._server is None:
            return state
        broker, server = self._broker, self._server
        buffered = broker.fanout.buffered()
        merge = broker.fanout.merge
        return replace(
            self._among_others(state),
            connections=server.connections,
            connections_opened=server.connections_opened,
            connections_refused=server.connections_refused,
            connections_aged=server.connections_aged,
            connections_cut=server.connections_cut,
            connections_limit=server.limits.connections_max,
            subscribers_refused=self._places.refused,
            subscribers_limit=self._places.most,
            calls_in_flight={**_NO_CALLS, **server.calls_in_flight()},
            queue_messages=broker.committer.queued_messages,
            queue_bytes=broker.committer.queued_bytes,
            buffer_messages=buffered.messages,
            buffer_bytes=buffered.bytes,
            buffer_fill_ratio=buffered.fill_ratio,
            backlog_bytes=broker.fanout.backlog.bytes,
            inbound_bytes=server.budgets.inbound.held_bytes,
            outbound_bytes=server.budgets.outbound.held_bytes,
            slow_consumers=broker.fanout.slow_consumers,
            lags=broker.fanout.lags,
            gaps=broker.fanout.gaps,
            cache_bytes=broker.cache.bytes,
            cache_hits=broker.cache.hits,
            cache_misses=broker.replay.store_pages,
            store_up=not broker.store_away_s(),
            listen_connected=broker.hearing.connected,
            wakeups=broker.hearing.hints,
            learned=broker.fanout.learned if merge else {},
            holes_given_up=merge.holes_given_up if merge else None,
            subscribers_of={subject: broker.fanout.subscribers_of(subject) for subject in config.metrics_subjects},
        )

    def _among_others(self, state: State) -> State:
        """Add what is known of other brokers, where there can be others."""
        if (replicas := self._replicas) is None:
            return state
        forwarding = replicas.forwarding
        return replace(
            state,
            replicas=replicas.known,
            replicas_heard=replicas.heard,
            tail_waiting_bytes=replicas.feeds.waiting_bytes,
            tail_dropped_batches=replicas.feeds.dropped,
            forwarded=forwarding.forwarded if forwarding else None,
            forwards_refused=forwarding.refused if forwarding else None,
        )
