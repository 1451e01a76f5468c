import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_python(cwd: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_a_foreign_module_named_persistence_gives_a_clear_error(tmp_path: Path) -> None:
    foreign = tmp_path / "persistence.py"
    foreign.write_text("raise AssertionError('it must not even be imported')")
    ran = run_python(tmp_path, "import trio_broker; trio_broker.open_broker")
    assert ran.returncode == 1
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("ImportError: the broker needs its own package 'persistence'")
    assert str(ROOT / "persistence" / "__init__.py") in error
    assert str(foreign) in error
    assert "Rename" in error


@pytest.mark.parametrize(
    "planted",
    [
        "import sys, types; sys.modules['persistence'] = types.ModuleType('persistence')",
        "import sys; sys.path.insert(0, 'elsewhere'); import persistence",
    ],
)
def test_a_foreign_module_that_is_imported_already_gives_it_too(tmp_path: Path, planted: str) -> None:
    package = tmp_path / "elsewhere" / "persistence"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    ran = run_python(tmp_path, f"{planted}; import trio_broker; trio_broker.Broker")
    assert "ImportError: the broker needs its own package 'persistence'" in ran.stderr


def test_a_client_may_have_a_module_named_persistence(tmp_path: Path) -> None:
    (tmp_path / "persistence.py").write_text("raise AssertionError('not ours')")
    ran = run_python(tmp_path, "import trio_broker; trio_broker.Message; import trio_broker.errors")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_our_own_packages_are_found(tmp_path: Path) -> None:
    code = (
        "from trio_broker.own_packages import require_own; require_own('persistence'); require_own('metrics'); "
        "require_own('no_such_package_at_all')"
    )
    assert run_python(tmp_path, code).stderr == ""
