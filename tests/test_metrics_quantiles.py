from math import ceil, inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.quantiles import HIGHEST, LOWEST, SLOT_S, SLOTS, WINDOW_S, SlidingQuantiles

FRACTIONS = [0.0, 0.25, 0.5, 0.95, 0.99, 1.0]
values_in_range = st.floats(LOWEST, HIGHEST)


def nearest_rank(values: list[float], fraction: float) -> float:
    return sorted(values)[max(1, ceil(fraction * len(values))) - 1]


@given(st.lists(values_in_range, min_size=1, max_size=300))
def test_every_quantile_is_within_one_percent_of_the_exact_one(values: list[float]) -> None:
    sketch = SlidingQuantiles(0.0)
    for value in values:
        sketch.observe(value, 0.0)
    exact = [nearest_rank(values, fraction) for fraction in FRACTIONS]
    assert sketch.quantiles(FRACTIONS, 0.0) == pytest.approx(exact, rel=0.01)


def test_the_edges_of_buckets_are_within_one_percent() -> None:
    edge = LOWEST
    while edge <= HIGHEST:
        sketch = SlidingQuantiles(0.0)
        sketch.observe(edge, 0.0)
        assert sketch.quantiles([0.5], 0.0) == pytest.approx([edge], rel=0.01)
        edge *= 1.02


def test_the_rank_is_the_nearest_one_and_never_between_two_values() -> None:
    sketch = SlidingQuantiles(0.0)
    for value in [1.0] * 99 + [100.0]:
        sketch.observe(value, 0.0)
    assert sketch.quantiles([0.5, 0.99, 1.0], 0.0) == pytest.approx([1.0, 1.0, 100.0], rel=0.01)


def test_an_empty_window_has_no_quantiles() -> None:
    assert all(map(isnan, SlidingQuantiles(0.0).quantiles(FRACTIONS, 0.0)))


@pytest.mark.parametrize(
    ("value", "counted_as"),
    [(0.0, LOWEST), (-1.0, LOWEST), (1e-9, LOWEST), (1e9, HIGHEST), (inf, HIGHEST), (HIGHEST, HIGHEST), (nan, HIGHEST)],
)
def test_values_out_of_range_count_as_its_ends(value: float, counted_as: float) -> None:
    sketch = SlidingQuantiles(0.0)
    sketch.observe(value, 0.0)
    assert sketch.quantiles([0.5], 0.0) == pytest.approx([counted_as], rel=0.02)


def test_a_value_counts_for_the_window_and_no_longer() -> None:
    for begin in (0.0, SLOT_S / 2, SLOT_S - 1e-3):
        sketch = SlidingQuantiles(begin)
        sketch.observe(1.0, begin)
        assert sketch.quantiles([0.5], begin + WINDOW_S - SLOT_S - 1e-3) == pytest.approx([1.0], rel=0.01)
        assert isnan(sketch.quantiles([0.5], begin + WINDOW_S)[0])


def test_a_long_silence_forgets_everything() -> None:
    sketch = SlidingQuantiles(0.0)
    sketch.observe(1.0, 0.0)
    sketch.observe(5.0, 1e9)
    assert sketch.quantiles([0.0, 1.0], 1e9) == pytest.approx([5.0, 5.0], rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 40), st.lists(values_in_range, max_size=5)), max_size=30))
def test_the_window_is_the_last_slots(steps: list[tuple[float, list[float]]]) -> None:
    now = 1000.0
    sketch = SlidingQuantiles(now)
    observed: list[tuple[float, float]] = []
    for pause, values in steps:
        now += pause
        for value in values:
            sketch.observe(value, now)
            observed.append((now, value))
        kept = [value for at, value in observed if now // SLOT_S - at // SLOT_S < SLOTS]
        if kept:
            exact = [nearest_rank(kept, fraction) for fraction in FRACTIONS]
            assert sketch.quantiles(FRACTIONS, now) == pytest.approx(exact, rel=0.01)
        else:
            assert all(map(isnan, sketch.quantiles(FRACTIONS, now)))
