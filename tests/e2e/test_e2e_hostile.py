"""Ten hostile connections do their worst: an ordinary client's publishes succeed, and memory stays bounded."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from e2e_broker import SAFETY_S, BrokerProcess

from trio_broker._proto import broker_pb2 as pb

ROOT = Path(__file__).parents[2]
PUBLISHES = 300
MEMORY_MAX_BYTES = 256 * 2**20


@contextmanager
def hostile(address: str) -> Iterator[None]:
    """Have them for the length of the block, in a process of their own: see benchmarks/hostile_peers.py."""
    command = [sys.executable, "-m", "benchmarks.hostile_peers", address]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "attacking\n"
            yield
            assert process.poll() is None
        finally:
            process.terminate()


def test_an_ordinary_client_publishes_beside_ten_hostile_ones() -> None:
    flags = ("--memory-max", f"{MEMORY_MAX_BYTES}B", "--log-level", "debug")
    with BrokerProcess("memory:", *flags) as broker, grpc.insecure_channel(broker.address) as channel:
        publish = channel.unary_unary(
            "/broker.Broker/Publish", pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString
        )
        most = 0
        with hostile(broker.address):
            for number in range(1, PUBLISHES + 1):
                request = pb.PublishRequest(subject="orders", body=b"hello", expirationSeconds=60)
                assert publish(request, timeout=SAFETY_S).id == number
                if number % 20 == 0:
                    most = max(most, broker.system().memory_info().rss)
        assert most < MEMORY_MAX_BYTES
        assert publish(request, timeout=SAFETY_S).id == PUBLISHES + 1
        ends = {str(line["why"]).partition(":")[0] for line in broker.log if line.get("event") == "connection_closed"}
        assert "GOAWAY ENHANCE_YOUR_CALM" in ends, ends
        assert not [line for line in broker.log if line.get("level") in ("error", "critical") or "raw" in line]
        broker.stop()
