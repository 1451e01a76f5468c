"""A broker whose database fails: what is promised whichever database it is.

Owns:      the scenarios, from the first message to the broker's exit code.
Not here:  databases, and how they are made to fail (the tests).
"""

import time
from collections.abc import Callable

from e2e_broker import BrokerProcess, eventually
from e2e_journal import Journal, check_whole, publish_through
from e2e_peers import PEERS
from e2e_wire import Wire

ACKNOWLEDGED = 1_000
"""In each round; the fault happens when about half of them are."""
BACK_S = 10
"""How soon a broker is ready again after its database is."""
GRACE_S = 2
SLACK_S = 1

AIO = PEERS["grpcio.aio"]


def fail_again_and_again(url: str, fail: Callable[[], None], rounds: int) -> None:
    """Let the database fail under load; ``fail`` returns when it is back. Nothing acknowledged is lost."""
    journal = Journal()
    back_at = 0.0

    def happen() -> None:
        nonlocal back_at
        fail()
        back_at = time.monotonic()

    with BrokerProcess(url, "--store-grace", "0s") as broker:
        for _ in range(rounds):
            AIO.run(publish_through, [broker.address], journal, ACKNOWLEDGED, happen)
            eventually(lambda: broker.get("/readyz")[0], 200)
            assert time.monotonic() - back_at < BACK_S
        AIO.run(check_whole, broker.address, journal)
        broker.stop()


def hold_nobody_up(url: str, hold: Callable[[], None]) -> None:
    """Let the database say nothing any more: calls end by their deadlines, and the broker within the grace period."""
    with BrokerProcess(url, "--grace", f"{GRACE_S}s") as broker, Wire(broker.address) as wire:
        assert wire.published(wire.publish("orders", b"kept", keep=True)) == 1
        hold()
        for begin in (
            lambda: wire.publish("orders", b"held", keep=True, timeout="1S"),
            lambda: wire.publish("orders", b"queued", keep=True, timeout="1S"),
            lambda: wire.fetch("orders", 1, timeout="1S"),
        ):
            began = time.monotonic()
            assert wire.failed(begin()).code == "DEADLINE_EXCEEDED"
            assert time.monotonic() - began < 1 + SLACK_S
        stop_in_time(broker)


def stop_in_time(broker: BrokerProcess) -> None:
    """Stop a broker of `GRACE_S` whose database says nothing."""
    began = time.monotonic()
    broker.terminate()
    assert broker.wait() == 0
    assert time.monotonic() - began < GRACE_S + SLACK_S
