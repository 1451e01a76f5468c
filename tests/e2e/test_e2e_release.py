"""``make release`` on this machine: the image's archive can be loaded and run, and all artifacts are of one version."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from e2e_containers import PYTHON, ROOT, have_image, import_python, pip_mounts, podman, run

pytestmark = pytest.mark.containers

REPOSITORY = "registry.example/team/trio-broker"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    have_image(PYTHON, import_python)
    out = tmp_path_factory.mktemp("dist")
    with TemporaryDirectory() as directory:
        arguments = " ".join(["--isolation=chroot", *pip_mounts(Path(directory))])
        options = ("--out", out, "--image-repository", REPOSITORY, f"--image-arguments={arguments}")
        run(sys.executable, ROOT / "docker" / "release" / "build.py", *options)
    return out


def test_every_artifact_is_there_and_of_one_version(dist: Path) -> None:
    (version,) = re.findall(r"trio_broker-(.+)\.tar\.gz", " ".join(path.name for path in dist.iterdir()))
    names = {path.name for path in dist.iterdir()}
    helm = shutil.which("helm") or (ROOT / ".cache" / "bin" / "helm").exists()
    assert len(names) == (6 if helm else 5)
    assert {
        f"trio_broker-{version}-py3-none-any.whl",
        f"trio-broker-{version}.cdx.json",
        f"trio-broker-{version}-image.tar",
        "SHA256SUMS",
    } <= names
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, check=True)
    image = f"{REPOSITORY}:{version}"
    podman("image", "rm", "--force", image)
    podman("load", "--quiet", f"--input={dist / f'trio-broker-{version}-image.tar'}")
    assert version in podman("run", "--rm", image, "version")
    labels = json.loads(podman("image", "inspect", image))[0]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    for chart in dist.glob("*.tgz"):
        with tarfile.open(chart) as archive:
            about, values = (yaml.safe_load(archive.extractfile(f"trio-broker/{n}.yaml")) for n in ("Chart", "values"))
        assert about["appVersion"] == version
        assert "/".join(values["image"][part] for part in ("registry", "repository")) == REPOSITORY
