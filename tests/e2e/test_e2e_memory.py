"""More than the memory holds is refused with a delay, or cut; the process stays within it, and serves all afterwards.

The loads run here at a size that fits a few seconds; memory_trial.py has them whole, for a container with a limit.
"""

from functools import partial
from pathlib import Path

import pytest
from e2e_broker import BrokerProcess, eventually, sqlite_url
from e2e_memory import (
    Load,
    begin_and_stall,
    everything_is_served,
    fetch_and_stall,
    fill_and_wait,
    neighbour,
    publish_at_once,
    subscribe_and_stall,
)

MEMORY_MAX_BYTES = 128 * 1024 * 1024

LOADS: dict[str, tuple[Load, set[str]]] = {
    "large publishes at once": (partial(publish_at_once, connections=40), {"served", "OVERLOADED"}),
    "subscribers that do not read": (partial(subscribe_and_stall, subjects=60), {"served"}),
    "fetches that nobody reads": (partial(fetch_and_stall, connections=5, calls=20), {"served", "OVERLOADED"}),
    "half-sent bodies": (partial(begin_and_stall, connections=4), {"OVERLOADED"}),
}
"""Each with what its clients are told."""


def most_bytes(pid: int) -> int:
    """The most memory that was ever resident in a process, by the kernel's own count."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


@pytest.mark.parametrize(("load", "told"), LOADS.values(), ids=LOADS)
async def test_load_beyond_the_memory_is_refused(load: Load, told: set[str], tmp_path: Path) -> None:
    with BrokerProcess(sqlite_url(tmp_path), "--memory-max", "128MiB") as broker:
        async with neighbour(broker.address) as small:
            outcomes = await load(broker.address)
        await everything_is_served(broker.address)
        assert set(outcomes) == told
        assert small["served"]
        assert most_bytes(broker.pid) < MEMORY_MAX_BYTES
        broker.stop()


def test_a_broker_that_has_no_room_at_all_is_not_ready(tmp_path: Path) -> None:
    with BrokerProcess(sqlite_url(tmp_path), "--memory-max", "16MiB") as broker:
        eventually(lambda: broker.get("/readyz")[0], 503)
        assert broker.get("/readyz")[1].startswith("memory is short since 1")
        assert broker.get("/healthz")[0] == 200
        broker.stop()


async def test_a_store_in_memory_that_is_full_refuses_until_messages_expire() -> None:
    with BrokerProcess("memory:", "--memory-max", "128MiB") as broker:
        outcomes = await fill_and_wait(broker.address)
        assert set(outcomes) == {"served", "OVERLOADED"}
        assert broker.wait_logged("memory_short")["memory_max"] == "128MiB"
        assert broker.metric("trio_broker_memory_pressure") == 1
        await everything_is_served(broker.address)
        broker.wait_logged("memory_enough")
        assert most_bytes(broker.pid) < MEMORY_MAX_BYTES
        broker.stop()
