"""``trio-broker migrate``: what it does to a file, what it prints, its exit codes."""

import sqlite3
from pathlib import Path

import pytest
from cassandra_keyspaces import keyspace_of

from persistence.sqlite.schema import STEPS
from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import ERROR, UNAVAILABLE, USAGE

LATEST = len(STEPS)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the broker of this environment keeps its messages; nothing is there yet."""
    path = tmp_path / "log.db"
    monkeypatch.setenv("TRIO_BROKER_STORE", f"sqlite:///{path}")
    return path


def test_status_creates_nothing_and_says_what_is_missing(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["migrate", "status"]) == ERROR
    assert capfd.readouterr().out == f"sqlite:///{database} has schema version 0, and this release needs {LATEST}\n"
    assert not database.exists()


def test_up_makes_the_tables_and_may_be_repeated(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run_command_line(["migrate", "up"]) == 0
        assert capfd.readouterr().out == f"sqlite:///{database} has schema version {LATEST}, as this release needs\n"
    assert run_command_line(["migrate", "status"]) == 0
    assert database.exists()


def test_sql_does_what_up_does_when_an_administrator_runs_it(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["migrate", "sql"]) == 0
    script = capfd.readouterr().out
    assert not database.exists()
    by_hand = sqlite3.connect(database, isolation_level=None)
    by_hand.executescript(script)
    made = tables(by_hand)
    by_hand.close()
    assert run_command_line(["migrate", "status"]) == 0
    capfd.readouterr()
    assert run_command_line(["migrate", "sql"]) == 0
    assert capfd.readouterr().out == ""

    database.unlink()
    assert run_command_line(["migrate", "up"]) == 0
    by_us = sqlite3.connect(database)
    assert tables(by_us) == made
    by_us.close()


def tables(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """All tables and indices, and what the file says of itself; spaces do not count."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    pragmas = ("application_id", "user_version", "auto_vacuum", "journal_mode")
    about = [(name, connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in pragmas]
    return [*((kind, name, " ".join((sql or "").split())) for kind, name, sql in found), *about]


def test_a_file_of_a_later_release_is_refused(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["migrate", "up"]) == 0
    later = sqlite3.connect(database)
    later.execute(f"PRAGMA user_version = {LATEST + 1}")
    later.close()
    capfd.readouterr()
    assert run_command_line(["migrate", "status"]) == ERROR
    assert f"has schema version {LATEST + 1}" in capfd.readouterr().err


def test_a_keyspace_of_cassandra(cassandra_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    store = ["--store", f"{cassandra_url}&dc=datacenter1"]
    assert run_command_line(["migrate", "status", *store]) == ERROR
    assert "has schema version 0" in capfd.readouterr().out
    assert run_command_line(["migrate", "sql", *store]) == 0
    assert f"CREATE KEYSPACE IF NOT EXISTS {keyspace_of(cassandra_url)}" in capfd.readouterr().out
    for command in ("up", "up", "status"):
        assert run_command_line(["migrate", command, *store]) == 0
        assert capfd.readouterr().out.endswith(", as this release needs\n")
    assert run_command_line(["migrate", "sql", *store]) == 0
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (["--store", "memory:"], ERROR, "a store in memory has no schema"),
        (["--store", "sqlit:///x"], ERROR, "no store is called 'sqlit'"),
        (["--store", "sqlite:///"], ERROR, "names no file"),
        (["--config", "missing.toml"], USAGE, "no such file"),
        (["--store", "postgresql://127.0.0.1:1/x"], UNAVAILABLE, "127.0.0.1:1/x: Connection refused"),
        (["--store", "postgresql://127.0.0.1:1/x?sslmode=7", "--wait", "1h"], ERROR, "sslmode"),
    ],
)
def test_what_cannot_be_migrated_is_told_in_one_line(
    arguments: list[str], exit_code: int, told: str, capfd: pytest.CaptureFixture[str], database: Path
) -> None:
    assert run_command_line(["migrate", "up", *arguments]) == exit_code
    said = capfd.readouterr().err
    assert told in said
    assert said.count("\n") == 1
