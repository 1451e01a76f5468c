"""``trio-broker top``: what a broker is doing now, from its /metrics page.

Owns:      which numbers are shown, and how they are written.
Not here:  asking for the page (trio_broker/cli/pages.py) and reading it (trio_broker/cli/exposition.py).
"""

import math
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import click
import trio

from trio_broker.cli.exposition import Interval, Reading
from trio_broker.cli.options import Parsed
from trio_broker.cli.pages import get, pages_address, pages_options
from trio_broker.cli.running import Failure, run
from trio_broker.cli.standard import write
from trio_broker.notation import TcpAddress, seconds

PATIENCE_S = 5.0
"""For one page."""
CLEAR = "\x1b[H\x1b[2J"


@click.command("top")
@pages_options
@click.option(
    "--interval", type=Parsed("duration", seconds), default="2s", show_default=True, help="Pause between two looks."
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
def command(*, metrics_listen: str | None, file: Path | None, interval: float, count: int | None) -> int:
    """Show what a broker is doing, until Ctrl-C: calls, messages, subscribers, store, process.

    Rates and quantiles are of the time since the look before. On a terminal each look replaces the one before.
    """
    if interval <= 0:
        raise click.UsageError("--interval must be longer than 0s")
    return run(_top, pages_address(metrics_listen, file), interval, count)


async def _top(metrics: TcpAddress, interval_s: float, count: int | None) -> int:
    before = await _look(metrics)
    shown = 0
    while count is None or shown < count:
        await trio.sleep(interval_s)
        after = await _look(metrics)
        screen = "\n".join(lines(metrics, Interval(before, after)))
        await write(f"{CLEAR if sys.stdout.isatty() else ''}{screen}\n".encode())
        before = after
        shown += 1
    return 0


async def _look(metrics: TcpAddress) -> Reading:
    """Fetch the page.

    Raises:
        Failure: nothing answers there, or something that is no broker.
    """
    page = await trio.to_thread.run_sync(get, metrics, "/metrics", PATIENCE_S, abandon_on_cancel=True)
    if page.status != HTTPStatus.OK:
        raise Failure(page.refusal)
    try:
        reading = Reading.parse(time.monotonic(), page.text)
    except ValueError as error:
        raise Failure(f"http://{metrics}/metrics is no page of metrics: {error}") from error
    if not reading.samples("method_count"):
        raise Failure(f"http://{metrics}/metrics is not a broker's page; see --metrics-listen of the broker")
    return reading


def lines(metrics: TcpAddress, interval: Interval) -> Iterator[str]:
    """Return the screen for one interval."""
    now = interval.after
    build = next(iter(now.samples("trio_broker_build_info")), None)
    labels = build.labels if build else {}
    up_s = time.time() - now.least("process_start_time_seconds")
    workers = (
        f"{_number(now.total('trio_broker_workers_ready'))} of {_number(now.total('trio_broker_workers'))} workers"
    )
    several = f"  {workers}" if now.total("trio_broker_workers") > 1 else ""
    yield f"trio-broker {labels.get('version', '?')} at {metrics}  {_state(now)}{several}  up {_duration(up_s)}"
    yield ""
    yield from _calls(interval)
    yield ""
    yield from _messages(interval)
    yield from _store(interval, labels.get("store", "store"))
    yield from _process(interval)


def _state(now: Reading) -> str:
    if now.least("trio_broker_draining") == 1:
        return "DRAINING"
    if now.most("trio_broker_store_up") == 0:
        return "STORE AWAY"
    if now.most("trio_broker_memory_pressure") == 1:
        return "UNDER MEMORY PRESSURE"
    return "ready" if now.most("trio_broker_ready") == 1 else "NOT READY"


def _calls(interval: Interval) -> Iterator[str]:
    yield f"{'method':<22}{'calls/s':>10}{'errors/s':>10}{'p50':>10}{'p95':>10}{'p99':>10}"
    now = interval.after
    for method in now.labels("method_count", "method"):
        if not now.total("method_count", method=method):
            continue
        rate = interval.rate("method_count", method=method)
        failed = _errors(interval, "trio_broker_rpc_errors_total", method=method)
        quantiles = [now.most("method_duration", method=method, quantile=each) for each in ("0.5", "0.95", "0.99")]
        columns = "".join(f"{_seconds(value):>10}" for value in quantiles)
        yield f"{method:<22}{_number(rate):>10}{_number(failed):>10}{columns}"
    reasons = {
        (method, reason): interval.rate("trio_broker_rpc_errors_total", method=method, reason=reason)
        for method in now.labels("trio_broker_rpc_errors_total", "method")
        for reason in now.labels("trio_broker_rpc_errors_total", "reason")
    }
    for (method, reason), rate in reasons.items():
        if rate > 0:
            yield f"  {method} {reason} {_number(rate)}/s"


def _messages(interval: Interval) -> Iterator[str]:
    now = interval.after
    published, delivered, expired = (
        _number(interval.rate(f"trio_broker_messages_{done}_total")) for done in ("published", "delivered", "expired")
    )
    lag = _quantiles(interval, "trio_broker_delivery_lag_seconds")
    yield f"messages     {published}/s published, {delivered}/s delivered, {expired}/s expired; lag {lag}"
    cut = _number(now.total("trio_broker_slow_consumers_total"))
    fullest = _percent(now.most("trio_broker_subscriber_buffer_fill_ratio"))
    waiting = _number(now.total("trio_broker_subscriber_buffer_messages"))
    subscribers = _number(now.total("active_subscribers"))
    yield f"subscribers  {subscribers}; {waiting} messages wait, the fullest buffer is at {fullest}; {cut} cut so far"


def _store(interval: Interval, kind: str) -> Iterator[str]:
    now = interval.after
    flushes = _number(interval.rate("trio_broker_flush_seconds_count"))
    messages = _number(interval.mean("trio_broker_flush_messages"))
    queue, limit = (_number(now.total(f"trio_broker_publish_queue_{of}messages")) for of in ("", "limit_"))
    errors = _number(_errors(interval, "trio_broker_store_errors_total"))
    took = _quantiles(interval, "trio_broker_flush_seconds")
    yield f"store        {kind}: {flushes} flushes/s of {messages} messages, {took}; {errors} errors/s"
    behind = _duration(now.most("trio_broker_sweep_behind_seconds"))
    heard = {0.0: "not heard", 1.0: "heard"}.get(now.least("trio_broker_listen_connected"), "none")
    yield f"             queue {queue} of {limit}; sweep {behind} behind; wake-ups {heard}"


def _process(interval: Interval) -> Iterator[str]:
    now = interval.after
    cpu, cpus = interval.rate("process_cpu_seconds_total"), now.most("trio_broker_cpu_limit")
    resident, memory = (now.total(name) for name in ("process_resident_memory_bytes", "trio_broker_memory_limit_bytes"))
    lag = _quantiles(interval, "trio_broker_scheduler_lag_seconds")
    connections, tasks, threads, files = (
        _number(now.total(name))
        for name in (
            "trio_broker_connections",
            "trio_broker_trio_tasks",
            "trio_broker_process_threads",
            "process_open_fds",
        )
    )
    used = f"{_bytes(resident)} of {_bytes(memory)}"
    yield f"process      CPU {cpu:.2f} of {_number(cpus)}, memory {used}; scheduler lag {lag}"
    yield f"             {connections} connections, {tasks} tasks, {threads} threads, {files} descriptors"


def _errors(interval: Interval, name: str, **labels: str) -> float:
    rate = interval.rate(name, **labels)
    return 0.0 if math.isnan(rate) else rate  # of what never failed the page says nothing


def _quantiles(interval: Interval, histogram: str) -> str:
    return " ".join(f"p{q:.0f} {_seconds(interval.quantile(q / 100, histogram))}" for q in (50, 99))


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def _percent(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.0%}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _duration(value: float) -> str:
    if math.isnan(value):
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} s"


def _bytes(value: float) -> str:
    if math.isnan(value):
        return "-"
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1024:.0f} KiB"
