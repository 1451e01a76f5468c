"""``trio-broker pub`` against a broker of ours: what a broker by grpcio does not do. The rest: test_cli.py."""

from collections.abc import Iterator

import pytest
from served_broker import serving

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
