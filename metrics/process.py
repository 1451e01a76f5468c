"""The registry of one broker process: its own collectors, and what the process itself tells.

Owns:      the collectors besides the broker's own: memory, CPU time, start time, descriptors (``process_*``; they come
           from /proc and are absent elsewhere), garbage collection (``python_gc_*``), interpreter (``python_info``).
Not here:  what the broker counts (metrics/calls.py).
Threads:   any.
"""

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector


def build_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a new registry of ``collectors`` and those of the process.

    Never prometheus_client's global one: a user's process may hold two brokers, and metrics of its own.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
