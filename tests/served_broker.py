"""``trio-broker serve`` in a process of its own, on a store in memory, for tests of other commands."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

COMMAND = [sys.executable, "-m", "trio_broker"]
SAFETY_S = 30


@contextmanager
def serving(*settings: str) -> Iterator[str]:
    """Run one, with these settings, for the length of the block, which gets its address; it has to end well."""
    listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    command = [*COMMAND, "serve", "--store", "memory:", *listen, "--log-format", "json", *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as broker:
        assert broker.stdout is not None
        yield next(found["grpc"] for line in broker.stdout if "grpc" in (found := json.loads(line)))
        broker.terminate()
        broker.communicate(timeout=SAFETY_S)
        assert broker.returncode == 0
