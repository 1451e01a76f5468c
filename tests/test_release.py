"""``make release``: what it builds, that it is the same whoever builds it, and that it says what it leaves out."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docker" / "release"))

from archives import level  # noqa: E402

from build import IMAGE, git, name_image, version  # noqa: E402

if not (ROOT / ".git").exists():
    pytest.skip("a release is built of a commit, and this is no checkout", allow_module_level=True)

SAFETY_S = 300
"""What hangs fails after this long; nothing that works comes near."""
VERSION = version()
SDIST, WHEEL, SBOM = (
    f"trio_broker-{VERSION}.tar.gz",
    f"trio_broker-{VERSION}-py3-none-any.whl",
    f"trio-broker-{VERSION}.cdx.json",
)


def build(out: Path, *arguments: str, umask: int = -1, **environment: str) -> dict[str, bytes]:
    """What it builds, by name."""
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / "release" / "build.py", "--out", out, *arguments],
        env=os.environ | environment,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=SAFETY_S,
    )
    assert done.returncode == 0, done.stderr
    built = {path.name: path.read_bytes() for path in out.iterdir()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in built.items() if name != "SHA256SUMS"}
    assert built["SHA256SUMS"].decode() == "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build(tmp_path_factory.mktemp("first"), "--only=python", "--only=sbom")


def test_another_user_elsewhere_builds_the_same_bytes(built: dict[str, bytes], tmp_path: Path) -> None:
    again = build(tmp_path / "again", "--only=python", "--only=sbom", umask=0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="7")
    assert built.keys() == {SDIST, WHEEL, SBOM, "SHA256SUMS"}
    assert again == built


def test_the_archives_have_the_package_and_no_tests(built: dict[str, bytes]) -> None:
    wheel = zipfile.ZipFile(io.BytesIO(built[WHEEL])).namelist()
    with tarfile.open(fileobj=io.BytesIO(built[SDIST])) as archive:
        sdist = [name.partition("/")[2] for name in archive.getnames()]
    ours = [
        name
        for name in git("ls-tree", "-r", "--name-only", "HEAD").splitlines()
        if name.startswith(("trio_broker/", "persistence/", "metrics/")) and name.endswith((".py", "py.typed"))
    ]
    for names in (wheel, sdist):
        assert {*ours} <= {*names}
        assert not any(name.startswith("tests") for name in names)


def test_the_bill_of_materials_has_all_that_the_image_is_built_of(built: dict[str, bytes]) -> None:
    sbom = json.loads(built[SBOM])
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["version"]) == ("CycloneDX", VERSION)
    pins = git("show", "HEAD:docker/requirements.txt")
    found = {f"{each['name']}=={each['version']}" for each in sbom["components"]}
    assert found == set(re.findall(r"^[A-Za-z0-9._-]+==[^ ;]+", pins, re.MULTILINE))
    assert all(each["purl"].startswith("pkg:pypi/") for each in sbom["components"])


def test_an_archive_says_nothing_of_who_made_it_and_when(tmp_path: Path) -> None:
    made = []
    for number, names in enumerate((("b", "a"), ("a", "b"))):
        archive = tmp_path / f"{number}.tar.gz"
        with tarfile.open(archive, "w:gz") as target:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.uid, entry.uname = 1, 100 + number, number, f"user{number}"
                target.addfile(entry, io.BytesIO(name.encode()))
        level(archive, 1_000_000_000)
        made.append(archive.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.tar.gz") as archive:
        assert [(each.name, each.mtime, each.uid, each.uname) for each in archive] == [
            ("a", 1_000_000_000, 0, ""),
            ("b", 1_000_000_000, 0, ""),
        ]


VALUES = """\
replicaCount: 2

image:
  # -- Where you keep images
  registry: localhost
  # -- Name of the image
  repository: trio-broker
  tag: ""

demo:
  registry: other
"""


def test_the_chart_names_the_image_that_is_published() -> None:
    named = name_image(VALUES, "registry.example:5000/team/trio-broker")
    assert named == VALUES.replace("localhost", '"registry.example:5000/team"').replace(
        "repository: trio-broker", 'repository: "trio-broker"'
    )
    assert name_image(VALUES, IMAGE).replace('"', "") == VALUES.replace('"', "")
    with pytest.raises(SystemExit, match=re.escape("no image.registry")):
        name_image("demo:\n  registry: other\n", IMAGE)


@pytest.mark.parametrize(("ci", "exit_code"), [("false", 0), ("true", 1)])
def test_what_is_left_out_is_told_and_is_a_failure_in_ci(tmp_path: Path, ci: str, exit_code: int) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(Path(subprocess.check_output(["which", "git"], text=True).strip()))
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / "release" / "build.py", "--out", tmp_path / "out", "--only=image"],
        env={"PATH": str(programs), "CI": ci},
        capture_output=True,
        text=True,
        timeout=SAFETY_S,
    )
    assert done.returncode == exit_code
    assert "release: no image: neither podman with buildah nor docker is there" in done.stderr
