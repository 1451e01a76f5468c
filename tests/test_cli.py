"""The commands that talk to a broker, against a broker by grpcio; and what every command does with mistakes."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpcio_broker import SAFETY_S, GrpcioBroker, serving

from trio_broker._version import __version__
from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import Failure, exit_code_of
from trio_broker.errors import (
    BrokerClosed,
    BrokerError,
    ConnectionLost,
    Draining,
    ExpiredId,
    InvalidId,
    InvalidSubject,
    MessageTooLarge,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    SlowConsumer,
    StorageFull,
    StorageUnavailable,
)

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrpcioBroker]:
    with serving() as broker:
        monkeypatch.setenv("TRIO_BROKER_SERVER", f"127.0.0.1:{broker.port}")
        yield broker


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; what it printed is ``out`` and ``err``."""

    def run(*arguments: str, stdin: bytes = b"") -> SimpleNamespace:
        file = tmp_path / "stdin"
        file.write_bytes(stdin)
        with file.open() as opened:
            monkeypatch.setattr("sys.stdin", opened)
            code = run_command_line(arguments)
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.decode())

    return run


@pytest.mark.usefixtures("broker")
def test_a_message_is_published_and_fetched(run: Run) -> None:
    published = run("pub", "orders", "hello", "--keep", "-H", "k:v:w", "-H", "bin:\udcff", "-H", "none:")
    assert (published.code, published.out, published.err) == (0, b"1\n", "")
    assert run("get", "orders", "1").out == b"hello"
    found = json.loads(run("get", "orders", "1", "--json").out)
    assert found.pop("published_at").endswith("Z")
    assert found == {
        "subject": "orders",
        "id": 1,
        "body": "hello",
        "headers": {"k": "v:w", "none": ""},
        "headers_base64": {"bin": "/w=="},
    }


@pytest.mark.usefixtures("broker")
def test_a_body_may_be_any_bytes(run: Run) -> None:
    assert run("pub", "orders", "a\udcff\udc80b", "--expiration", "60s").code == 0
    assert run("get", "orders", "1").out == b"a\xff\x80b"


@pytest.mark.usefixtures("broker")
def test_what_is_not_there_ends_with_3(run: Run) -> None:
    run("pub", "orders", "not kept")
    expired, invalid = run("get", "orders", "1"), run("get", "orders", "2")
    assert (expired.code, invalid.code) == (3, 3)
    assert (expired.out, invalid.out) == (b"", b"")
    assert expired.err == "trio-broker: id 1 is no longer kept\n"
    assert invalid.err == "trio-broker: no id 2\n"


@pytest.mark.parametrize("arguments", [("orders",), ("orders", "-")])
@pytest.mark.usefixtures("broker")
def test_every_line_of_stdin_is_a_message(run: Run, arguments: tuple[str, ...]) -> None:
    published = run("pub", *arguments, "--keep", stdin=b"one\n\n\xff\r\nlast")
    assert (published.code, published.out) == (0, b"1\n2\n3\n4\n")
    bodies = [run("get", "orders", str(id_)).out for id_ in range(1, 5)]
    assert bodies == [b"one", b"", b"\xff\r", b"last"]


@pytest.mark.usefixtures("broker")
def test_no_lines_are_no_messages(run: Run) -> None:
    nothing = run("pub", "orders", stdin=b"")
    assert (nothing.code, nothing.out, nothing.err) == (0, b"", "")


@pytest.mark.usefixtures("broker")
def test_more_lines_than_may_be_in_flight_each_get_an_id(run: Run) -> None:
    published = run("pub", "orders", stdin=b"x\n" * 11_000)
    assert published.code == 0
    assert list(map(int, published.out.split())) == list(range(1, 11_001))


@pytest.mark.usefixtures("broker")
def test_json_lines_name_their_subject_or_take_the_argument(run: Run) -> None:
    lines = [b'{"subject": "other", "body_base64": "/w==", "keep": true}', b'{"body": "x", "expiration": 9}']
    assert run("pub", "--json", "orders", stdin=b"\n".join(lines)).out == b"1\n1\n"
    assert run("get", "other", "1").out == b"\xff"
    assert run("get", "orders", "1").out == b"x"
    assert run("pub", "--json", "-", stdin=b'{"subject": "other", "body": "y"}').out == b"2\n"


@pytest.mark.usefixtures("broker")
def test_what_get_prints_as_json_can_be_published(run: Run) -> None:
    run("pub", "orders", "hello", "--keep")
    line = run("get", "orders", "1", "--json").out
    assert run("pub", "--json", "--keep", stdin=line).out == b"2\n"
    assert run("get", "orders", "2").out == b"hello"


@pytest.mark.usefixtures("broker")
def test_a_bad_line_is_told_by_its_number_and_what_was_published_stays_printed(run: Run) -> None:
    failed = run("pub", "--json", "orders", stdin=b'{"body": "a"}\n{"body": "b"}\n{"bdoy": "c"}\n{"body": "d"}\n')
    assert (failed.code, failed.out) == (1, b"1\n2\n")
    assert failed.err == "trio-broker: line 3: unknown key 'bdoy'; did you mean 'body'?; published 2\n"


@pytest.mark.usefixtures("broker")
def test_blank_lines_of_json_are_passed_over_and_counted(run: Run) -> None:
    failed = run("pub", "--json", "orders", stdin=b'\n{"body": "a"}\r\n \n\n{"bdoy": "c"}\n')
    assert (failed.code, failed.out) == (1, b"1\n")
    assert failed.err.startswith("trio-broker: line 5: ")


@pytest.mark.usefixtures("broker")
def test_white_space_after_the_colon_of_a_header_is_dropped_and_no_other(run: Run) -> None:
    run("pub", "orders", "x", "--keep", "-H", "a: 1", "-H", "b: \t x y ", "-H", "c: ", "-H", " d :2")
    headers = json.loads(run("get", "orders", "1", "--json").out)["headers"]
    assert headers == {"a": "1", "b": "x y ", "c": "", " d ": "2"}


@pytest.mark.parametrize("command", ["pub", "sub", "get"])
def test_help_names_the_variable_of_the_server(run: Run, command: str) -> None:
    assert b"TRIO_BROKER_SERVER" in run(command, "--help").out


@pytest.mark.usefixtures("broker")
def test_a_line_that_the_broker_refuses_is_told_and_every_acknowledged_id_is_printed(run: Run) -> None:
    lines = [b'{"body": "x"}'] * 2 + [b'{"body": "x", "subject": "fail.DRAINING"}'] + [b'{"body": "x"}'] * 20
    failed = run("pub", "--json", "orders", stdin=b"\n".join(lines))
    ids = failed.out.split()
    assert failed.code == 4
    assert len(ids) >= 2
    assert failed.err == f"trio-broker: line 3: as asked: DRAINING ü 100%; published {len(ids)}\n"


@pytest.mark.usefixtures("broker")
def test_several_failures_are_summed_up_in_one_line(run: Run) -> None:
    lines = [b'{"body": "x", "subject": "bare"}'] * 5
    failed = run("pub", "--json", stdin=b"\n".join(lines))
    assert (failed.code, failed.out) == (4, b"")
    assert failed.err.startswith("trio-broker: line 1: a proxy says no; ")
    assert failed.err.count("\n") == 1
    assert "published 0; not known whether published: " in failed.err


@pytest.mark.usefixtures("broker")
def test_ids_are_printed_as_they_come(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line is written only when the id of the one before was read."""
    stdin_reader, stdin_writer = os.pipe()
    stdout_reader, stdout_writer = os.pipe()
    ids: list[bytes] = []

    def talk() -> None:
        for number in range(3):
            os.write(stdin_writer, b"line %d\n" % number)
            ids.append(os.read(stdout_reader, 100))
        os.close(stdin_writer)

    thread = threading.Thread(target=talk)
    with os.fdopen(stdin_reader) as stdin, os.fdopen(stdout_writer, "w") as stdout, os.fdopen(stdout_reader):
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        thread.start()
        code = run_command_line(["pub", "orders"])
        thread.join(SAFETY_S)
    assert (code, ids) == (0, [b"1\n", b"2\n", b"3\n"])


def test_subscribers_get_what_is_published_once_they_are_told_to_be_subscribed(broker: GrpcioBroker, run: Run) -> None:
    publisher = publish_when_subscribed(broker, [b"one", b"\xff", b"three"])
    subscribed = run("sub", "orders", "--count", "2")
    publisher.join(SAFETY_S)
    assert (subscribed.code, subscribed.out, subscribed.err) == (0, b"one\n\xff\n", "subscribed to orders\n")


def test_subscribers_choose_a_form(broker: GrpcioBroker, run: Run) -> None:
    publisher = publish_when_subscribed(broker, [b"one", b"\xff"])
    assert run("sub", "orders", "--count", "2", "--raw").out == b"one\xff"
    publisher.join(SAFETY_S)
    publisher = publish_when_subscribed(broker, [b"three", b"\xfe"])
    lines = run("sub", "orders", "--count", "2", "--json").out.splitlines()
    publisher.join(SAFETY_S)
    common = {"subject": "orders", "headers": {}}
    assert [json.loads(line) for line in lines] == [
        {**common, "id": 3, "body": "three", "published_at": "2023-11-14T22:13:20.000002Z"},
        {**common, "id": 4, "body_base64": "/g==", "published_at": "2023-11-14T22:13:20.000003Z"},
    ]


def test_a_subscription_that_is_cut_prints_what_came_before_and_tells(broker: GrpcioBroker, run: Run) -> None:
    publisher = publish_when_subscribed(broker, [b"one", b"be slow"])
    cut = run("sub", "orders")
    publisher.join(SAFETY_S)
    assert (cut.code, cut.out, cut.err) == (1, b"one\n", "subscribed to orders\ntrio-broker: too slow\n")


def publish_when_subscribed(broker: GrpcioBroker, bodies: list[bytes]) -> threading.Thread:
    def publish() -> None:
        broker.wait_seen("subscribed")
        for body in bodies:
            broker.append("orders", body)

    thread = threading.Thread(target=publish)
    thread.start()
    return thread


@pytest.mark.parametrize("command", [("pub", "orders", "x"), ("get", "orders", "1"), ("sub", "orders")])
def test_no_broker_ends_with_4(run: Run, command: tuple[str, ...]) -> None:
    with serving() as gone:
        server = f"127.0.0.1:{gone.port}"
    failed = run(*command, "--server", server)
    assert (failed.code, failed.out) == (4, b"")
    assert failed.err == f"trio-broker: cannot connect to {server}: Connection refused\n"


@pytest.mark.parametrize("command", [("pub", "hang", "x"), ("get", "hang", "1"), ("sub", "hang")])
def test_no_answer_in_time_ends_with_124(broker: GrpcioBroker, run: Run, command: tuple[str, ...]) -> None:
    failed = run(*command, "--timeout", "50ms")
    assert (failed.code, failed.out) == (124, b"")
    and_then = "; not known whether it is published" if command[0] == "pub" else ""
    assert failed.err == f"trio-broker: no answer from 127.0.0.1:{broker.port} within 0.05 s (--timeout){and_then}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pbu"], "No such command 'pbu'. Did you mean 'pub'? Try 'trio-broker --help'."),
        (["zzz"], "No such command 'zzz'."),
        (["pub", "orders", "x", "--kep"], "'--keep'"),
        (["pub"], "which SUBJECT? Try 'trio-broker pub --help'."),
        (["pub", "a", "b", "c"], "unexpected extra argument"),
        (["pub", "a", "b", "--keep", "--expiration", "5"], "either --keep or --expiration"),
        (["pub", "a", "b", "--expiration", "1.5"], "whole number of seconds"),
        (["pub", "a", "b", "-H", "novalue"], "write name:value"),
        (["pub", "a", "b", "-H", "k:1", "-H", "k:2"], "a header is given twice: 'k'"),
        (["pub", "a", "--key", "k"], "--key is for one message"),
        (["pub", "a", "b", "--key", ""], "it is empty: leave --key out"),
        (["pub", "a", "--expected-last-id", "0"], "--expected-last-id is for one message"),
        (["pub", "a", "b", "--expected-last-id", "-1"], "not in the range"),
        (["pub", "a", "b", "--json"], "the messages come from stdin"),
        (["pub", "a\udcff", "b"], "not UTF-8"),
        (["pub", "a", "b", "--server", "nowhere"], "not an address"),
        (["pub", "a", "b", "--timeout", "soon"], "not a duration"),
        (["sub"], "Missing argument 'SUBJECT'."),
        (["sub", "a", "--raw", "--json"], "either --raw or --json"),
        (["sub", "a", "--count", "0"], "not in the range"),
        (["sub", "a", "--from", str(2**63)], "not in the range"),
        (["sub", "a", "--last", str(2**63)], "not in the range"),
        (["sub", "a", "--since", "800000d"], "no date so long ago"),
        (["sub", "a", "--since", "99999999999h"], "no date so long ago"),
        (["get", "a", "one"], "'one' is not a valid integer"),
        (["get", "a", str(2**63)], "not in the range"),
    ],
)
def test_usage_errors_are_one_line_and_end_with_2(run: Run, arguments: list[str], text: str) -> None:
    wrong = run(*arguments)
    assert (wrong.code, wrong.out) == (2, b"")
    assert wrong.err.startswith("trio-broker: ")
    assert wrong.err.count("\n") == 1
    assert text in wrong.err


def test_without_a_command_help_is_shown_on_stderr(run: Run) -> None:
    helped = run()
    assert (helped.code, helped.out) == (2, b"")
    assert helped.err.startswith("Usage: trio-broker")
    assert run("--help").code == 0


def test_the_version(run: Run) -> None:
    assert run("version").out.decode() == f"trio-broker {__version__}\n"
    assert run("--version").out.decode() == f"trio-broker {__version__}\n"
    assert json.loads(run("version", "--json").out)["version"] == __version__


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        *((InvalidId, 3), (ExpiredId, 3), (NotApplied, 124), (OutcomeUnknown, 124), (ConnectionLost, 4)),
        *((BrokerClosed, 4), (Draining, 4), (StorageUnavailable, 4), (Overloaded, 4), (StorageFull, 1)),
        *((SlowConsumer, 1), (InvalidSubject, 1), (MessageTooLarge, 1), (BrokerError, 1), (OSError, 1), (Failure, 1)),
    ],
)
def test_what_failed_has_its_exit_code(error: type[BrokerError], exit_code: int) -> None:
    assert exit_code_of(error("text")) == exit_code
