"""``trio-broker top`` on pages of a test's own: its arithmetic, its screen, and what is no broker."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from trio_broker.cli.exposition import Interval, Reading, quantile_of
from trio_broker.cli.main import run_command_line
from trio_broker.cli.top import lines

PAGE = """\
method_count{{method="Publish",status="OK"}} {ok}
method_count{{method="Publish",status="UNAVAILABLE"}} 3
method_duration{{method="Publish",quantile="0.5"}} 0.00125
method_duration{{method="Publish",quantile="0.95"}} NaN
method_count{{method="Fetch",status="OK"}} 0
# TYPE trio_broker_flush_seconds histogram
trio_broker_flush_seconds_bucket{{le="0.001"}} 1
trio_broker_flush_seconds_bucket{{le="0.01"}} {slow}
trio_broker_flush_seconds_bucket{{le="+Inf"}} {slow}
trio_broker_flush_seconds_sum {slow}
trio_broker_flush_seconds_count {slow}
# TYPE trio_broker_rpc_errors counter
trio_broker_rpc_errors_total{{method="Publish",reason="OVERLOADED"}} {slow}
trio_broker_rpc_errors_total{{method="Publish",reason="DRAINING"}} 7
"""


def interval(seconds: float = 2.0) -> Interval:
    return Interval(
        Reading.parse(10.0, PAGE.format(ok=100, slow=1)), Reading.parse(10.0 + seconds, PAGE.format(ok=2100, slow=201))
    )


@contextmanager
def serving(status: int, page: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_rates_and_quantiles_are_of_the_time_between_two_pages() -> None:
    between = interval()
    assert between.rate("method_count", method="Publish") == 1000
    assert between.rate("method_count", method="Publish", status="UNAVAILABLE") == 0
    assert math.isnan(between.rate("no_such_family"))
    assert between.mean("trio_broker_flush_seconds") == 1
    assert between.quantile(0.5, "trio_broker_flush_seconds") == pytest.approx(0.0055)
    assert math.isnan(between.quantile(0.5, "no_such_family"))


def test_a_counter_that_went_back_has_no_rate() -> None:
    between = interval()
    assert math.isnan(Interval(between.after, between.before).rate("method_count", method="Publish"))


@pytest.mark.parametrize(
    ("fraction", "cumulated", "expected"),
    [
        (0.5, [0, 10, 10], 1.5),
        (0.25, [4, 8, 8], 0.5),
        (1.0, [4, 8, 8], 2.0),
        (0.99, [0, 0, 5], 2.0),  # beyond the last bound there is: no more is known
        (0.0, [4, 8, 8], 0.0),
        (0.5, [0, 0, 0], math.nan),
        (0.5, [math.nan] * 3, math.nan),
        (0.5, [], math.nan),
    ],
)
def test_a_quantile_is_interpolated(fraction: float, cumulated: list[float], expected: float) -> None:
    assert quantile_of(fraction, [1.0, 2.0, math.inf], cumulated) == pytest.approx(expected, nan_ok=True)


def test_the_screen_has_what_is_known_and_a_dash_for_the_rest() -> None:
    screen = list(lines("127.0.0.1:9464", interval()))
    (publish,) = [line for line in screen if line.startswith("Publish")]
    assert publish.split() == ["Publish", "1,000", "100", "1.25", "ms", "-", "-"]
    assert not [line for line in screen if line.startswith("Fetch")]
    assert "  Publish OVERLOADED 100/s" in screen
    assert not [line for line in screen if "DRAINING" in line]
    assert any("-/s published" in line for line in screen)


def test_what_is_no_broker_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def top(metrics: str) -> tuple[int, str]:
        code = run_command_line(["top", "--metrics", metrics, "--count", "1"])
        return code, capsys.readouterr().err

    with serving(200, "another_metric 1\n") as other:
        assert top(other) == (
            1,
            f"trio-broker: http://{other}/metrics is not a broker's page; see --metrics-listen of the broker\n",
        )
    with serving(200, "<html>") as site:
        code, text = top(site)
        assert (code, text.startswith(f"trio-broker: http://{site}/metrics is no page of metrics:")) == (1, True)
    with serving(404, "") as wrong:
        assert top(wrong) == (1, f"trio-broker: http://{wrong}/metrics answers 404 Not Found\n")
    code, text = top("127.0.0.1:1")
    assert (code, text) == (
        4,
        "trio-broker: http://127.0.0.1:1/metrics does not answer: [Errno 111] Connection refused\n",
    )
    assert top("unix:/tmp/x")[0] == 2
