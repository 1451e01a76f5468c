"""A broker's process from inside: what it hears while it starts and stops. From outside: tests/e2e."""

import gc
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from persistence import SchemaNotReady, StoreUnavailable
from trio_broker import serve as serve_module
from trio_broker.config import Config
from trio_broker.front import Alone
from trio_broker.line_budget import LineBudget
from trio_broker.serve import REMIND_S, _Process, _Stopping, serve


@pytest.fixture
def _usual_collector() -> Iterator[None]:
    """Undo what `serve` sets for a process of its own."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("_usual_collector")
async def test_signals_are_heard_until_the_traces_are_sent(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, described, ended, finish = (trio.Event() for _ in range(4))
    exit_codes: list[int] = []

    @asynccontextmanager
    async def slow_to_close(_config: Config) -> AsyncGenerator[None]:
        yield
        closing.set()
        await finish.wait()

    def describe() -> str:
        described.set()
        return "all its tasks"

    def leave(code: int) -> None:
        exit_codes.append(code)
        ended.set()

    monkeypatch.setattr(serve_module, "_tracing", slow_to_close)
    monkeypatch.setattr(serve_module, "describe_process", describe)
    monkeypatch.setattr(os, "_exit", leave)
    config = Config(store="memory:", listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")
    await nursery.start(serve, config, LineBudget())
    signal.raise_signal(signal.SIGTERM)
    await closing.wait()
    signal.raise_signal(signal.SIGUSR1)
    await described.wait()
    signal.raise_signal(signal.SIGTERM)
    await ended.wait()
    assert exit_codes == [1]
    finish.set()


@pytest.mark.parametrize(("kind", "event"), [(StoreUnavailable, "store_away"), (SchemaNotReady, "schema_awaited")])
async def test_a_store_that_stays_away_is_told_of_every_minute(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, kind: type[Exception], event: str
) -> None:
    @asynccontextmanager
    async def away(*_: object) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        raise kind("no route to host")
        yield

    monkeypatch.setattr(serve_module, "configured_store", away)
    config = Config(store="memory:")
    process = _Process(config, LineBudget(), None, _Stopping(), Alone(config))
    async with AsyncExitStack() as opened:
        with capture_logs() as logs, trio.move_on_after(2.5 * REMIND_S):
            await process._open_store(opened)
    assert [(line["event"], line["why"]) for line in logs] == [(event, "no route to host")] * 3
    assert [line["away_s"] for line in logs] == pytest.approx([0, REMIND_S, 2 * REMIND_S])
