"""``trio-broker top`` on pages of a test's own: its arithmetic, its screen, and what is no broker."""

import math

import pytest
from test_cli_health import answering

from trio_broker.cli.exposition import Interval, Reading, quantile_of
from trio_broker.cli.main import run_command_line
from trio_broker.cli.top import lines
from trio_broker.notation import TcpAddress

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
    screen = list(lines(TcpAddress("127.0.0.1", 9464), interval()))
    (publish,) = [line for line in screen if line.startswith("Publish")]
    assert publish.split() == ["Publish", "1,000", "100", "1.25", "ms", "-", "-"]
    assert not [line for line in screen if line.startswith("Fetch")]
    assert "  Publish OVERLOADED 100/s" in screen
    assert not [line for line in screen if "DRAINING" in line]
    assert any("-/s published" in line for line in screen)


def test_what_is_no_broker_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def top(metrics: str) -> tuple[int, str]:
        code = run_command_line(["top", "--metrics-listen", metrics, "--count", "1"])
        return code, capsys.readouterr().err

    with answering(200, b"another_metric 1\n") as other:
        assert top(other) == (
            1,
            f"trio-broker: http://{other}/metrics is not a broker's page; see --metrics-listen of the broker\n",
        )
    with answering(200, b"<html>") as site:
        code, text = top(site)
        assert (code, text.startswith(f"trio-broker: http://{site}/metrics is no page of metrics:")) == (1, True)
    with answering(404, b"") as wrong:
        assert top(wrong) == (1, f"trio-broker: http://{wrong}/metrics answers 404 Not Found\n")
    code, text = top("127.0.0.1:1")
    assert (code, text) == (4, "trio-broker: cannot ask the broker on 127.0.0.1:1: Connection refused\n")
    assert top("unix:/tmp/x")[0] == 2


def test_the_broker_itself_is_asked_whatever_proxy_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with answering(200, b"another_metric 1\n") as other:
        run_command_line(["top", "--metrics-listen", other, "--count", "1"])
    assert "is not a broker's page" in capsys.readouterr().err


WORKERS = """\
trio_broker_workers 2
trio_broker_workers_ready 1
method_count{worker="0",method="Publish",status="OK"} 100
method_count{worker="1",method="Publish",status="OK"} 200
method_duration{worker="0",method="Publish",quantile="0.5"} NaN
method_duration{worker="1",method="Publish",quantile="0.5"} 0.004
active_subscribers{worker="0"} 3
active_subscribers{worker="1"} 4
trio_broker_ready{worker="0"} 1
trio_broker_ready{worker="1"} 0
trio_broker_draining{worker="0"} 0
trio_broker_draining{worker="1"} 1
trio_broker_listen_connected{worker="0"} 1
trio_broker_listen_connected{worker="1"} 0
"""


def test_of_workers_it_shows_the_sum_or_the_worst_whichever_makes_sense() -> None:
    screen = list(lines(TcpAddress("127.0.0.1", 9464), Interval(*(Reading.parse(at, WORKERS) for at in (1.0, 2.0)))))
    assert "  ready  1 of 2 workers  up" in screen[0]
    (publish,) = [line for line in screen if line.startswith("Publish")]
    assert publish.split()[3:5] == ["4", "ms"]
    assert any(line.startswith("subscribers  7;") for line in screen)
    assert any(line.endswith("wake-ups not heard") for line in screen)
