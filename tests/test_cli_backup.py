"""``trio-broker backup``: what it refuses, and what it leaves behind then. Under load: e2e/test_e2e_backup.py."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from persistence import CannotOpen, StoreError, back_up
from persistence.sqlite import backup
from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import ERROR, SIGNALLED

MESSAGES = 5_000
BODY = bytes(4096)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with nothing in it, of the broker of this environment."""
    path = tmp_path / "broker.db"
    monkeypatch.setenv("TRIO_BROKER_STORE", f"sqlite:///{path}")
    assert run_command_line(["migrate", "up"]) == 0
    return path


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    path = tmp_path / "copies"
    path.mkdir()
    return path


def fill(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO subjects (id, name, last_id, last_time_us) VALUES (1, 's', ?, 1)", (MESSAGES,))
        rows = ((1, id_, 1, BODY) for id_ in range(1, MESSAGES + 1))
        connection.executemany("INSERT INTO messages (subject_id, id, time_us, body) VALUES (?, ?, ?, ?)", rows)


def test_a_file_that_is_there_is_replaced_only_by_force(
    database: Path, copies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = copies / "copy.db"
    copy.write_text("mine")
    assert run_command_line(["backup", str(copy)]) == ERROR
    assert "--force" in capfd.readouterr().err
    assert copy.read_text() == "mine"
    assert run_command_line(["backup", str(copy), "--force"]) == 0
    assert copy.stat().st_size > 4


def test_the_store_itself_is_never_replaced(database: Path, copies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(database)) as broker:
        broker.execute("INSERT INTO subjects (id, name, last_id, last_time_us) VALUES (1, 's', 1, 1)")
        broker.commit()  # it is in the log file, which goes when the last connection is closed
        (copies / "folder").symlink_to(database.parent)
        (copies / "link").symlink_to(database)
        (copies / "link-wal").symlink_to(f"{database}-wal")
        (copies / "hard-wal").hardlink_to(f"{database}-wal")
        parts = [database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm", "-journal", ".lock")]
        through_links = [copies / "folder" / part.name for part in parts]
        through_links += [copies / name for name in ("link", "link-wal", "hard-wal")]
        before = {path: path.read_bytes() for path in database.parent.glob("broker.db*")}
        assert len(before) == 3
        for destination in (*parts, *through_links):
            assert run_command_line(["backup", str(destination), "--force"]) == ERROR
            assert "is the store itself, or a part of it" in capfd.readouterr().err
        assert {path: path.read_bytes() for path in database.parent.glob("broker.db*")} == before


def test_a_link_that_leads_nowhere_is_there(database: Path, copies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    link = copies / "link.db"
    link.symlink_to(copies / "missing")
    assert run_command_line(["backup", str(link)]) == ERROR
    assert "--force" in capfd.readouterr().err
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("postgresql://db/app", "pg_dump"),
        ("cassandra://host/name", "nodetool snapshot"),
        ("memory:", "keeps nothing"),
        ("sqlite:///missing.db", "nothing to back up"),
        ("sqlite:///", "names no file"),
        ("sqlit:///x", "no store is called 'sqlit'"),
    ],
)
def test_what_cannot_be_backed_up_is_told_in_one_line(
    store: str, told: str, copies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["backup", str(copies / "copy.db"), "--store", store]) == ERROR
    said = capfd.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert list(copies.iterdir()) == []


def test_a_directory_and_a_missing_one_are_told(
    database: Path, copies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["backup", str(copies)]) == ERROR
    assert f"such as {copies / 'broker.db'}" in capfd.readouterr().err
    assert run_command_line(["backup", str(copies / "missing" / "copy.db")]) == ERROR
    assert "No such file or directory" in capfd.readouterr().err


def test_a_database_of_another_application_is_refused(tmp_path: Path, copies: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(CannotOpen, match="another application"):
        backup.back_up(f"sqlite:///{foreign}", copies / "copy.db", replace=False, between=lambda: None)
    assert list(copies.iterdir()) == []


def test_cancelled_it_stops_between_two_steps_and_leaves_nothing(
    database: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    monkeypatch.setattr(backup, "PAGES_PER_STEP", 1)
    check_cancelled = trio.from_thread.check_cancelled

    async def back_up_cancelled() -> bool:
        def cancel_and_check() -> None:
            trio.from_thread.run_sync(scope.cancel)
            check_cancelled()

        monkeypatch.setattr(trio.from_thread, "check_cancelled", cancel_and_check)
        with trio.CancelScope() as scope:
            await back_up(f"sqlite:///{database}", copies / "copy.db", replace=False)
        return scope.cancelled_caught

    assert trio.run(back_up_cancelled)
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_it_leaves_nothing(
    number: signal.Signals, database: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    monkeypatch.setattr(backup, "PAGES_PER_STEP", 1)
    check_cancelled = trio.from_thread.check_cancelled
    signalled = threading.Event()

    def signal_and_check() -> None:
        if not signalled.is_set():
            signalled.set()
            assert list(copies.iterdir()) != []
            os.kill(os.getpid(), number)
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)  # until the command has heard of it
        check_cancelled()

    monkeypatch.setattr(trio.from_thread, "check_cancelled", signal_and_check)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored
    try:
        assert run_command_line(["backup", str(copies / "copy.db")]) == SIGNALLED + number
    finally:
        signal.signal(number, before)
    assert list(copies.iterdir()) == []


def test_under_nohup_it_goes_on(database: Path, copies: Path) -> None:
    nohup = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-c"]
    program = (
        "import os, signal, sys, trio; from trio_broker.cli.main import run_command_line; "
        "check = trio.from_thread.check_cancelled; "
        "trio.from_thread.check_cancelled = lambda: (os.kill(os.getpid(), signal.SIGHUP), check()); "
        "sys.exit(run_command_line(sys.argv[1:]))"
    )
    assert subprocess.run([*nohup, program, "backup", str(copies / "copy.db")]).returncode == 0
    assert (copies / "copy.db").exists()


def test_a_file_that_cannot_grow_leaves_nothing(database: Path, copies: Path) -> None:
    fill(database)
    limited = ["sh", "-c", 'ulimit -f 4096; exec "$@"', "sh", sys.executable, "-m", "trio_broker"]
    ended = subprocess.run([*limited, "backup", str(copies / "copy.db")], capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stderr.count("\n") == 1
    assert list(copies.iterdir()) == []


def test_a_damaged_store_makes_no_backup(database: Path, copies: Path) -> None:
    fill(database)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'messages'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((root - 1) * page_bytes + 8)
        file.write(b"\xff" * 64)
    with pytest.raises(StoreError, match="damaged"):
        backup.back_up(f"sqlite:///{database}", copies / "copy.db", replace=False, between=lambda: None)
    assert list(copies.iterdir()) == []


def test_commits_of_the_broker_meanwhile_do_not_make_the_copying_start_again(
    database: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    pages = database.stat().st_size // 4096
    monkeypatch.setattr(backup, "PAGES_PER_STEP", 512)
    steps = 0
    with closing(sqlite3.connect(database, isolation_level=None)) as broker:

        def commit() -> None:
            nonlocal steps
            steps += 1
            broker.execute("UPDATE subjects SET last_id = last_id + 1")

        backup.back_up(f"sqlite:///{database}", copies / "copy.db", replace=False, between=commit)
    assert steps <= pages // 512 + 2
    with closing(sqlite3.connect(copies / "copy.db")) as copy:
        assert copy.execute("SELECT last_id FROM subjects").fetchone() == (MESSAGES,)
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
