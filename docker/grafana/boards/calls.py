"""Rate, errors and duration of the calls, by method."""

from typing import Final

from grafana_foundation_sdk.models import units

from boards.panels import Board, Graph, Levels, Query, Row
from boards.promql import CLIENTS_FAULT, OUR_FAULT, PUBLISH_AND_FETCH, each, gauge, most, part_of_calls, quantile, rate

RATE: Final = Row(
    "Rate",
    [
        Graph(
            "Calls ended",
            units.RequestsPerSecond,
            [Query(rate("method_count", "method"), "{{method}}")],
            "By method. `unknown`: methods that there are not; a client that hammers one shows here.",
            stacked=True,
        ),
        Graph(
            "Calls in flight",
            units.Short,
            [Query(f"sum by (method) ({gauge('trio_broker_calls_in_flight')})", "{{method}}")],
            "Calls that have begun and not ended. Publish grows when the store is slow; Subscribe is as many as "
            "there are subscribers.",
        ),
        Graph(
            "Connections",
            units.Short,
            [
                each("trio_broker_connections"),
                Query(rate("trio_broker_connections_opened_total"), "opened a second, all"),
                Query(rate("trio_broker_connections_refused_total"), "refused a second, all"),
                Query(rate("trio_broker_subscribers_refused_total"), "subscriptions refused a second, all"),
            ],
            "Many opened and few open: clients make a connection for each call, and should keep one. Refused: there "
            "are as many as may be (--connections-max, --subscribers-max).",
        ),
    ],
)

ERRORS: Final = Row(
    "Errors",
    [
        Graph(
            "Calls that failed, by status",
            units.RequestsPerSecond,
            [Query(rate("method_count", "method,status", 'status!="OK"') + " > 0", "{{method}} {{status}}")],
            "UNAVAILABLE: the store, or a broker that is stopped. DEADLINE_EXCEEDED: the store is slow, or deadlines "
            "are short. RESOURCE_EXHAUSTED: too much, too large, or too slow a reader. UNIMPLEMENTED, "
            "INVALID_ARGUMENT: the client. INTERNAL: a bug, see the log.",
        ),
        Graph(
            "Calls that failed, by reason",
            units.RequestsPerSecond,
            [Query(f"{rate('trio_broker_rpc_errors_total', 'method,reason')} > 0", "{{method}} {{reason}}")],
            "The reason that clients were given, see docs/ERRORS.md.",
        ),
        Graph(
            "Part of the calls that failed",
            units.PercentUnit,
            [
                Query(part_of_calls(OUR_FAULT, "method"), "{{method}}: broker or store"),
                Query(part_of_calls(CLIENTS_FAULT, "method"), "{{method}}: client"),
            ],
            "By who has to do something about it. In neither: ids that are not there yet or no longer, deadlines, "
            "streams that a broker ends because it is stopped or they are not read.",
        ),
    ],
)

DURATION: Final = Row(
    "Duration",
    [
        Graph(
            "Duration of calls, p99",
            units.Seconds,
            [Query(quantile(0.99, "trio_broker_rpc_duration_seconds", "method"), "{{method}}")],
            "Over all instances, as exact as the buckets are. The line is what TrioBrokerLatencyBurnFast watches. "
            "Compare with the store's operations (board store) and the scheduler's lag (board process).",
            Levels(warning=0.25, bad=1),
        ),
        Graph(
            "Duration of calls, median",
            units.Seconds,
            [Query(quantile(0.5, "trio_broker_rpc_duration_seconds", "method"), "{{method}}")],
            "High as p99: everything is slow. Low while p99 is high: some calls wait for something.",
        ),
        Graph(
            "Duration in the last minute, p99 of each instance",
            units.Seconds,
            [most("method_duration", "{{instance}} {{method}}", f'{PUBLISH_AND_FETCH},quantile="0.99"', "method")],
            "Within 1 %, but for one instance each, its slowest worker. One that is slower than the others has a "
            "problem of its own.",
        ),
    ],
)

STREAMS: Final = Row(
    "Streams",
    [
        Graph(
            "Streams ended",
            units.RequestsPerSecond,
            [Query(rate("trio_broker_stream_lifetime_seconds_count", "method"), "{{method}}")],
            "Many with few subscribers: clients subscribe again and again; see the errors above for why.",
        ),
        Graph(
            "Lifetime of streams that ended, median",
            units.Seconds,
            [Query(quantile(0.5, "trio_broker_stream_lifetime_seconds", "method"), "{{method}}")],
            "Short ones are cut by somebody: a proxy's idle timeout, a deadline, a slow consumer.",
        ),
        Graph(
            "Until the first message, median",
            units.Seconds,
            [Query(quantile(0.5, "trio_broker_stream_first_message_seconds", "method"), "{{method}}")],
            "From the call to its first message: how long subscribers wait until there is one.",
        ),
    ],
)

BOARD: Final = Board(
    "calls",
    "Rate, errors and duration of the calls, by method.",
    [RATE, ERRORS, DURATION, STREAMS],
)
