"""What the image is built of (docker/*requirements.txt) fits what the package asks for (setup.cfg, pyproject.toml)."""

import configparser
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
EXTRAS = ("postgres", "cassandra", "otel")
"""Those that the image has: as in `make image-requirements`."""

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    """The versions in a file of docker/, by name; each has to have hashes."""
    text = (ROOT / "docker" / name).read_text()
    found = {canonicalize_name(match[1]): match[2] for match in _PIN.finditer(text)}
    assert len(found) == text.count("=="), "a line without hashes"
    return found


def asked() -> list[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in EXTRAS)]
    return [line for text in lists for line in text.split("\n") if line and not line.startswith("#")]


def built_with() -> list[str]:
    requires: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    return requires


@pytest.mark.parametrize(
    ("file", "requirements"), [("requirements.txt", asked()), ("build-requirements.txt", built_with())]
)
def test_each_requirement_is_pinned_to_a_version_that_fits(file: str, requirements: Iterable[str]) -> None:
    pinned = pins(file)
    for requirement in map(Requirement, requirements):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in docker/{file}: make image-requirements"
        assert requirement.specifier.contains(version), f"{requirement}, and docker/{file} has {version}"
