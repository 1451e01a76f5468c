"""``trio-broker subject``: tables, JSON, and asking before anything is dropped."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from served_broker import COMMAND, SAFETY_S, serving

from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import ERROR, USAGE
from trio_broker.client import connect


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        trio.run(_fill, address)
        yield address


async def _fill(address: str) -> None:
    async with connect(address) as client:
        for n in range(12):
            await client.publish(f"many.{n:02}", b"x", None)
        for subject in ("orders", "orders", "purged", "purged", "removed", "asked"):
            await client.publish(subject, b"x", None)
        await client.publish("live", b"x")


def run(capfd: pytest.CaptureFixture[str], server: str, *arguments: str) -> tuple[int, str, str]:
    code = run_command_line(["subject", *arguments, "--server", server])
    return code, *capfd.readouterr()


def test_ls_prints_a_table(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, server, "ls", "--prefix", "o")
    assert code == 0
    titles, row = out.splitlines()
    assert titles.split("  ")[0] == "SUBJECT"
    assert row.split()[:3] == ["orders", "1", "2"]
    assert row.split()[-1] == "0"


def test_ls_goes_through_all_pages_up_to_the_limit(
    server: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_broker.cli.subject.PAGE_SIZE", 5)
    names = [f"many.{n:02}" for n in range(12)]
    for limit, expected in (((), names), (("--limit", "7"), names[:7]), (("--limit", "50"), names)):
        code, out, _ = run(capfd, server, "ls", "--prefix", "many.", "--json", *limit)
        assert code == 0
        assert [json.loads(line)["subject"] for line in out.splitlines()] == expected


def test_json_says_all(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capfd, server, "info", "orders", "--json")
    found = json.loads(out)
    assert found["first_published_at"].endswith("Z")
    assert found["last_published_at"] >= found["first_published_at"]
    del found["first_published_at"], found["last_published_at"]
    assert found == {"subject": "orders", "first_id": 1, "last_id": 2, "subscribers": 0}
    _, out, _ = run(capfd, server, "info", "unheard", "--json")
    assert json.loads(out)["last_id"] == 0
    _, out, _ = run(capfd, server, "info", "live")
    assert out.splitlines()[1].split() == ["live", "-", "1", "-", "-", "0"]


def test_purge_and_rm_want_to_know_that_it_is_meant(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("purge", "rm"):
        code, out, err = run(capfd, server, name, "orders")
        assert (code, out) == (USAGE, "")
        assert "pass --yes" in err
    _, out, _ = run(capfd, server, "info", "orders", "--json")
    assert json.loads(out)["first_id"] == 1


def test_purge_drops_up_to_an_id_or_everything(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, server, "purge", "purged", "--until", "1", "--yes", "--json")
    assert (code, json.loads(out)["first_id"]) == (0, 2)
    code, out, err = run(capfd, server, "purge", "purged", "--until", "3", "--yes")
    assert code != 0
    assert "id 3 was never assigned in 'purged'; its last id is 2" in err
    code, out, _ = run(capfd, server, "purge", "purged", "--yes", "--json")
    assert (code, json.loads(out)["first_id"], json.loads(out)["last_id"]) == (0, 3, 2)


def test_rm_takes_a_subject_off_the_list(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, server, "rm", "removed", "--expected-last-id", "7", "--yes")
    assert code == ERROR
    assert "the last id of 'removed' is 1, not 7: nothing was deleted" in err
    assert run(capfd, server, "rm", "removed", "--expected-last-id", "1", "--yes")[0] == 0
    code, out, _ = run(capfd, server, "ls", "--prefix", "removed", "--json")
    assert (code, out) == (0, "")


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_on_a_terminal_it_asks(server: str, answer: str, left: int, capfd: pytest.CaptureFixture[str]) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, f"{answer}\n".encode())
    command = [*COMMAND, "subject", "rm", "asked", "--server", server]
    done = subprocess.run(command, stdin=terminal, capture_output=True, check=False, timeout=SAFETY_S)
    os.close(terminal)
    os.close(keyboard)
    assert b"Drop 'asked' with all its messages" in done.stderr
    assert done.returncode == (0 if answer == "y" else 130)
    _, out, _ = run(capfd, server, "ls", "--prefix", "asked", "--json")
    assert len(out.splitlines()) == left


def test_nobody_answers(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capfd, f"unix:{tmp_path}/none", "ls")
    assert code == 4
    assert err
