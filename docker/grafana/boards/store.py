"""The store as the broker sees it: is it there, how busy, how slow, what fails."""

from typing import Final

from grafana_foundation_sdk.models import units

from boards.panels import Board, Graph, Levels, Query, Row
from boards.promql import each, gauge, least, mean, most, of_instance, quantile, quantiles, rate

PRESENCE: Final = Row(
    "Is it there?",
    [
        Graph(
            "Ready, draining",
            units.NoUnit,
            [least("trio_broker_ready"), most("trio_broker_draining", "{{instance}} is being stopped")],
            "Of the worker that is worst off. Load balancers send nobody to an instance of which no worker is ready.",
            top=1,
        ),
        Graph(
            "Store and wake-ups",
            units.NoUnit,
            [
                least("trio_broker_store_up", "{{instance}}: the store answers"),
                least("trio_broker_listen_connected", "{{instance}}: wake-ups are heard"),
            ],
            "The store is 0: it does not answer; readiness follows after --store-grace; the log says why (store_away). "
            "Only wake-ups are: the connection that listens is lost, and the broker polls.",
            top=1,
        ),
        Graph(
            "Hints of appends",
            units.OpsPerSecond,
            [Query(rate("trio_broker_wakeups_total", "instance"), "{{instance}}")],
            "By the store, or where wake-ups are lost by polling, about one a second.",
        ),
    ],
)

FLUSHES: Final = Row(
    "Flushes: publishes that are appended together",
    [
        Graph(
            "Duration of a flush",
            units.Seconds,
            quantiles("trio_broker_flush_seconds"),
            "The store's commit: what every publish waits for, once or twice. High: the disk's fsync, replication, or "
            "a lock in the store.",
            Levels(warning=0.1, bad=0.5),
        ),
        Graph(
            "Messages in a flush",
            units.Short,
            [
                Query(mean("trio_broker_flush_messages"), "mean"),
                Query(quantile(0.99, "trio_broker_flush_messages"), "p99"),
            ],
            "Grows with load and with the duration of a flush; at --flush-messages the store is at its end.",
        ),
        Graph(
            "Publishes that wait, of what may wait",
            units.PercentUnit,
            [
                *(
                    Query(
                        of_instance(
                            "max",
                            f"{gauge(f'trio_broker_publish_queue_{unit}')} "
                            f"/ {gauge(f'trio_broker_publish_queue_limit_{unit}')}",
                        ),
                        f"{{{{instance}}}}: {unit}",
                    )
                    for unit in ("messages", "bytes")
                ),
            ],
            "At 100 % publishes are refused (OVERLOADED).",
            Levels(warning=0.5, bad=0.9),
            top=1,
        ),
    ],
)

OPERATIONS: Final = Row(
    "Operations",
    [
        Graph(
            "Operations",
            units.OpsPerSecond,
            [Query(rate("trio_broker_store_operation_seconds_count", "operation"), "{{operation}}")],
            "How often the store is asked for what. `now` is the probe.",
        ),
        Graph(
            "Duration of operations, p99",
            units.Seconds,
            [Query(quantile(0.99, "trio_broker_store_operation_seconds", "operation"), "{{operation}}")],
            "All are slow: the store or the way to it. Only append: its disk. Only read and get: what it has to read.",
            Levels(warning=0.25, bad=1),
        ),
        Graph(
            "Errors",
            units.OpsPerSecond,
            [Query(f"{rate('trio_broker_store_errors_total', 'operation,kind')} > 0", "{{operation}} {{kind}}")],
            "unavailable: it is away. full: make space. outcome_unknown: lost while committing. bug: see the log.",
        ),
    ],
)

POOLS: Final = Row(
    "Pools: threads with a connection",
    [
        Graph(
            "In use",
            units.PercentUnit,
            [
                Query(
                    f"{of_instance('sum', gauge('trio_broker_store_pool_in_use'), 'pool')} "
                    f"/ {of_instance('sum', gauge('trio_broker_store_pool_size'), 'pool')}",
                    "{{instance}} {{pool}}",
                )
            ],
            "Of the pool's size. The pool that writes is in use whenever there is load.",
            top=1,
        ),
        Graph(
            "Waiting",
            units.Short,
            [each("trio_broker_store_pool_waiting", "{{instance}} {{pool}}", by="pool")],
            "Operations that wait for a thread of the pool. For long: the store is slower than what is asked of it.",
        ),
        Graph(
            "How long operations waited, mean",
            units.Seconds,
            [Query(mean("trio_broker_store_pool_wait_seconds", "pool"), "{{pool}}")],
            "For their turn, before the store was asked.",
            Levels(warning=0.1, bad=1),
        ),
    ],
)

SWEEPING: Final = Row(
    "Sweeping: removing what has expired",
    [
        Graph(
            "Since nothing was left to remove",
            units.Seconds,
            [most("trio_broker_sweep_behind_seconds")],
            "Grows while sweeping does not keep up, or fails. The store grows meanwhile; nobody sees expired messages.",
            Levels(warning=300, bad=3600),
            columns=12,
        ),
        Graph(
            "Messages removed",
            units.MessagesPerSecond,
            [Query(rate("trio_broker_messages_expired_total", "instance"), "{{instance}}")],
            "By the sweeps of each instance.",
            columns=12,
        ),
    ],
)

BOARD: Final = Board(
    "store",
    "The store as the broker sees it: is it there, how busy, how slow, what fails.",
    [PRESENCE, FLUSHES, OPERATIONS, POOLS, SWEEPING],
)
