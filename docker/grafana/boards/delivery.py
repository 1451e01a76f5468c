"""From the commit to the subscribers: how much, how late, and who does not keep up."""

from typing import Final

from grafana_foundation_sdk.models import units

from boards.panels import Board, Graph, Levels, Query, Row
from boards.promql import each, gauge, least, most, quantile, quantiles, rate

MESSAGES: Final = Row(
    "Messages",
    [
        Graph(
            "Published and delivered",
            units.MessagesPerSecond,
            [
                Query(rate("trio_broker_messages_published_total"), "published"),
                Query(rate("trio_broker_messages_delivered_total"), "delivered"),
            ],
            "Delivered is published times subscribers of the subject. Less: see Buffers.",
        ),
        Graph(
            "Bytes published and delivered",
            units.BytesPerSecondIEC,
            [
                Query(rate("trio_broker_published_bytes_total"), "published"),
                Query(rate("trio_broker_delivered_bytes_total"), "delivered"),
            ],
            "Bodies, without what gRPC adds.",
        ),
        Graph(
            "Subscribers",
            units.Short,
            [each("active_subscribers")],
            "Subscriptions that are live. A sudden fall: a client's deployment, a proxy, or slow consumers cut.",
        ),
    ],
)

LAG: Final = Row(
    "Lag",
    [
        Graph(
            "From the commit to the socket",
            units.Seconds,
            quantiles("trio_broker_delivery_lag_seconds"),
            "How late messages are. p99 alone is high: some subscribers are slow. All are: the broker is; "
            "see the board process.",
            Levels(warning=0.25, bad=1),
        ),
        Graph(
            "From the commit to the socket, p99 of each instance",
            units.Seconds,
            [Query(quantile(0.99, "trio_broker_delivery_lag_seconds", "instance"), "{{instance}}")],
            "Who is late.",
        ),
        Graph(
            "Publishes in front of the store",
            units.Short,
            [each("trio_broker_publish_queue_messages")],
            "They have no id yet. Grows while the store is slow or away; see the board store.",
        ),
    ],
)

BUFFERS: Final = Row(
    "Buffers",
    [
        Graph(
            "The fullest buffer of a subscription",
            units.PercentUnit,
            [most("trio_broker_subscriber_buffer_fill_ratio")],
            "A subscriber that stalls: it rises to 100 %, and what follows it gets later from the log, or it is cut. "
            "Others do not wait for it.",
            Levels(warning=0.5, bad=0.9),
            top=1,
        ),
        Graph(
            "Messages that wait in buffers",
            units.Short,
            [each("trio_broker_subscriber_buffer_messages")],
            "Over all subscriptions. Much, and no buffer is full: all read slowly, or the network is slow.",
        ),
        Graph(
            "Bytes that wait in buffers",
            units.BytesIEC,
            [each("trio_broker_subscriber_buffer_bytes")],
            "Over all subscriptions: memory that slow subscribers take.",
        ),
        Graph(
            "Subscriptions cut",
            units.Short,
            [
                Query(
                    f"sum by (instance) (increase({gauge('trio_broker_slow_consumers_total')}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            "They were told SLOW_CONSUMER and the last id that they got. Make the reader faster, or "
            "--subscriber-messages and --subscriber-bytes larger.",
            columns=12,
        ),
        Graph(
            "Subjects of --metrics-subjects",
            units.Short,
            [
                Query(rate("trio_broker_subject_messages_published_total", "subject"), "{{subject}}: published"),
                Query(rate("trio_broker_subject_messages_delivered_total", "subject"), "{{subject}}: delivered"),
                Query(f"sum by (subject) ({gauge('trio_broker_subject_subscribers')})", "{{subject}}: subscribers"),
            ],
            "Messages a second and subscribers of the subjects that the setting names; by default none.",
            columns=12,
        ),
    ],
)

_PAGES: Final = [rate("trio_broker_cache_hits_total"), rate("trio_broker_cache_misses_total")]

CATCHING_UP: Final = Row(
    "Catching up",
    [
        Graph(
            "Subscriptions that left the live stream",
            units.Short,
            [
                Query(
                    f"sum by (instance) (increase({gauge('trio_broker_subscriber_lags_total')}[$__rate_interval]))",
                    "{{instance}}",
                )
            ],
            "Their buffer was full; they get the rest from memory or the log when they read again. Many: "
            "readers that are too slow.",
        ),
        Graph(
            "Gaps, by reason",
            units.Short,
            [
                Query(
                    f"sum by (reason) (increase({gauge('trio_broker_subscriber_gaps_total')}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            "Ranges of ids that a subscription did not get. unavailable: expired or purged before it came to them. "
            "live_buffer: not to be kept, while it was behind. dropped_oldest: as it asked for.",
        ),
        Graph(
            "Pages of the log from memory",
            units.PercentUnit,
            [Query(f"{_PAGES[0]} / ({' + '.join(_PAGES)} > 0)", "from memory")],
            "The rest was read from the store. Low while many are read: readers are behind by more than --cache-bytes "
            "holds, or start far back in the log.",
        ),
        Graph(
            "Pages of the log",
            units.OpsPerSecond,
            [Query(_PAGES[0], "from memory"), Query(_PAGES[1], "from the store")],
            "A second, for subscribers that are behind the live stream.",
            columns=12,
        ),
        Graph(
            "Recent messages in memory",
            units.BytesIEC,
            [each("trio_broker_cache_bytes"), each("trio_broker_cache_limit_bytes", "{{instance}}: limit")],
            "It fills up to the limit, and stays there: the oldest make room.",
            columns=12,
        ),
    ],
)

REPLICAS: Final = Row(
    "Replicas: other brokers on the same store",
    [
        Graph(
            "Others known and heard",
            units.Short,
            [
                most("trio_broker_replicas", "{{instance}}: known"),
                least("trio_broker_replicas_heard", "{{instance}}: heard"),
            ],
            "Of the worker that is worst off. Heard is less than known: what some brokers append comes later, by the "
            "store. See that the others' --peer-listen can be reached from this one.",
        ),
        Graph(
            "How messages for subscribers were heard of",
            units.MessagesPerSecond,
            [Query(rate("trio_broker_learned_messages_total", "path"), "{{path}}")],
            "commit: appended by the broker itself. tail: streamed by another one. wakeup: the store told, and the log "
            "was read. poll: found by asking the store. Much of the last two: streams do not serve.",
            stacked=True,
        ),
        Graph(
            "Appended by another broker",
            units.MessagesPerSecond,
            [
                Query(rate("trio_broker_forwarded_messages_total"), "by another"),
                Query(rate("trio_broker_forwards_refused_messages_total"), "another was asked, and did not"),
            ],
            "On Cassandra, where each subject is left to one broker. Elsewhere nothing. Many that were not: the other "
            "broker is stopping, overloaded, or has lost its store.",
        ),
        Graph(
            "Bytes that wait to leave for other brokers",
            units.BytesIEC,
            [most("trio_broker_tail_waiting_bytes")],
            "Of the worker for which most waits. Up to 8 MiB for each other broker: one of them is too busy to read, "
            "or the network is slow.",
            columns=12,
        ),
        Graph(
            "What came too late, or had no room",
            units.Short,
            [
                *(
                    Query(f"sum by (instance) (increase({gauge(name)}[$__rate_interval]))", f"{{{{instance}}}}: {what}")
                    for name, what in (
                        ("trio_broker_holes_given_up_total", "holes given up"),
                        ("trio_broker_tail_dropped_batches_total", "batches without room"),
                    )
                ),
            ],
            "Both are read from the log; of messages that are not to be kept there is nothing to read. A few holes: "
            "two brokers append to one subject at once. Many: brokers lack CPU, see the board process.",
            columns=12,
        ),
    ],
)

BOARD: Final = Board(
    "delivery",
    "From the commit to the subscribers: how much, how late, and who does not keep up.",
    [MESSAGES, LAG, BUFFERS, CATCHING_UP, REPLICAS],
)
