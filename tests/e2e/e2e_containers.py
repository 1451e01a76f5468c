"""Images and containers without a daemon: buildah builds, podman runs, in a storage of the tests' own.

Owns:      the storage, the image under test, official images or what stands in for them, `Container`.
Not here:  compose files (e2e_compose.py); installing podman and buildah (docker/ci/install.sh).
Threads:   any; every method blocks.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

ROOT = Path(__file__).parent.parent.parent
CI = ROOT / "docker" / "ci"
CACHE = ROOT / ".cache" / "containers"
PATIENCE_S = 300
"""For one command or wait, on a machine that downloads what it needs and does much else."""

IMAGE = "localhost/trio-broker:test"
PYTHON = "docker.io/library/python:3.13-slim"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--init")

_BUILD = ("buildah", "bud", "--isolation=chroot", "--format=docker")
_PIP_SETTINGS = ("cert", "index-url", "extra-index-url", "proxy", "trusted-host", "timeout")


def run(*command: str | Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program on the storage of the tests' own; it has to succeed if ``check``."""
    done = subprocess.run(
        command, env=_environment() | variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def podman(*arguments: str | Path) -> str:
    """Run a command of podman, which has to succeed; return what it prints."""
    return run("podman", *arguments).stdout.strip()


@cache
def build_image() -> None:
    """Build `IMAGE` by the Dockerfile as it is, once."""
    have_image(PYTHON, import_python)
    with TemporaryDirectory() as directory:
        dockerfile = ROOT / "docker" / "Dockerfile"
        run(*_BUILD, f"--file={dockerfile}", *pip_mounts(Path(directory)), f"--tag={IMAGE}", ROOT)


def have_image(name: str, stand_in: Callable[[str], None] | None) -> bool:
    """Have an official image in the storage: pulled, or else made under its name by ``stand_in``; say whether it is."""
    if run("podman", "image", "exists", name, check=False).returncode == 0:
        return True
    if run("podman", "pull", "--quiet", name, check=False).returncode == 0:
        return True
    if stand_in is None:
        return False
    stand_in(name)
    return True


def stand_in_postgres(name: str) -> None:
    """Build from the server that the other tests run."""
    have_image(PYTHON, import_python)
    packages = sysconfig.get_path("purelib")
    run(*_BUILD, f"--file={CI / 'postgres.Dockerfile'}", f"--build-context=packages={packages}", f"--tag={name}", CI)


def stand_in_prometheus(name: str) -> None:
    """Build from the server of this machine."""
    have_image(PYTHON, import_python)
    program = shutil.which("prometheus")
    assert program is not None, "Prometheus is not installed (Debian: prometheus)"
    programs = Path(program).parent
    run(*_BUILD, f"--file={CI / 'prometheus.Dockerfile'}", f"--build-context=programs={programs}", f"--tag={name}", CI)


def import_python(name: str) -> None:
    archive = CACHE / "python.tar"
    if not archive.exists():
        run(CI / "make-base-image.sh", archive)
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    podman("import", f"--change=ENV {path}", "--change=ENV LANG=C.UTF-8", "--change=CMD python3", archive, name)


def pip_mounts(directory: Path) -> list[str]:
    """Let pip inside of a build find packages as it does here: its settings, and the certificates they name."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    settings = {}
    for line in listed.splitlines():  # global.cert='...', then :env:.cert='...', which wins
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in _PIP_SETTINGS:
            settings[name] = value.strip("'\"").replace("\\n", " ")
    file = directory / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    certificates = [settings["cert"]] if "cert" in settings else []
    return [f"--volume={file}:/etc/pip.conf:ro", *(f"--volume={path}:{path}:ro" for path in certificates)]


def _environment() -> dict[str, str]:
    CACHE.mkdir(parents=True, exist_ok=True)
    storage = CACHE / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE}/storage"\nrunroot = "{CACHE}/run"\n')
    own = {"CONTAINERS_CONF": str(CI / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(storage)}
    return {name: value for name, value in os.environ.items() if not name.startswith("TRIO_BROKER_")} | own


class Container(AbstractContextManager["Container"]):
    """A broker in a container, hardened, that is healthy when this is made. Leaving the block removes it."""

    def __init__(self, *options: str, command: Sequence[str] = ()) -> None:
        self._id = podman(
            "run", "--detach", *HARDENED, "--publish=127.0.0.1::50051", "--memory=256m", *options, IMAGE, *command
        )
        try:
            self.await_healthy()
            self.address = podman("port", self._id, "50051/tcp")
        except BaseException:
            self.__exit__()
            raise

    def await_healthy(self) -> None:
        """Wait until its own health check passes."""
        await_healthy(self._id)

    def restart(self) -> None:
        """Stop it as an operator does, and start it again; it is healthy then."""
        podman("restart", "--time=15", self._id)
        self.await_healthy()

    def stop(self) -> int:
        """Stop it as an operator does; return the exit code."""
        podman("stop", "--time=15", self._id)
        return int(self.inspect()["State"]["ExitCode"])

    def inspect(self) -> Mapping[str, dict[str, object]]:
        """What podman knows of it."""
        found: Mapping[str, dict[str, object]] = json.loads(podman("inspect", self._id))[0]
        return found

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return run("podman", "exec", self._id, *command, check=False)

    def log(self) -> str:
        """What it has printed."""
        return log_of(self._id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        podman("rm", "--force", "--volumes", "--time=0", self._id)


def await_healthy(container: str) -> None:
    """Run the health check of a container until it passes. Nobody else does where there is no systemd."""
    give_up = time.monotonic() + PATIENCE_S
    while (health := run("podman", "healthcheck", "run", container, check=False)).returncode != 0:
        state = podman("inspect", "--format={{.State.Status}}", container)
        assert state == "running", f"{state}: {log_of(container)}"
        assert time.monotonic() < give_up, f"{health.stdout}{health.stderr}: {log_of(container)}"


def log_of(container: str) -> str:
    """What a container has printed."""
    done = run("podman", "logs", container)
    return done.stdout + done.stderr
