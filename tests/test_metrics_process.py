from prometheus_client import REGISTRY, CollectorRegistry

from metrics import CallMetrics, StoreMetrics, build_registry


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


def test_whether_wakeups_are_heard_is_asked_at_each_scrape() -> None:
    heard = [True]
    registry = build_registry(StoreMetrics(lambda: heard[0]))
    assert registry.get_sample_value("trio_broker_listen_connected") == 1
    heard[0] = False
    assert registry.get_sample_value("trio_broker_listen_connected") == 0
