"""The demo, on a part of its events."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from e2e_broker import SAFETY_S, clean_environment

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    """The demo as a module, to be tampered with."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


def test_the_demo_passes() -> None:
    ended = subprocess.run(
        [sys.executable, DEMO, "--events", "500"],
        capture_output=True,
        text=True,
        timeout=SAFETY_S * 2,
        env=clean_environment(),
    )
    assert ended.returncode == 0, ended
    assert ended.stderr == ""
    topics = [line.split()[0] for line in ended.stdout.splitlines() if not line.startswith(" ")]
    assert topics == ["events", "published", *["heard"] * 3, "fetched", "killed", "recovered", "ids", "passed"]


def test_the_demo_fails_when_an_acknowledged_event_is_lost(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = iter([tmp_path / "first", tmp_path / "second"])

    def forgetful(directory: str) -> object:
        elsewhere = next(directories)
        elsewhere.mkdir()
        return running_broker(str(elsewhere))

    running_broker = demo.running_broker
    monkeypatch.setattr(demo, "running_broker", forgetful)
    assert demo.main(["--events", "100"]) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("FAILED")
    assert "was never assigned" in said
