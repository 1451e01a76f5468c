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
        connections_cut={"flood": 4},
        gaps={"unavailable": 5},
        buffer_fill_ratio=0.25,
        calls_in_flight={"Fetch": 2},
        subscribers_of={"orders": 7},
    )
    assert registry.get_sample_value("trio_broker_ready") == 1
    assert registry.get_sample_value("trio_broker_slow_consumers_total") == 3
    assert registry.get_sample_value("trio_broker_connections_cut_total", {"limit": "flood"}) == 4
    assert registry.get_sample_value("trio_broker_subscriber_gaps_total", {"reason": "unavailable"}) == 5
    assert registry.get_sample_value("trio_broker_subscriber_buffer_fill_ratio") == 0.25
    assert registry.get_sample_value("trio_broker_calls_in_flight", {"method": "Fetch"}) == 2
    assert registry.get_sample_value("trio_broker_subject_subscribers", {"subject": "orders"}) == 7


def test_of_other_brokers_only_what_there_can_be_is_told() -> None:
    state = State()
    registry = build_registry(StateMetrics({}, lambda: state))

    def told() -> set[str]:
        names = {sample.name for family in registry.collect() for sample in family.samples}
        return {
            name for name in names if any(word in name for word in ("replica", "tail", "hole", "forward", "learned"))
        }

    assert told() == set()
    state = replace(state, replicas=0, replicas_heard=0, learned={"tail": 0})
    assert told() == {"trio_broker_replicas", "trio_broker_replicas_heard", "trio_broker_learned_messages_total"}
    state = replace(state, replicas=3, forwarded=0, learned={"tail": 5, "poll": 1})
    assert registry.get_sample_value("trio_broker_replicas") == 3
    assert registry.get_sample_value("trio_broker_forwarded_messages_total") == 0
    assert registry.get_sample_value("trio_broker_learned_messages_total", {"path": "tail"}) == 5
    assert registry.get_sample_value("trio_broker_learned_messages_total", {"path": "poll"}) == 1


def test_everything_in_the_state_is_told() -> None:
    labelled = {"calls_in_flight", "connections_cut", "subscribers_of", "gaps", "learned"}
    assert {field.name for field in fields(State)} == {*_GAUGES, *_COUNTERS, *labelled}
