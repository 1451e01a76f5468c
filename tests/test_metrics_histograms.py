from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from metrics.histograms import SECONDS, Histogram, histogram, histograms


def samples(of: Histogram, name: str = "h") -> dict[str, float]:
    return {sample.labels.get("le", sample.name): sample.value for sample in histogram(name, "about", of).samples}


@given(st.lists(st.one_of(st.floats(0, 20), st.sampled_from(SECONDS))))
def test_it_exports_what_prometheus_clients_own_does(values: list[float]) -> None:
    ours = Histogram()
    registry = CollectorRegistry()
    theirs = TheirHistogram("h", "about", buckets=SECONDS, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    for sample in histogram("h", "about", ours).samples:
        assert registry.get_sample_value(sample.name, sample.labels) == sample.value


def test_a_value_counts_as_often_as_is_said() -> None:
    often, once = Histogram([1, 2]), Histogram([1, 2])
    often.observe_times(1.5, 3)
    often.observe_times(9, 0)
    for _ in range(3):
        once.observe(1.5)
    assert samples(often) == samples(once) == {"1.0": 0, "2.0": 3, "+Inf": 3, "h_count": 3, "h_sum": 4.5}


def test_a_label_tells_histograms_apart() -> None:
    family = histograms("h", "about", "operation", {"get": Histogram([1]), "read": Histogram([1])})
    assert {sample.labels["operation"] for sample in family.samples} == {"get", "read"}


def test_the_bounds_ascend() -> None:
    assert all(lower < upper for lower, upper in pairwise(SECONDS))
