"""The process and its runtime: memory, CPU, the scheduler, threads, descriptors."""

from typing import Final

from grafana_foundation_sdk.models import units

from boards.panels import Board, Graph, Levels, Query, Row, Table
from boards.promql import each, gauge, most, of_instance, quantiles, rate

MEMORY: Final = Row(
    "Memory",
    [
        Graph(
            "Memory, of its limit",
            units.PercentUnit,
            [
                Query(
                    of_instance(
                        "max", f"{gauge('trio_broker_memory_used_bytes')} / {gauge('trio_broker_memory_limit_bytes')}"
                    ),
                    "{{instance}}",
                ),
                most("trio_broker_memory_pressure", "{{instance}}: refuses work (1)"),
            ],
            "Near 100 % the broker refuses new work. See which buffers grow: Buffers (delivery), Queue (store).",
            Levels(warning=0.7, bad=0.85),
            top=1,
        ),
        Graph(
            "Memory in bytes",
            units.BytesIEC,
            [
                each("trio_broker_memory_used_bytes", "{{instance}}: counted"),
                each("process_resident_memory_bytes", "{{instance}}: resident"),
                each("trio_broker_memory_limit_bytes", "{{instance}}: limit"),
            ],
            "Counted: what the limit is held against. It grows for hours and never falls: a leak; report it.",
        ),
        Graph(
            "What clients make it keep",
            units.BytesIEC,
            [
                each("trio_broker_publish_queue_bytes", "{{instance}}: publishes that wait"),
                each("trio_broker_subscriber_backlog_bytes", "{{instance}}: messages for subscribers"),
                each("trio_broker_rpc_inbound_bytes", "{{instance}}: requests that arrive"),
                each("trio_broker_rpc_outbound_bytes", "{{instance}}: replies that wait"),
            ],
            "Publishes that wait: the store is slow. Messages and replies: clients do not read. Requests: many large "
            "ones at once, or clients that never finish theirs.",
        ),
    ],
)

CPU: Final = Row(
    "CPU",
    [
        Graph(
            "CPUs in use",
            units.Short,
            [
                most("trio_broker_process_cpu_utilisation"),
                most("trio_broker_cpu_limit", "{{instance}}: limit"),
            ],
            "Of the busiest worker. At 1 the one thread that serves its clients is at its end: more workers or "
            "brokers, or fewer calls. At the limit the kernel makes it wait.",
        ),
        Graph(
            "Load of the machine",
            units.Short,
            [
                most("trio_broker_load_average", "{{instance}}: 1 min", 'minutes="1"'),
                Query(rate("trio_broker_cpu_throttled_seconds_total", "instance"), "{{instance}}: throttled, s/s"),
            ],
            "Load above the number of CPUs while the broker uses few: somebody else takes them. Throttled: it wants "
            "more than the container may have.",
        ),
        Graph(
            "By how much the scheduler wakes late",
            units.Seconds,
            quantiles("trio_broker_scheduler_lag_seconds"),
            "Everything waits so long. High with much CPU: too many calls for one process. High with little: the "
            "machine is busy or throttles, or something blocks (SIGUSR1 writes the task tree to the log).",
            Levels(warning=0.05, bad=0.25),
        ),
    ],
)

RUNTIME: Final = Row(
    "Runtime",
    [
        Graph(
            "Pauses of the garbage collector",
            units.PercentUnit,
            [Query(rate("trio_broker_gc_pause_seconds_sum", "generation"), "generation {{generation}}")],
            "Part of the time in which nothing else runs.",
        ),
        Graph(
            "Garbage collections",
            units.OpsPerSecond,
            [Query(rate("python_gc_collections_total", "generation"), "generation {{generation}}")],
            "How often; each is a pause, see beside it.",
        ),
        Graph(
            "Trio's tasks and threads",
            units.Short,
            [
                each("trio_broker_trio_tasks", "{{instance}}: tasks"),
                each("trio_broker_process_threads", "{{instance}}: threads"),
            ],
            "Tasks grow with connections. Threads are those of the pools; they grow no further.",
        ),
        Graph(
            "File descriptors",
            units.Short,
            [
                most("process_open_fds"),
                most("process_max_fds", "{{instance}}: limit"),
            ],
            "At the limit no connection is accepted any more: raise it (LimitNOFILE, ulimit -n).",
        ),
        Graph(
            "Running for",
            units.Seconds,
            [Query(f"time() - {of_instance('max', gauge('process_start_time_seconds'))}", "{{instance}}")],
            "The youngest worker. It falls to 0 again and again: it is killed (out of memory?) or crashes; see its "
            "log's end.",
        ),
        Table(
            "Versions",
            f"sum by (instance, version, store, python, trio) ({gauge('trio_broker_build_info')})",
            ("instance", "version", "store", "python", "trio"),
            "Which instance runs what. They differ after an upgrade: one was forgotten.",
        ),
    ],
)

BOARD: Final = Board(
    "process",
    "The process and its runtime: memory, CPU, the scheduler, threads, descriptors.",
    [MEMORY, CPU, RUNTIME],
)
