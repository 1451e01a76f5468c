"""A Prometheus of the tests' own, from the machine's packages (Debian: ``prometheus``, which has promtool too).

Owns:      its configuration, its data directory, its port; questions to it.
Not here:  what is scraped (e2e/e2e_broker.py), what is asked (grafana_boards.py).
Threads:   one per running server, which reads its log to the end; every method blocks.
"""

import json
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode
from urllib.request import urlopen

SAFETY_S = 30
"""What hangs fails after this long; nothing that works comes near."""
JOB = "trio-broker"
INTERVAL_S = 1
"""Between two scrapes, and between two evaluations of the rules."""

MISSING = "Prometheus is not installed (Debian: prometheus)"

_READY = "Server is ready to receive web requests"
_LISTENING = re.compile(r'msg="Listening on" address=(\S+)')


def promtool(*arguments: str | Path) -> None:
    """Run promtool, which has to succeed."""
    done = subprocess.run(
        ["promtool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def is_there() -> bool:
    """Say whether this machine has it, with promtool."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


class Series(NamedTuple):
    """One series of an answer: its labels, and its values by Unix time."""

    labels: Mapping[str, str]
    values: Sequence[tuple[float, float]]


class PrometheusServer:
    """A running server that scrapes ``targets`` (``host:port``) every `INTERVAL_S`, in the job `JOB`.

    Args:
        directory: where it keeps everything; made by the caller, who removes it.
        targets: what it scrapes; a name for each.
        rules: files of rules, evaluated as often.
    """

    def __init__(self, directory: Path, targets: Mapping[str, str], rules: Sequence[Path] = ()) -> None:
        self.log: deque[str] = deque(maxlen=1000)
        self._directory = directory
        every = f"{INTERVAL_S}s"
        scraped = [{"targets": [address], "labels": {"instance": name}} for name, address in targets.items()]
        configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": scraped}],
        }
        (directory / "prometheus.json").write_text(json.dumps(configuration))  # which is YAML, too

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._directory / 'prometheus.json'}",
                f"--storage.tsdb.path={self._directory / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._address = ""
        self._ready = self._ended = False
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="prometheus-log")
        self._reader.start()
        with self._logged:
            self._logged.wait_for(lambda: self._ready or self._ended, SAFETY_S)
        if not self._ready:
            self.__exit__()
            raise AssertionError(f"it did not start: {[*self.log]}")
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._process.kill()  # what it has on disk nobody reads
        self._process.wait()
        self._reader.join()

    def ask(self, expr: str) -> list[Series]:
        """Return what an expression is now."""
        found = self._get("query", query=expr)["result"]
        return [Series(each["metric"], [_point(each["value"])]) for each in found]

    def ask_over(self, expr: str, start: float, end: float, step_s: float = INTERVAL_S) -> list[Series]:
        """Return what an expression was from a Unix time to another."""
        found = self._get("query_range", query=expr, start=start, end=end, step=step_s)["result"]
        return [Series(each["metric"], [_point(value) for value in each["values"]]) for each in found]

    def scrapes(self, name: str) -> int:
        """How often a target was scraped well so far."""
        found = self.ask(f'sum_over_time(up{{instance="{name}"}}[1h])')
        return int(found[0].values[0][1]) if found else 0

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, and how its last evaluation went."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, page: str, **query: object) -> Any:
        with urlopen(f"http://{self._address}/api/v1/{page}?{urlencode(query)}", timeout=SAFETY_S) as response:
            return json.load(response)["data"]

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            for line in log:
                with self._logged:
                    self.log.append(line.rstrip())
                    if found := _LISTENING.search(line):
                        self._address = found[1]
                    self._ready = self._ready or _READY in line
                    self._logged.notify_all()
        with self._logged:
            self._ended = True
            self._logged.notify_all()


def _point(pair: tuple[float, str]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
