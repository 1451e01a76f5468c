"""Build what a release consists of: ``make release``, or ``python docker/release/build.py --help``.

Owns:      which artifacts there are, of which commit, and their names.
Not here:  the version (trio_broker/_version.py), what is in each artifact (setup.cfg, docker/Dockerfile, helm/).

Everything is built of the last commit, and of nothing that lies around; docs/RELEASE.md has what may be said of bytes.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from archives import level

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/trio-broker"
"""Of an image that is published nowhere; the chart's values say the same."""
_HOOKS = "import sys, setuptools.build_meta as backend; print(backend.{hook}(sys.argv[1]))"


class Release(NamedTuple):
    """What is built, and of what."""

    source: Path
    """The files of the commit."""
    out: Path
    """Where artifacts go."""
    work: Path
    """For what is needed on the way."""
    version: str
    revision: str
    epoch: int
    """When the commit was made, in seconds since 1970: the time that artifacts say."""
    image: str
    """Where the image is to be published, without a tag."""
    image_arguments: tuple[str, ...]
    """What building the image needs here."""

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run a program, which has to succeed; return its output."""
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(self.epoch), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command,
            cwd=cwd or self.source,
            env=environment,
            umask=0o022,  # a wheel says who may read what in it
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"release: this failed: {shlex.join(map(str, command))}")
        return done.stdout


def build_python(release: Release) -> None:
    """The source archive, and the wheel that is built of it, by the pinned tools of the image."""
    tools = release.work / "tools"
    venv.create(tools, clear=True)
    python, pins = tools / "bin" / "python", release.source / "docker" / "build-requirements.txt"
    pip = (sys.executable, "-m", "pip", "--python", python)
    release.run(*pip, "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", pins)
    name = release.run(python, "-c", _HOOKS.format(hook="build_sdist"), release.out).splitlines()[-1]
    level(release.out / name, release.epoch)
    with tarfile.open(release.out / name) as archive:
        archive.extractall(release.work, filter="data")
    unpacked = release.work / name.removesuffix(".tar.gz")
    release.run(python, "-c", _HOOKS.format(hook="build_wheel"), release.out, cwd=unpacked)


def build_sbom(release: Release) -> None:
    """What the image has besides Python and its base, by docker/requirements.txt, as CycloneDX."""
    path = release.out / f"trio-broker-{release.version}.cdx.json"
    pins = release.source / "docker" / "requirements.txt"
    program = Path(sys.executable).with_name("cyclonedx-py")
    if not program.exists():
        leave_out("SBOM", "cyclonedx-py is not there", 'pip install ".[release]"')
        return
    release.run(program, "requirements", "--output-reproducible", "--output-file", path, pins)
    sbom = json.loads(path.read_text())
    ours = f"trio-broker=={release.version}"
    sbom["metadata"]["component"] = {
        "type": "application",
        "bom-ref": ours,
        "name": "trio-broker",
        "version": release.version,
        "purl": f"pkg:pypi/trio-broker@{release.version}",
        "licenses": [{"license": {"id": "MIT"}}],
    }
    needs = sorted(component["bom-ref"] for component in sbom["components"])
    sbom["dependencies"] = [{"ref": ours, "dependsOn": needs}, *({"ref": each} for each in needs)]
    path.write_text(json.dumps(sbom, indent=2, sort_keys=True) + "\n")


def build_chart(release: Release) -> None:
    """The Helm chart, whose values name the image that is published."""
    helm = shutil.which("helm", path=f"{os.environ.get('PATH', '')}:{ROOT / '.cache' / 'bin'}")
    if helm is None:
        leave_out("chart", "helm is not there", "make chart-check installs it")
        return
    chart = release.source / "helm" / "trio-broker"
    about = (chart / "Chart.yaml").read_text()
    if f'appVersion: "{release.version}"' not in about:
        raise SystemExit(f"release: Chart.yaml is not of version {release.version}: run `make chart`, and commit")
    values = chart / "values.yaml"
    values.write_text(name_image(values.read_text(), release.image))
    told = release.run(helm, "package", chart, "--destination", release.out)
    level(Path(told.split(": ", 1)[1].strip()), release.epoch)


def name_image(values: str, image: str) -> str:
    """Return the chart's values with another image as the default."""
    registry, _, repository = image.rpartition("/") if "/" in image else ("", "", image)
    for key, value in (("registry", registry), ("repository", repository)):
        values, found = re.subn(
            rf"^(image:\n(?:[ #].*\n)*?  {key}:).*$", rf"\g<1> {json.dumps(value)}", values, count=1, flags=re.MULTILINE
        )
        if not found:
            raise SystemExit(f"release: values.yaml of the chart has no image.{key}")
    return values


def build_image(release: Release) -> None:
    """The image, as an archive for `podman load` or `docker load`."""
    name = f"{release.image}:{release.version}"
    archive = release.out / f"trio-broker-{release.version}-image.tar"
    arguments = ["--file=docker/Dockerfile", f"--tag={name}", *release.image_arguments]
    arguments += [f"--build-arg=VERSION={release.version}", f"--build-arg=REVISION={release.revision}"]
    if shutil.which("podman") and shutil.which("buildah"):  # first: it can say when files are of
        build = ("buildah", "bud", "--quiet", "--format=docker", f"--timestamp={release.epoch}")
        release.run(*build, *arguments, ".")
        release.run("podman", "save", "--quiet", "--format=docker-archive", f"--output={archive}", name)
    elif shutil.which("docker"):
        release.run("docker", "build", *arguments, ".")
        release.run("docker", "save", f"--output={archive}", name)
    else:
        leave_out("image", "neither podman with buildah nor docker is there", "install one of them")


PARTS: dict[str, Callable[[Release], None]] = {
    "python": build_python,
    "sbom": build_sbom,
    "chart": build_chart,
    "image": build_image,
}


def leave_out(what: str, why: str, remedy: str) -> None:
    """Say what will be missing; where everything has to be there (CI) fail instead."""
    said = f"release: no {what}: {why} ({remedy})"
    if os.environ.get("CI") == "true":
        raise SystemExit(said)
    print(said, file=sys.stderr)


def git(*arguments: str) -> str:
    """Ask git of this checkout, whoever owns it."""
    command = ("git", "-c", f"safe.directory={ROOT}", *arguments)
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def export(destination: Path) -> None:
    """Write the files of the last commit somewhere else."""
    archive = destination.with_suffix(".tar")
    git("archive", "--format=tar", f"--output={archive}", "HEAD")
    with tarfile.open(archive) as files:
        files.extractall(destination, filter="data")


def version() -> str:
    """Return the one version, of wheel, image and chart."""
    found = re.search(r'^__version__ = "([^"+]+)"$', git("show", "HEAD:trio_broker/_version.py"), re.MULTILINE)
    if found is None:
        raise SystemExit("release: trio_broker/_version.py has no version that an image's tag may have, too")
    return found[1]


def write_sums(out: Path) -> None:
    """Write SHA256SUMS, for `sha256sum --check`."""
    paths = sorted(path for path in out.iterdir() if path.name != "SHA256SUMS")
    lines = []
    for path in paths:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (out / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build what a release consists of, of the last commit.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to; it is emptied first  [dist]")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part, instead of all; may be repeated")
    parser.add_argument("--image-repository", default=IMAGE, help="where the image is to be published")
    parser.add_argument("--image-arguments", default="", help="for `docker build` or `buildah bud`")
    options = parser.parse_args()
    if git("status", "--porcelain"):
        print("release: there are changes that are not committed: they are not in it", file=sys.stderr)
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with TemporaryDirectory() as directory:
        work = Path(directory)
        export(work / "source")
        release = Release(
            source=work / "source",
            out=out,
            work=work,
            version=version(),
            revision=git("rev-parse", "HEAD"),
            epoch=int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")),
            image=options.image_repository,
            image_arguments=tuple(shlex.split(options.image_arguments)),
        )
        for name in options.only or PARTS:
            PARTS[name](release)
    write_sums(out)
    print((out / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
