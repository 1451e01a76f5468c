"""A broker process of the tests' own, from its command line to its exit code.

Owns:      starting, stopping and killing it; its log, its HTTP pages, what the system knows of it.
Not here:  clients (e2e_peers.py, e2e_wire.py).
Threads:   one per process, which reads its log to the end, so that a full pipe never stops it.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import psutil
from prometheus_client.parser import text_string_to_metric_families

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near, nor does a Cassandra that starts meanwhile."""

DATABASE = "broker.db"

T = TypeVar("T")


def sqlite_url(directory: Path) -> str:
    """The URL of `DATABASE` in a directory."""
    return f"sqlite:///{directory / DATABASE}"


def serve_command(store: str, *flags: str) -> list[str]:
    """The command line of a broker on free ports of loopback; later flags win."""
    script = str(Path(sys.executable).with_name("trio-broker"))
    listeners = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    return [script, "serve", "--store", store, *listeners, "--log-format", "json", *flags]


def clean_environment() -> dict[str, str]:
    """Ours, without what a developer may have set for brokers of their own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRIO_BROKER_")}


def eventually(ask: Callable[[], T], wanted: T) -> None:
    """Ask until the answer is ``wanted``. To ask is a round trip to the broker: that is all the pause there is."""
    give_up = time.monotonic() + SAFETY_S
    while (answer := ask()) != wanted:
        assert time.monotonic() < give_up, f"still {answer!r} instead of {wanted!r}"


class BrokerProcess:
    """A running broker; it is ready when this is made. Leaving the ``with`` block kills it, if it still runs.

    ``waits``: when this is made it has logged this event, that it waits for its store, and serves its HTTP pages only.
    ``environment``: what it has besides ours.
    """

    def __init__(self, store: str, *flags: str, waits: str = "", environment: Mapping[str, str] | None = None) -> None:
        self.log: list[dict[str, object]] = []
        """What it has logged so far, and the lines that are no JSON as ``{"raw": line}``."""
        self._process = subprocess.Popen(
            serve_command(store, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment() | dict(environment or {}),
        )
        self._ended = False
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="broker-log")
        self._reader.start()
        try:
            if waits:
                self.wait_logged(waits)
                sockets = self.system().net_connections("tcp")
                (pages,) = [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]
                self.metrics_address = f"{pages.ip}:{pages.port}"
            else:
                self.wait_ready()
        except BaseException:
            self.__exit__()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it serves calls."""
        ready = self.wait_logged("ready")
        self.address = str(ready["grpc"])
        self.metrics_address = str(ready["metrics"])

    def wait_logged(self, event: str) -> dict[str, object]:
        """Wait until the broker has logged ``event``; return the line."""

        def found() -> dict[str, object] | None:
            return next((line for line in self.log if line.get("event") == event), None)

        with self._logged:
            self._logged.wait_for(lambda: found() or self._ended, SAFETY_S)
            line = found()
        assert line is not None, f"no {event!r} in its log: {self.log}"
        return line

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait(SAFETY_S)

    def stop(self) -> None:
        """Stop it as an operator does; it has to end well, and without having logged an error."""
        self.terminate()
        assert self.wait() == 0, self.log
        self._reader.join(SAFETY_S)
        assert self.errors() == []

    def errors(self) -> list[dict[str, object]]:
        """The lines of its log that tell of a bug."""
        return [line for line in self.log if line.get("level") in ("error", "critical") or "raw" in line]

    def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP endpoint; return status and body."""
        connection = http.client.HTTPConnection(self.metrics_address, timeout=SAFETY_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """Scrape it and return one sample; 0.0 if there is none."""
        status, page = self.get("/metrics")
        assert status == 200
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def subscribers(self) -> int:
        return int(self.metric("active_subscribers"))

    def system(self) -> psutil.Process:
        """What the operating system knows of it."""
        return psutil.Process(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"raw": line.decode(errors="replace")}
            with self._logged:
                self.log.append(event)
                self._logged.notify_all()
        with self._logged:
            self._ended = True
            self._logged.notify_all()
