from collections.abc import Callable

import pytest
import trio
from prometheus_client import CollectorRegistry
from trial_store import TrialStore, message

from metrics import MessageMetrics, StoreMetrics, build_registry
from persistence import (
    Appended,
    BadContent,
    Failed,
    Key,
    OutcomeUnknown,
    PoolUse,
    Rejected,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Swept,
)
from trio_broker.measured_store import OPERATIONS, MeasuredStore

Measured = tuple[TrialStore, MeasuredStore, CollectorRegistry]


@pytest.fixture
def measured() -> Measured:
    trial = TrialStore()
    operations, messages = StoreMetrics(OPERATIONS, trial.pools), MessageMetrics(["named"])
    return trial, MeasuredStore(trial, operations, messages), build_registry(operations, messages)


def errors(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["operation"], sample.labels["kind"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "trio_broker_store_errors_total"
    }


def counted(registry: CollectorRegistry, operation: str) -> float | None:
    return registry.get_sample_value("trio_broker_store_operation_seconds_count", {"operation": operation})


def test_everything_that_a_store_does_is_passed_on() -> None:
    """A method that the facade has a default for would be forgotten silently."""
    public = {name for name in vars(Store) if not name.startswith("_")}
    assert public <= set(vars(MeasuredStore))


async def test_every_operation_is_counted_once(measured: Measured) -> None:
    _, store, registry = measured
    await store.append([message()])
    await store.read("a", 0, max_messages=1, max_bytes=1)
    await store.get([Key("a", 1)])
    await store.head("a")
    await store.heads(["a"])
    await store.id_before("a", 0)
    await store.subjects()
    await store.purge("a", 1)
    await store.delete_subject("a", 1)
    await store.restore("b", [], 1)
    version = await store.compare_and_set("r", b"", version=0)
    assert version is not None
    await store.load("r")
    await store.list("r")
    await store.delete("r", version=version)
    await store.sweep()
    await store.now()
    assert {operation: counted(registry, operation) for operation in OPERATIONS} == dict.fromkeys(OPERATIONS, 1)
    assert errors(registry) == {}


async def test_what_is_appended_is_counted_with_its_bytes_and_its_flush(measured: Measured) -> None:
    trial, store, registry = measured
    await store.append([message(body=b"123"), message("named", b"4567"), message("named", b"")])
    trial.plan.append(lambda outcomes: [outcomes[0], Rejected("no")])
    await store.append([message("named", b"8"), message("named", b"not counted")])
    told = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    assert told["trio_broker_messages_published_total"] == 4
    assert told["trio_broker_published_bytes_total"] == 8
    assert told["trio_broker_subject_messages_published_total"] == 3
    assert (told["trio_broker_flush_messages_count"], told["trio_broker_flush_messages_sum"]) == (2, 5)
    assert told["trio_broker_flush_seconds_count"] == 2


async def test_what_was_appended_before_counts_as_a_duplicate_only(measured: Measured) -> None:
    _, store, registry = measured
    keyed = message(body=b"123")._replace(idempotency_key="k")
    await store.append([keyed, keyed, message()._replace(expected_last_id=7)])
    told = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    assert told["trio_broker_messages_published_total"] == 1
    assert told["trio_broker_messages_deduplicated_total"] == 1
    assert told["trio_broker_published_bytes_total"] == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreUnavailable(""), "unavailable"),
        (StoreFull(""), "full"),
        (BadContent(""), "bad_content"),
        (OutcomeUnknown(""), "outcome_unknown"),
        (ZeroDivisionError(), "bug"),
    ],
)
async def test_failures_are_counted_by_kind_and_raised(measured: Measured, error: Exception, kind: str) -> None:
    trial, store, registry = measured
    trial.plan.append(error)
    with pytest.raises(type(error)):
        await store.append([message()])
    assert errors(registry) == {("append", kind): 1}
    assert counted(registry, "append") == 1
    assert registry.get_sample_value("trio_broker_flush_messages_count") == 0
    assert registry.get_sample_value("trio_broker_messages_published_total") == 0


async def test_a_flush_that_fails_in_part_counts_once_for_each_kind(measured: Measured) -> None:
    trial, store, registry = measured
    failures: list[StoreError] = [StoreUnavailable(""), StoreUnavailable(""), StoreFull("")]
    trial.plan.append(lambda outcomes: [*map(Failed, failures), Appended(1, 1)])
    await store.append([message()] * 4)
    assert errors(registry) == {("append", "unavailable"): 1, ("append", "full"): 1}
    assert registry.get_sample_value("trio_broker_messages_published_total") == 1


async def test_what_is_cancelled_counts_for_nothing(measured: Measured) -> None:
    _, store, registry = measured
    with trio.move_on_after(0) as scope:
        await store.now()
    assert scope.cancelled_caught
    assert counted(registry, "now") == 0
    assert errors(registry) == {}


async def test_sweeping_is_behind_while_there_is_more(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    trial, _, _ = measured
    operations = StoreMetrics(OPERATIONS, tuple, clock=trio.current_time)
    registry = build_registry(operations, messages := MessageMetrics())
    steps = iter([Swept(5, more=True), Swept(2, more=False)])
    monkeypatch.setattr(trial, "sweep", sweeping(lambda: next(steps)))
    store = MeasuredStore(trial, operations, messages)

    def behind() -> float | None:
        return registry.get_sample_value("trio_broker_sweep_behind_seconds")

    await trio.sleep(10)
    assert behind() == pytest.approx(10)
    await store.sweep()
    assert behind() == pytest.approx(10)
    await store.sweep()
    assert behind() == pytest.approx(0)
    assert registry.get_sample_value("trio_broker_messages_expired_total") == 7


def sweeping(step: Callable[[], Swept]) -> Callable[[], object]:
    async def sweep() -> Swept:
        await trio.lowlevel.checkpoint()
        return step()

    return sweep


def test_pools_are_asked_at_each_scrape() -> None:
    pools = [PoolUse("read", size=8, in_use=3, waiting=2, turns=10, waited_s=0.5)]
    registry = build_registry(StoreMetrics(OPERATIONS, lambda: pools))
    pool = {"pool": "read"}
    assert registry.get_sample_value("trio_broker_store_pool_size", pool) == 8
    assert registry.get_sample_value("trio_broker_store_pool_in_use", pool) == 3
    assert registry.get_sample_value("trio_broker_store_pool_waiting", pool) == 2
    assert registry.get_sample_value("trio_broker_store_pool_wait_seconds_count", pool) == 10
    assert registry.get_sample_value("trio_broker_store_pool_wait_seconds_sum", pool) == 0.5
    pools.clear()
    assert registry.get_sample_value("trio_broker_store_pool_size", pool) is None
