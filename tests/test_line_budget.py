"""What a client that fails for ever may cost: some lines a minute, and one that says how many more there were."""

import io
import json
import logging

import pytest
import structlog
import trio
from trio.testing import MockClock

from trio_broker.line_budget import CONNECTION_LINES, KINDS_MAX, LINES, PERIOD_S, LineBudget
from trio_broker.logs import configure_logging

log = structlog.get_logger("trio_broker.x")


@pytest.fixture
def budget(log_stream: io.StringIO) -> LineBudget:
    return configure_logging("json", "debug", log_stream)


def written(log_stream: io.StringIO) -> list[dict[str, object]]:
    """The lines since the last call, without what is the same in all of them."""
    lines = [json.loads(line) for line in log_stream.getvalue().splitlines()]
    log_stream.seek(0)
    log_stream.truncate()
    return [{name: value for name, value in line.items() if name not in ("timestamp", "logger")} for line in lines]


def test_the_first_lines_of_a_kind_are_written_and_then_how_many_were_left_out(
    budget: LineBudget, log_stream: io.StringIO
) -> None:
    for number in range(LINES + 7):
        log.warning("call_failed", method="Publish", reason="OVERLOADED", number=number)
    assert [line["number"] for line in written(log_stream)] == list(range(LINES))
    budget.renew()
    assert written(log_stream) == [
        {
            "event": "lines_left_out",
            "level": "warning",
            "of": "call_failed",
            "method": "Publish",
            "reason": "OVERLOADED",
            "lines": 7,
        }
    ]
    budget.renew()
    assert written(log_stream) == []
    log.warning("call_failed", method="Publish", reason="OVERLOADED", number=0)
    assert len(written(log_stream)) == 1


async def test_it_is_renewed_every_minute(
    budget: LineBudget, log_stream: io.StringIO, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.keep_renewing)
        for _ in range(3):
            for _ in range(LINES + 2):
                log.info("ping")
            await trio.sleep(PERIOD_S)
            await trio.testing.wait_all_tasks_blocked()
            assert [line["event"] for line in written(log_stream)] == ["ping"] * LINES + ["lines_left_out"]
        nursery.cancel_scope.cancel()


def test_kinds_do_not_take_lines_from_each_other(budget: LineBudget, log_stream: io.StringIO) -> None:
    for _ in range(LINES):
        log.info("call_failed", method="Publish", reason="INVALID_SUBJECT")
        log.info("call_failed", method="Fetch", reason="INVALID_SUBJECT")
        log.info("call_failed", method="Publish", reason="MALFORMED")
        log.warning("call_failed", method="Publish", reason="INVALID_SUBJECT")
        log.info("stopped")
    assert len(written(log_stream)) == 5 * LINES
    budget.renew()
    assert written(log_stream) == []


def test_as_many_left_out_lines_are_told_of_as_there_are_kinds(budget: LineBudget, log_stream: io.StringIO) -> None:
    kinds = 3 * LINES
    for number in range(kinds * (LINES + 1)):
        event = f"event_{number % kinds}"
        log.info(event)
    written(log_stream)
    budget.renew()
    assert len(written(log_stream)) == kinds


def test_lines_of_logging_are_the_same_if_their_template_is(budget: LineBudget, log_stream: io.StringIO) -> None:
    for number in range(LINES + 2):
        logging.getLogger("persistence.x").warning("hint_failed why=%s", number)
    assert len(written(log_stream)) == LINES
    budget.renew()
    (told,) = written(log_stream)
    assert (told["of"], told["lines"]) == ("hint_failed why=%s", 2)


def test_debug_lines_are_all_written(budget: LineBudget, log_stream: io.StringIO) -> None:
    for _ in range(LINES * 2):
        log.debug("connection_opened")
    assert len(written(log_stream)) == LINES * 2


def test_kinds_beyond_the_bound_share_one_budget(budget: LineBudget, log_stream: io.StringIO) -> None:
    for number in range(KINDS_MAX + LINES + 5):
        event = f"event_{number}"
        log.info(event)
    assert len(written(log_stream)) == KINDS_MAX + LINES
    budget.renew()
    (told,) = written(log_stream)
    assert (told["of"], told["lines"]) == ("others", 5)


def test_who_only_knocks_cannot_fill_the_debug_log(budget: LineBudget, log_stream: io.StringIO) -> None:
    transport = logging.getLogger("trio_broker.rpc.transport")
    for number in range(CONNECTION_LINES + 3):
        transport.debug("connection_closed peer=%s why=%s", number, "TLS failed")
    assert len(written(log_stream)) == CONNECTION_LINES
    budget.renew()
    (left_out,) = written(log_stream)
    assert (left_out["event"], left_out["lines"]) == ("lines_left_out", 3)
