"""PromQL over the instances that were chosen: rates and histograms are summed over them, gauges are shown for each.

An instance may be several worker processes with series of their own: a gauge says of them what its question is about,
their sum (`each`), or the worst (`most` and `least`).
"""

from collections.abc import Sequence
from typing import Final

from boards.panels import Query

CHOSEN: Final = 'job=~"$job",instance=~"$instance"'
PUBLISH_AND_FETCH: Final = 'method=~"Publish|Fetch"'
OUR_FAULT: Final = ['reason=~"INTERNAL|OUTCOME_UNKNOWN|OVERLOADED|STORAGE_FULL|STORAGE_UNAVAILABLE"']
"""What the alert TrioBrokerErrorRatio counts."""
CLIENTS_FAULT: Final = [
    (
        'reason=~"INVALID_BATCH|INVALID_EXPIRATION|INVALID_HEADERS|INVALID_KEY|INVALID_PAGE|INVALID_POSITION|INVALID_SUBJECT|MALFORMED|'
        'MESSAGE_TOO_LARGE|REJECTED"'
    ),
    'method="unknown"',
]
"""Not INVALID_ID and EXPIRED_ID: a client that asks for what is not there yet, or no longer, does nothing wrong."""


def gauge(name: str, match: str = "") -> str:
    """Return the series of the chosen instances."""
    return f"{name}{{{','.join(filter(None, [CHOSEN, match]))}}}"


def rate(name: str, by: str = "", *matches: str) -> str:
    """Return what a counter grew by in a second, over the chosen instances; of series that match any of ``matches``."""
    rates = " or ".join(f"rate({gauge(name, match)}[$__rate_interval])" for match in matches or [""])
    return f"sum{by and f' by ({by})'} ({rates})"


def mean(name: str, by: str = "") -> str:
    """Return the mean of what a histogram was given."""
    return f"{rate(f'{name}_sum', by)} / {rate(f'{name}_count', by)}"


def quantile(fraction: float, name: str, by: str = "", match: str = "") -> str:
    """Return a quantile of a histogram, over the chosen instances."""
    return f"histogram_quantile({fraction}, {rate(f'{name}_bucket', ','.join(filter(None, [by, 'le'])), match)})"


def each(name: str, legend: str = "{{instance}}", match: str = "", by: str = "") -> Query:
    """Return a gauge, a line for each instance: what its workers have together. ``by``: more labels to tell apart."""
    return Query(of_instance("sum", gauge(name, match), by), legend)


def most(name: str, legend: str = "{{instance}}", match: str = "", by: str = "") -> Query:
    """Return the same, of the worker that has most."""
    return Query(of_instance("max", gauge(name, match), by), legend)


def least(name: str, legend: str = "{{instance}}") -> Query:
    """Return the same, of the worker that has least."""
    return Query(of_instance("min", gauge(name)), legend)


def of_instance(fold: str, expr: str, by: str = "") -> str:
    """Return one value for each instance, of those of its workers."""
    return f"{fold} by ({','.join(filter(None, ['instance', by]))}) ({expr})"


def quantiles(name: str, match: str = "") -> Sequence[Query]:
    """Return the usual three."""
    return [Query(quantile(part, name, match=match), f"p{part:.0%}".rstrip("%")) for part in (0.5, 0.95, 0.99)]


def part_of_calls(failed: Sequence[str], by: str = "", among: str = "") -> str:
    """Return the part of the calls whose error matches any of ``failed``; nothing where nobody calls."""
    those = rate("trio_broker_rpc_errors_total", by, *(",".join(filter(None, [among, match])) for match in failed))
    calls = rate("method_count", by, among)
    return f"({those} or 0 * {calls}) / ({calls} > 0)"
