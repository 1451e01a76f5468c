"""A broker that cannot start says why in one clear line, and ends with 1; with 2 if its settings are to blame."""

import errno
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, serve_command, sqlite_url


def complaint(store: str, *flags: str, exit_code: int = 1) -> str:
    """Start a broker that must fail; return what it says."""
    ended = subprocess.run(
        serve_command(store, *flags), capture_output=True, text=True, timeout=SAFETY_S, env=clean_environment()
    )
    assert ended.returncode == exit_code
    assert ended.stdout == ""
    assert re.fullmatch(r"trio-broker: .+\n", ended.stderr), ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    ("flag", "words"), [("--listen", "cannot listen on {}"), ("--metrics-listen", "cannot serve metrics on {}")]
)
def test_a_port_that_is_taken_is_named(flag: str, words: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = complaint("memory:", flag, address)
    assert words.format(address) in said
    assert os.strerror(errno.EADDRINUSE) in said


def test_a_file_that_another_broker_has_open_is_refused(
    sqlite_broker: Callable[..., BrokerProcess], tmp_path: Path, database: Path
) -> None:
    with sqlite_broker() as first:
        said = complaint(sqlite_url(tmp_path))
        assert str(database) in said
        assert f"pid {first.pid}" in said
        first.stop()
    with sqlite_broker() as second:
        second.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_an_address_that_others_can_reach_needs_a_flag_which_the_refusal_names(host: str) -> None:
    said = complaint("memory:", "--listen", f"{host}:0", exit_code=2)
    assert f"{host}:0" in said
    assert "--allow-anonymous" in said


def test_an_address_that_this_machine_has_not_is_named() -> None:
    assert "192.0.2.1:0" in complaint("memory:", "--listen", "192.0.2.1:0", "--allow-anonymous")


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("sqlite:////nowhere/broker.db", "/nowhere is not a directory"),
        ("sqlite://broker.db", "sqlite:///relative.db"),
        ("mysql://localhost/broker", "no store is called 'mysql'"),
    ],
)
def test_a_store_that_cannot_be_opened_is_named(store: str, words: str) -> None:
    assert words in complaint(store)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, database: Path) -> None:
    database.write_text("my notes, not yours\n" * 100)
    before = database.read_bytes()
    assert str(database) in complaint(sqlite_url(tmp_path))
    assert database.read_bytes() == before


def test_a_broker_says_how_durable_it_is_when_it_is_ready(sqlite_broker: Callable[..., BrokerProcess]) -> None:
    with sqlite_broker() as broker:
        ready = broker.wait_logged("ready")
        broker.stop()
    assert ready["durability"] == "journal_mode=wal synchronous=full"
