import gc

import pytest
import trio
import trio.testing
from prometheus_client import REGISTRY, CollectorRegistry

from metrics import CallMetrics, ProcessMetrics, build_registry


def names(registry: CollectorRegistry) -> set[str]:
    return {sample.name for family in registry.collect() for sample in family.samples}


def test_memory_cpu_and_garbage_collection_are_told() -> None:
    registry = build_registry()
    memory = registry.get_sample_value("process_resident_memory_bytes")
    assert memory is not None
    assert memory > 1_000_000
    assert {
        "process_cpu_seconds_total",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "python_gc_collections_total",
        "python_gc_objects_collected_total",
        "python_gc_objects_uncollectable_total",
        "python_info",
    } <= names(registry)


def test_two_brokers_of_one_process_have_their_own_registries() -> None:
    first = build_registry(CallMetrics(["Publish"], lambda: 1))
    second = build_registry(CallMetrics(["Publish"], lambda: 2))
    assert first.get_sample_value("active_subscribers") == 1
    assert second.get_sample_value("active_subscribers") == 2
    assert "active_subscribers" not in names(REGISTRY)


async def test_limits_load_and_threads_are_told() -> None:
    registry = build_registry(ProcessMetrics())
    told = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    assert told["trio_broker_process_threads"] >= 1
    assert told["trio_broker_cpu_limit"] > 0
    assert told["trio_broker_trio_tasks"] >= 1
    minutes = {"1", "5", "15"}
    assert all(registry.get_sample_value("trio_broker_load_average", {"minutes": each}) is not None for each in minutes)


async def test_how_late_tasks_wake_is_measured(autojump_clock: trio.testing.MockClock) -> None:
    registry = build_registry(process := ProcessMetrics())
    with trio.move_on_after(1.05):
        await process.keep_measuring()
    assert registry.get_sample_value("trio_broker_scheduler_lag_seconds_count") == 10
    assert registry.get_sample_value("trio_broker_scheduler_lag_seconds_sum") == 0


async def test_pauses_of_the_garbage_collector_are_measured_as_long_as_asked() -> None:
    registry = build_registry(process := ProcessMetrics())

    def pauses() -> float | None:
        return registry.get_sample_value("trio_broker_gc_pause_seconds_count", {"generation": "2"})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.keep_measuring)
        await trio.testing.wait_all_tasks_blocked()
        before = pauses()
        gc.collect()
        assert before is not None
        assert pauses() == before + 1
        nursery.cancel_scope.cancel()
    gc.collect()
    assert pauses() == before + 1


def test_cpu_utilisation_is_cpu_time_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(100.0, 7.0), (110.0, 12.0)])
    monkeypatch.setattr("metrics.process._cpu_times", lambda: next(moments))
    registry = build_registry(ProcessMetrics())
    assert registry.get_sample_value("trio_broker_process_cpu_utilisation") == 0.5
