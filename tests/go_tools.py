"""Programs written in Go that tests call.

Each is taken from PATH or ~/go/bin, or built with Go into .cache/. Where there is neither, the test is skipped; in CI
(CI=true) it fails instead.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "bin"


def go_tool(module: str, name: str = "") -> str:
    """Return the path of the program of a module, given with its version: ``example.org/cmd/name@v1.2.3``.

    ``name`` is what we call it, where its own name says too little.
    """
    built = module.partition("@")[0].rpartition("/")[2]
    name = name or built
    found = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], str(Path.home() / "go/bin"), str(CACHE))))
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"{name} is not there, nor Go to build it with"
        )
    subprocess.run([go, "install", module], env={**os.environ, "GOBIN": str(CACHE)}, check=True)
    return str((CACHE / built).rename(CACHE / name))
