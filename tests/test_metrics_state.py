from dataclasses import fields, replace

from metrics import State, StateMetrics, build_registry
from metrics.state import _COUNTERS, _GAUGES


def test_the_state_is_asked_for_at_each_scrape() -> None:
    state = State()
    registry = build_registry(StateMetrics({"version": "1.2"}, lambda: state))
    assert registry.get_sample_value("trio_broker_ready") == 0
    assert registry.get_sample_value("trio_broker_build_info", {"version": "1.2"}) == 1
    state = replace(
        state,
        ready=True,
        slow_consumers=3,
        gaps={"unavailable": 5},
        buffer_fill_ratio=0.25,
        calls_in_flight={"Fetch": 2},
        subscribers_of={"orders": 7},
    )
    assert registry.get_sample_value("trio_broker_ready") == 1
    assert registry.get_sample_value("trio_broker_slow_consumers_total") == 3
    assert registry.get_sample_value("trio_broker_subscriber_gaps_total", {"reason": "unavailable"}) == 5
    assert registry.get_sample_value("trio_broker_subscriber_buffer_fill_ratio") == 0.25
    assert registry.get_sample_value("trio_broker_calls_in_flight", {"method": "Fetch"}) == 2
    assert registry.get_sample_value("trio_broker_subject_subscribers", {"subject": "orders"}) == 7


def test_everything_in_the_state_is_told() -> None:
    labelled = {"calls_in_flight", "subscribers_of", "gaps"}
    assert {field.name for field in fields(State)} == {*_GAUGES, *_COUNTERS, *labelled}
