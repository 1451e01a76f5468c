"""What is on top of every board: whether all is well, and if not, which board to look at."""

from typing import Final

from grafana_foundation_sdk.models import units

from boards.panels import BOARD_COLUMNS, Levels, Query, Table, Tile
from boards.promql import CLIENTS_FAULT, OUR_FAULT, PUBLISH_AND_FETCH, gauge, part_of_calls, quantile

PANELS: Final = [
    Tile(
        "Ready",
        Query(
            f"min(({gauge('trio_broker_workers_ready')} >= bool {gauge('trio_broker_workers')}) "
            f"or {gauge('trio_broker_ready')} or {gauge('up')})"
        ),
        units.NoUnit,
        "The least of all instances. NO: one answers 503 on /readyz, or does not answer at all, or has a worker that "
        "does not. Look at Store first.",
        "store",
        Levels(good=1),
        ("NO", "yes"),
    ),
    Tile(
        "Store",
        Query(f"min({gauge('trio_broker_store_up')})"),
        units.NoUnit,
        "The least of all instances. AWAY: the store does not answer; publishes fail or wait. Look at the store.",
        "store",
        Levels(good=1),
        ("AWAY", "up"),
    ),
    Tile(
        "Wake-ups",
        Query(f"min({gauge('trio_broker_listen_connected')})"),
        units.NoUnit,
        "LOST: the store does not tell of appends any more, and the broker polls. If Store is up, look at the way of "
        "--store-listen: a pooler or a firewall may have cut it.",
        "store",
        Levels(good=1),
        ("LOST", "heard"),
    ),
    Tile(
        "Failed calls",
        Query(part_of_calls(OUR_FAULT, among=PUBLISH_AND_FETCH)),
        units.PercentUnit,
        "The part of publishes and fetches that failed by what the broker or its store could not do. Not in it: what "
        "clients got wrong, and deadlines that were too short.",
        "calls",
        Levels(warning=0.001, bad=0.01),
    ),
    Tile(
        "Wrong calls",
        Query(part_of_calls(CLIENTS_FAULT)),
        units.PercentUnit,
        "The part of all calls that were refused for what the client got wrong: arguments, sizes, a method that there "
        "is not. The broker is well; find the client. Not in it: fetches of ids that are not there.",
        "calls",
        Levels(warning=0.05, bad=0.5),
    ),
    Tile(
        "p99",
        Query(f"{quantile(0.99, 'trio_broker_rpc_duration_seconds', match=PUBLISH_AND_FETCH)} > 0"),
        units.Seconds,
        "99 of 100 publishes and fetches were faster. If it is high, compare with the store's own times.",
        "calls",
        Levels(warning=0.1, bad=0.25),
    ),
    Tile(
        "Flush",
        Query(f"{quantile(0.99, 'trio_broker_flush_seconds')} > 0"),
        units.Seconds,
        "99 of 100 flushes to the store were faster: what publishes wait for. High: the store is slow.",
        "store",
        Levels(warning=0.1, bad=0.5),
    ),
    Tile(
        "Buffer",
        Query(f"max({gauge('trio_broker_subscriber_buffer_fill_ratio')})"),
        units.PercentUnit,
        "How full the fullest buffer of a subscription is. At 100 % that subscription gets the rest from the log, or "
        "is cut (SLOW_CONSUMER) if it asked for that: one subscriber does not read.",
        "delivery",
        Levels(warning=0.25, bad=0.5),
    ),
    Tile(
        "Cut",
        Query(f"round(sum(increase({gauge('trio_broker_slow_consumers_total')}[15m])))"),
        units.Short,
        "Subscriptions that were cut in the last 15 minutes because they read too slowly.",
        "delivery",
        Levels(warning=0.5, bad=10),
    ),
    Tile(
        "Memory",
        Query(f"max({gauge('trio_broker_memory_used_bytes')} / {gauge('trio_broker_memory_limit_bytes')})"),
        units.PercentUnit,
        "Memory in use, of what the process may use (the container's limit, or the machine's).",
        "process",
        Levels(warning=0.7, bad=0.85),
    ),
    Tile(
        "Pressure",
        Query(f"max({gauge('trio_broker_memory_pressure')})"),
        units.NoUnit,
        "REFUSES: the broker refuses new work for want of memory. Raise its limit, or lower what clients send at once.",
        "process",
        Levels(bad=1),
        ("none", "REFUSES"),
    ),
    Tile(
        "CPU",
        Query(f"max({gauge('trio_broker_process_cpu_utilisation')})"),
        units.PercentUnit,
        "CPUs in use, of the busiest process; 100 % is one CPU, and about all that one broker, or one worker, can use.",
        "process",
        Levels(warning=0.7, bad=0.9),
    ),
    Table(
        "Alerts",
        'sum by (alertstate, severity, alertname, job, instance) (ALERTS{alertname=~"TrioBroker.*",job=~"$job|"})',
        ("alertstate", "severity", "alertname", "job", "instance"),
        "What Prometheus finds wrong with the chosen jobs, whether or not it tells anybody. Pending: not for long "
        "enough yet. docs/RUNBOOK.md says what to do about each. Empty also where Prometheus has no rules.",
        columns=BOARD_COLUMNS,
        rows=6,
    ),
]
