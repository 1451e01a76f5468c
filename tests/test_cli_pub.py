"""``trio-broker pub`` against a broker of ours: what a broker by grpcio does not do. The rest: test_cli.py."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from served_broker import COMMAND, SAFETY_S, serving

from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import ERROR, USAGE


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        yield address


def test_a_message_is_published_only_after_the_one_expected(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    def pub(expected: str, *more: str) -> tuple[int, str, str]:
        code = run_command_line(["pub", "orders", "x", "--expected-last-id", expected, "--server", server, *more])
        return code, *capfd.readouterr()

    assert pub("0") == (0, "1\n", "")
    code, out, err = pub("0")
    assert (code, out) == (ERROR, "")
    assert "1" in err
    assert pub("1") == (0, "2\n", "")


def test_an_expected_id_is_for_one_message(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["pub", "orders", "--expected-last-id", "1", "--server", server]) == USAGE
    assert "--expected-last-id is for one message: give BODY" in capfd.readouterr().err


def test_a_terminal_shows_how_many_are_published(server: str) -> None:
    main_fd, terminal_fd = os.openpty()
    done = subprocess.run(
        [*COMMAND, "pub", "lines", "--server", server],
        input=b"x\n" * 1_234,
        stdout=subprocess.PIPE,
        stderr=terminal_fd,
        check=True,
        timeout=SAFETY_S,
    )
    os.close(terminal_fd)
    shown = os.read(main_fd, 2**20)
    os.close(main_fd)
    assert done.stdout.split() == [b"%d" % n for n in range(1, 1_235)]
    assert b"published" in shown
    assert b"1234" in shown


def test_nothing_is_shown_where_the_ids_are(server: str) -> None:
    main_fd, terminal_fd = os.openpty()
    command = [*COMMAND, "pub", "few", "--server", server]
    subprocess.run(command, input=b"x\n" * 3, stdout=terminal_fd, stderr=terminal_fd, check=True, timeout=SAFETY_S)
    os.close(terminal_fd)
    assert os.read(main_fd, 4096).split() == [b"1", b"2", b"3"]
    os.close(main_fd)
