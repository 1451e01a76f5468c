"""A broker's /metrics page as numbers: what it says now, and what happened between two looks at it.

Owns:      `Reading`, `Interval`.
Not here:  which families there are (docs/METRICS.md), how they are shown (trio_broker/cli/top.py).
"""

import math
from collections.abc import Sequence
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Reading:
    """All samples of one page."""

    def __init__(self, at: float, samples: dict[str, list[Sample]]) -> None:
        self.at = at
        """When it was taken: seconds of a clock that never goes back."""
        self._samples = samples

    @classmethod
    def parse(cls, at: float, page: str) -> Self:
        """Read a page in the text format.

        Raises:
            ValueError: it is something else.
        """
        samples: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
        return cls(at, samples)

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Return the samples of a name that have these labels, in the order of the page."""
        return [sample for sample in self._samples.get(name, ()) if labels.items() <= sample.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of those samples; NaN if there are none."""
        found = self.samples(name, **labels)
        return math.fsum(sample.value for sample in found) if found else math.nan

    def most(self, name: str, **labels: str) -> float:
        """Return the largest of those samples: that of one worker, where there are several. NaN if there are none."""
        return max((sample.value for sample in self.samples(name, **labels)), key=_nan_is_least, default=math.nan)

    def least(self, name: str, **labels: str) -> float:
        """Return the smallest of those samples; NaN if there are none."""
        return min((sample.value for sample in self.samples(name, **labels)), default=math.nan)

    def labels(self, name: str, label: str) -> list[str]:
        """Return which values a label has, in the order of the page."""
        return list(dict.fromkeys(sample.labels[label] for sample in self.samples(name) if label in sample.labels))


class Interval:
    """What happened from one reading to the next. NaN: nothing of the kind is known."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.before = before
        self.after = after
        self._seconds = after.at - before.at

    def rate(self, name: str, **labels: str) -> float:
        """Return by how much a counter grew in a second; NaN if it went back, as it does when a broker restarts."""
        after, before = self.after.total(name, **labels), self.before.total(name, **labels)
        grown = after - (0.0 if math.isnan(before) else before)
        return grown / self._seconds if grown >= 0 and self._seconds > 0 else math.nan

    def mean(self, histogram: str, **labels: str) -> float:
        """Return the mean of what a histogram or summary was given."""
        return _ratio(self.rate(f"{histogram}_sum", **labels), self.rate(f"{histogram}_count", **labels))

    def quantile(self, fraction: float, histogram: str, **labels: str) -> float:
        """Return a quantile of what a histogram was given, interpolated within its bucket as PromQL does."""
        name = f"{histogram}_bucket"
        bounds = {float(bound): bound for bound in self.after.labels(name, "le")}
        counts = [self.rate(name, le=bounds[bound], **labels) for bound in sorted(bounds)]
        return quantile_of(fraction, sorted(bounds), counts)


def quantile_of(fraction: float, bounds: Sequence[float], cumulated: Sequence[float]) -> float:
    """Return a quantile from how many values are at most each bound, the last of which is infinite."""
    if not cumulated or not cumulated[-1] > 0:
        return math.nan
    rank = fraction * cumulated[-1]
    place = next(place for place, count in enumerate(cumulated) if count >= rank)
    below, low = (cumulated[place - 1], bounds[place - 1]) if place else (0.0, 0.0)
    high = bounds[place]
    if math.isinf(high):
        return low
    return low + (high - low) * _ratio(rank - below, cumulated[place] - below)


def _nan_is_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
