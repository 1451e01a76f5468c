"""``trio-broker top`` beside a broker on each store."""

import subprocess
import sys

from e2e_broker import SAFETY_S, BrokerProcess, clean_environment


def test_what_a_broker_does_is_shown(broker: BrokerProcess) -> None:
    metrics = broker.metrics_address
    top = subprocess.run(
        [sys.executable, "-m", "trio_broker", *f"top --interval 100ms --count 2 --metrics-listen {metrics}".split()],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=SAFETY_S,
        check=True,
    )
    first, second = top.stdout.split("trio-broker ")[1:]
    assert "  ready  up " in first
    assert " connections, " in second
    assert " - of" not in second, "the families that it shows are there"
