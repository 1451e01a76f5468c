"""The stack that the compose files describe: read as Docker Compose reads it, and run by podman.

Owns:      `read_project` and `Stack`.
Not here:  images and containers as such (e2e_containers.py).
Threads:   any; every method blocks.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest
from e2e_containers import IMAGE, ROOT, await_healthy, have_image, podman, run, stand_in_postgres, stand_in_prometheus

DOCKER = ROOT / "docker"
BASE = DOCKER / "compose.yaml"
_numbers = count(1)

STAND_INS: dict[str, Callable[[str], None]] = {"postgres": stand_in_postgres, "prometheus": stand_in_prometheus}
"""By service; the services of other official images are tried where a registry can be reached."""


@cache
def go_program(name: str) -> Path:
    """Build the Go program in the folder of tests/ of that name; `go build` does nothing where nothing changed."""
    if shutil.which("go") is None:
        pytest.fail("Go is not installed: compose files and Envoy's configuration are read by Go libraries")
    program = ROOT / ".cache" / name
    subprocess.run(["go", "build", "-o", program, "."], cwd=ROOT / "tests" / name, check=True)
    return program


def read_project(*files: Path, **variables: str) -> dict[str, Any]:
    """Read compose files by Docker Compose's own loader; what it would refuse fails."""
    project: dict[str, Any] = json.loads(run(go_program("compose_config"), *files, **variables).stdout)
    return project


class Stack(AbstractContextManager["Stack"]):
    """The services of compose files, running and healthy when this is made, on images that `IMAGE` is one of.

    podman-compose runs one service after another, in the order of their dependencies: podman runs health checks by
    systemd only, so that what waits for them is done here. Leaving the block removes containers and volumes.

    Args:
        files: the base, and overrides.
        services: which are started, with those that they depend on; all whose images can be had if empty.
        variables: of the compose files.
    """

    def __init__(self, *files: Path, services: Sequence[str] = (), **variables: str) -> None:
        number = next(_numbers)
        self.address = f"127.42.0.{number}"
        """Where its ports are published: they are fixed, and on 127.0.0.1 a developer may have some in use."""
        self._name = f"trio-broker-test-{number}"
        self._files = [f"--file={file}" for file in files]
        self._variables = {"TRIO_BROKER_IMAGE": IMAGE, "TRIO_BROKER_BIND": self.address, **variables}
        self._services = read_project(*files, **self._variables)["services"]
        self._started: list[str] = []
        try:
            for service in services or self._services:
                self._start(service)
        except BaseException:
            self.__exit__()
            raise

    @property
    def services(self) -> list[str]:
        """Those that run; one-shot services have ended."""
        return self._started

    def container(self, service: str) -> str:
        """The name of a service's container."""
        return f"{self._name}_{service}_1"

    def restart(self, service: str) -> None:
        """Stop it as an operator does, and start it again; it is healthy then."""
        podman("restart", "--time=15", self.container(service))
        await_healthy(self.container(service))

    @contextmanager
    def stopped(self, service: str) -> Iterator[None]:
        """Have it stopped for the block; it is healthy again after it."""
        podman("stop", "--time=15", self.container(service))
        yield
        podman("start", self.container(service))
        await_healthy(self.container(service))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._compose("down", "--volumes", "--timeout=0")
        podman("volume", "prune", "--force")  # those without a name

    def _start(self, name: str) -> None:
        service = self._services[name]
        if name in self._started or not have_image(service["image"], STAND_INS.get(name)):
            return
        for dependency in service.get("depends_on") or ():
            self._start(dependency)
        self._compose("up", "--detach", "--no-deps", name)
        self._started.append(name)
        if "healthcheck" in service:
            await_healthy(self.container(name))
        else:
            assert podman("wait", self.container(name)) == "0"

    def _compose(self, *arguments: str) -> None:
        run("podman-compose", f"--project-name={self._name}", *self._files, *arguments, **self._variables)
