import pytest
import trio
from structlog.testing import capture_logs
from trial_store import TrialStore, message
from trio.testing import MockClock

import persistence
from persistence import StoreError, Swept
from trio_broker.errors import BrokerError, OutcomeUnknown, Rejected, StorageFull, StorageUnavailable
from trio_broker.storage import (
    PROBE_INTERVAL_S,
    PROBE_TIMEOUT_S,
    SWEEP_PAUSE_S,
    Availability,
    StoreClock,
    broker_error,
    keep_probing,
    keep_sweeping,
)

UNAVAILABLE = persistence.StoreUnavailable("no route to host")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (persistence.StoreUnavailable("secret"), StorageUnavailable),
        (persistence.StoreFull("secret"), StorageFull),
        (persistence.OutcomeUnknown("secret"), OutcomeUnknown),
        (persistence.StoreError("secret"), OutcomeUnknown),
        (ZeroDivisionError("secret"), OutcomeUnknown),
    ],
)
def test_the_stores_errors_become_the_brokers_without_their_text(error: Exception, expected: type[BrokerError]) -> None:
    assert type(broker_error(error)) is expected
    assert "secret" not in str(broker_error(error))


def test_what_is_wrong_with_a_message_is_told() -> None:
    error = broker_error(persistence.BadContent("NUL in text"))
    assert type(error) is Rejected
    assert "NUL in text" in str(error)


# availability


async def test_a_store_is_away_from_its_first_failure_until_it_takes_an_append(autojump_clock: MockClock) -> None:
    availability = Availability()
    assert (availability.away, availability.away_s()) == (False, 0.0)
    with capture_logs() as logs:
        availability.failed(UNAVAILABLE)
        await trio.sleep(3)
        availability.failed(persistence.OutcomeUnknown("connection lost"))
        assert (availability.away, availability.away_s()) == (True, 3.0)
        availability.appended()
        availability.appended()
    assert (availability.away, availability.away_s()) == (False, 0.0)
    assert logs == [
        {"event": "store_away", "why": "no route to host", "log_level": "warning"},
        {"event": "store_back", "away_s": 3.0, "log_level": "info"},
    ]


async def test_other_failures_do_not_make_a_store_away() -> None:
    availability = Availability()
    for error in (persistence.StoreFull("full"), persistence.BadContent("bad"), ZeroDivisionError("bug")):
        availability.failed(error)
        assert not availability.away


async def test_a_full_store_is_logged_once_and_so_is_the_space_that_returns() -> None:
    availability = Availability()
    with capture_logs() as logs:
        availability.appended()
        availability.failed(persistence.StoreFull("disk full"))
        availability.failed(persistence.StoreFull("disk full"))
        availability.answered()
        availability.appended()
        availability.appended()
    assert logs == [
        {"event": "store_full", "why": "disk full", "log_level": "warning"},
        {"event": "store_has_space", "log_level": "info"},
    ]


async def test_a_full_store_was_reached_and_so_is_back() -> None:
    availability = Availability()
    availability.failed(UNAVAILABLE)
    with availability.trying():
        availability.failed(persistence.StoreFull("full"))
        assert not availability.away


async def test_an_answer_brings_the_store_back_unless_something_failed_since_the_one_before() -> None:
    availability = Availability()
    availability.failed(UNAVAILABLE)
    availability.answered()
    assert availability.away
    availability.failed(UNAVAILABLE)
    availability.answered()
    assert availability.away  # it answers, and goes on refusing appends
    availability.answered()
    assert not availability.away


async def test_an_answer_does_not_bring_the_store_back_while_an_append_is_under_way() -> None:
    availability = Availability()
    availability.failed(UNAVAILABLE)
    with availability.trying():
        with availability.trying():
            pass
        for _ in range(3):
            availability.answered()
            assert availability.away
    availability.answered()
    assert availability.away
    availability.answered()
    assert not availability.away


async def test_an_append_that_is_taken_brings_the_store_back_while_another_is_under_way() -> None:
    availability = Availability()
    availability.failed(UNAVAILABLE)
    with availability.trying():
        availability.appended()
        assert not availability.away


# the probe


class ProbedStore(TrialStore):
    """Answers as `mood` says: ``None``, an error, or how long it takes; a deaf one hears of no cancellation."""

    mood: Exception | float | None = None
    deaf = False

    async def now(self) -> int:
        if isinstance(self.mood, Exception):
            await trio.lowlevel.checkpoint()
            raise self.mood
        with trio.CancelScope(shield=self.deaf):
            await trio.sleep(self.mood or 0)
        return await super().now()


async def test_the_probe_finds_a_store_that_goes_and_comes_back(autojump_clock: MockClock) -> None:
    store, availability = ProbedStore(), Availability()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_probing, store, availability, StoreClock())
        await trio.sleep(10.5)
        assert not availability.away
        store.mood = UNAVAILABLE
        await trio.sleep(PROBE_INTERVAL_S)
        assert availability.away
        await trio.sleep(10)
        assert availability.away_s() == pytest.approx(10.5)
        store.mood = None
        await trio.sleep(2 * PROBE_INTERVAL_S)
        assert not availability.away
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_store_that_hangs_is_away(autojump_clock: MockClock, deaf: bool) -> None:
    store, availability = ProbedStore(), Availability()
    store.mood, store.deaf = 60.0, deaf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_probing, store, availability, StoreClock())
        await trio.sleep(PROBE_TIMEOUT_S - 0.1)
        assert not availability.away
        await trio.sleep(0.2)
        assert availability.away
        store.mood = None
        await trio.sleep(70 if deaf else 2 * PROBE_INTERVAL_S)  # the old question was given up, if that is possible
        assert not availability.away
        nursery.cancel_scope.cancel()


async def test_a_bug_in_the_store_does_not_stop_the_probe(autojump_clock: MockClock) -> None:
    store, availability = ProbedStore(), Availability()
    store.mood = ZeroDivisionError("bug")
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_probing, store, availability, StoreClock())
            await trio.sleep(1.5 * PROBE_INTERVAL_S)
            nursery.cancel_scope.cancel()
    assert [entry["event"] for entry in logs] == ["probe_failed"] * 2


# sweeping


class SweptStore(TrialStore):
    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.failures: list[Exception] = []
        self.steps: list[float] = []

    async def sweep(self) -> Swept:
        await trio.lowlevel.checkpoint()
        self.steps.append(trio.current_time())
        if self.failures:
            raise self.failures.pop()
        self.left = max(0, self.left - 1)
        return Swept(1, more=self.left > 0)


async def sweeps(store: SweptStore, seconds: float) -> tuple[list[float], Availability]:
    """Sweep for so long; return when each step was made."""
    availability = Availability()
    began = trio.current_time()
    with trio.move_on_after(seconds):
        await keep_sweeping(store, availability, 10)
    return [round(step - began, 6) for step in store.steps], availability


async def test_steps_follow_each_other_while_there_is_more_and_then_pause(autojump_clock: MockClock) -> None:
    store = SweptStore()
    store.left = 3
    steps, _ = await sweeps(store, 25)
    assert steps == [0, SWEEP_PAUSE_S, 2 * SWEEP_PAUSE_S, 10 + 2 * SWEEP_PAUSE_S, 20 + 2 * SWEEP_PAUSE_S]


@pytest.mark.parametrize("failure", [UNAVAILABLE, StoreError("odd"), KeyError(1)])
async def test_a_failing_sweep_is_tried_again_after_the_pause_and_does_not_make_the_store_away(
    autojump_clock: MockClock, failure: Exception
) -> None:
    store = SweptStore()
    store.failures = [failure]
    with capture_logs() as logs:
        steps, availability = await sweeps(store, 15)
    assert steps == [0, 10]
    assert not availability.away
    assert [entry["event"] for entry in logs] == ["sweep_failed"]


async def test_what_has_expired_is_swept_away(autojump_clock: MockClock) -> None:
    store = TrialStore()
    await store.append([message(expiration_s=1) for _ in range(5000)])
    store.clock_us += 2_000_000
    with trio.move_on_after(5):
        await keep_sweeping(store, Availability(), 1)
    assert (await store.sweep()) == Swept(0, more=False)
