"""docs/SECURITY.md names bounds and tests that exist."""

import re
from pathlib import Path

import pytest

from trio_broker.config import Config
from trio_broker.rpc.limits import Limits

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/SECURITY.md").read_text()
ATTACKS = TEXT.partition("\n## Attacks\n")[2].partition("\n## ")[0]
ROWS = [
    re.split(r"\s*\|\s*", line.strip("| "))
    for line in ATTACKS.splitlines()
    if line.startswith("| ") and not line.startswith("| attack |")
]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def defines(path: str, name: str) -> bool:
    """The file has such a test, or such a constant."""
    pattern = rf"^(async )?def {name}\(|^{name}(: .*)? = "
    return re.search(pattern, (ROOT / path).read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_an_attack_has_bounds_and_proofs_that_exist(row: list[str]) -> None:
    _, _, bounds, proofs = row
    for bound in named(bounds):
        if bound.startswith("--"):
            assert bound.removeprefix("--").replace("-", "_") in Config.model_fields, bound
        elif "::" in bound:
            assert defines(*bound.split("::")), bound
        else:
            assert bound in Limits.__dataclass_fields__, bound
    assert named(proofs)
    for proof in named(proofs):
        path, _, name = proof.partition("::")
        assert path.startswith("tests/")
        assert name.startswith("test_")
        assert defines(path, name), proof


def test_every_test_that_is_named_exists() -> None:
    for path, name in re.findall(r"`(tests/[^`]+)::([^`]+)`", TEXT):
        assert defines(path, name), f"{path}::{name}"


def test_every_flag_that_is_named_exists() -> None:
    flags = set(re.findall(r"`--([a-z-]+)`", TEXT)) - {"seed"}  # of the soak
    assert {flag.replace("-", "_") for flag in flags} <= Config.model_fields.keys()
    assert {"allow-anonymous", "tls-client-ca", "peer-listen"} <= flags


def test_there_is_something_to_check() -> None:
    assert len(ROWS) > 30
