"""The process and what it runs on, and the registry of all that one broker process tells.

Owns:      memory, CPU time, start time, descriptors (``process_*``), garbage collection (``python_gc_*``), interpreter
           (``python_info``) by prometheus_client; CPU use, threads, load, limits, pauses of the garbage collector,
           trio's tasks and how late they wake.
Not here:  what the broker counts (the files beside this one), where limits are read (metrics/limits.py).
Threads:   the trio thread only.
"""

import gc
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metrics import limits
from metrics.histograms import Histogram, histogram, histograms

LAG_INTERVAL_S: Final = 0.1
"""Between two looks at how late a sleeping task wakes."""
CPU_WINDOW: Final = 100
"""Looks at the CPU time that are kept: those of the last 10 s."""
PAUSE_S: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LAG_S: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

CPU_HELP: Final = "CPUs that this process used, mean of the last 10 s; 1 is one CPU."
THREADS_HELP: Final = "Threads of this process."
LOAD_HELP: Final = "Load average of the machine over so many minutes."
CPU_LIMIT_HELP: Final = "CPUs that this process may use: its cgroup's quota, or those it may run on."
THROTTLED_HELP: Final = "How long the quota of the cgroup has kept it from running; only where there is a quota."
PAUSE_HELP: Final = "How long the garbage collector stopped everything, by the generation that it looked at."
TASKS_HELP: Final = "Tasks of trio that are alive."
LAG_HELP: Final = "By how much a task that sleeps wakes too late: how long everything else waits, too."


def build_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a new registry of ``collectors`` and those of the process that prometheus_client has.

    Never prometheus_client's global one: a user's process may hold two brokers, and metrics of its own.
    """
    registry = build_plain_registry(*collectors)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def build_plain_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a new registry of ``collectors`` alone."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


class ProcessMetrics(Collector):
    """What the process uses and may use, and how it gets on. `keep_measuring` measures what takes time to see."""

    def __init__(self) -> None:
        self._lag = Histogram(LAG_S)
        self._pauses = {str(generation): Histogram(PAUSE_S) for generation in range(len(gc.get_count()))}
        self._pause_began = 0.0
        self._cpu: deque[tuple[float, float]] = deque([_cpu_times()], maxlen=CPU_WINDOW)

    async def keep_measuring(self) -> None:
        """Measure until cancelled."""
        gc.callbacks.append(self._on_collection)
        try:
            while True:
                due = trio.current_time() + LAG_INTERVAL_S
                await trio.sleep_until(due)
                self._lag.observe(max(0.0, trio.current_time() - due))
                self._cpu.append(_cpu_times())
        finally:
            gc.callbacks.remove(self._on_collection)

    def collect(self) -> Iterator[Metric]:
        """Build the families for one scrape."""
        yield GaugeMetricFamily("trio_broker_process_cpu_utilisation", CPU_HELP, self._cpu_utilisation())
        yield GaugeMetricFamily("trio_broker_process_threads", THREADS_HELP, _threads())
        load = GaugeMetricFamily("trio_broker_load_average", LOAD_HELP, labels=["minutes"])
        for minutes, value in zip(("1", "5", "15"), os.getloadavg(), strict=True):
            load.add_metric([minutes], value)
        yield load
        yield GaugeMetricFamily("trio_broker_cpu_limit", CPU_LIMIT_HELP, limits.cpu_limit())
        yield CounterMetricFamily("trio_broker_cpu_throttled_seconds", THROTTLED_HELP, limits.cpu_throttled_s())
        yield histograms("trio_broker_gc_pause_seconds", PAUSE_HELP, "generation", self._pauses)
        yield GaugeMetricFamily("trio_broker_trio_tasks", TASKS_HELP, trio.lowlevel.current_statistics().tasks_living)
        yield histogram("trio_broker_scheduler_lag_seconds", LAG_HELP, self._lag)

    def _cpu_utilisation(self) -> float:
        then, used_then = self._cpu[0]
        now, used_now = _cpu_times()
        return (used_now - used_then) / max(now - then, 1e-9)

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._pause_began = time.perf_counter()
        else:
            self._pauses[str(info["generation"])].observe(time.perf_counter() - self._pause_began)


def _cpu_times() -> tuple[float, float]:
    """Return the time, and the CPU time of all threads of this process."""
    return time.monotonic(), time.process_time()


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())  # drivers start some that Python does not know
