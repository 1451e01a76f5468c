"""The installed command end to end: ``trio-broker serve`` as a process, and the other commands against it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SAFETY_S = 60  # a broken test fails instead of hanging

COMMAND = [sys.executable, "-m", "trio_broker"]
ANYWHERE = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-format", "json"]


def start(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_BROKER_")}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**environment, **variables},
    )


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **variables: str) -> tuple[int, bytes, str]:
    with start(*arguments, cwd=cwd, **variables) as process:
        try:
            out, err = process.communicate(stdin, timeout=SAFETY_S)
        finally:
            process.kill()  # one that has not ended would be waited for without end
    return process.returncode, out, err.decode()


class Broker:
    """A broker's process; its log is read until it is ready."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = start("serve", *ANYWHERE, *arguments, **variables)
        assert self.process.stderr is not None
        self.logged: list[dict[str, str]] = []
        for line in self.process.stderr:
            self.logged.append(json.loads(line))
            if self.logged[-1]["event"] == "ready":
                break
        else:
            raise AssertionError(self.logged)
        self.server = self.logged[-1]["grpc"]
        self.metrics = self.logged[-1]["metrics"]

    def run(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        return run(*arguments, stdin=stdin, TRIO_BROKER_SERVER=self.server)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return start(*arguments, TRIO_BROKER_SERVER=self.server)

    def stop(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=SAFETY_S)
        return self.process.returncode


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[Broker]:
    broker = Broker(*arguments, **variables)
    with broker.process:
        try:
            yield broker
        finally:
            broker.process.kill()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with serving("--store", "memory:") as broker:
        yield broker


def url(file: Path) -> str:
    return f"sqlite:///{file}"


def test_a_thousand_lines_are_committed_in_order_and_delivered_in_order(broker: Broker) -> None:
    with broker.start("sub", "lines", "--count", "1000") as subscriber:
        assert subscriber.stderr is not None
        assert subscriber.stderr.readline() == b"subscribed to lines\n"
        lines = b"".join(b"line %d\n" % number for number in range(1000))
        code, ids, err = broker.run("pub", "lines", "--keep", stdin=lines)
        out, _ = subscriber.communicate(timeout=SAFETY_S)
    assert (code, err) == (0, "")
    assert ids == b"".join(b"%d\n" % id_ for id_ in range(1, 1001))
    assert out == lines
    assert subscriber.returncode == 0
    assert broker.run("get", "lines", "700") == (0, b"line 699", "")


def test_what_sub_prints_as_json_pub_can_publish(broker: Broker) -> None:
    with broker.start("sub", "json", "--json", "--count", "2") as subscriber:
        assert subscriber.stderr is not None
        subscriber.stderr.readline()
        broker.run("pub", "json", "text", "-H", "k:v")
        broker.run("pub", "--json", "json", stdin=b'{"body_base64": "/w=="}')
        printed, _ = subscriber.communicate(timeout=SAFETY_S)
    copied = printed.replace(b'"subject": "json"', b'"subject": "copy"')
    assert broker.run("pub", "--json", "--keep", stdin=copied)[:2] == (0, b"1\n2\n")
    assert broker.run("get", "copy", "2")[1] == b"\xff"
    assert json.loads(broker.run("get", "copy", "1", "--json")[1])["headers"] == {"k": "v"}


def test_the_brokers_own_errors_have_their_exit_codes(broker: Broker) -> None:
    broker.run("pub", "errors", "not kept")
    assert broker.run("get", "errors", "1")[0] == 3
    assert broker.run("get", "errors", "2")[0] == 3
    code, out, err = broker.run("pub", "not a subject", "x")
    assert (code, out) == (1, b"")
    assert err.startswith("trio-broker: ")
    assert err.count("\n") == 1


def test_ctrl_c_is_quiet(broker: Broker) -> None:
    with broker.start("sub", "quiet") as subscriber:
        assert subscriber.stderr is not None
        assert subscriber.stderr.readline() == b"subscribed to quiet\n"
        subscriber.send_signal(signal.SIGINT)
        out, err = subscriber.communicate(timeout=SAFETY_S)
    assert (subscriber.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("command", ["sub", "pub"])
def test_a_closed_pipe_is_quiet(broker: Broker, command: str) -> None:
    with broker.start(command, f"pipe-{command}") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        if command == "sub":
            process.stderr.readline()
            broker.run("pub", "pipe-sub", "x")
        else:
            process.stdin.write(b"x\n")
            process.stdin.flush()
        assert process.wait(SAFETY_S) == 141
        assert process.stderr.read() == b""


def test_pub_loads_nothing_of_the_server(broker: Broker) -> None:
    program = (
        "import sys; from trio_broker.cli.main import run_command_line; run_command_line(['pub', 'light', 'x']);"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    environment = {**os.environ, "TRIO_BROKER_SERVER": broker.server}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    loaded = set(done.stderr.decode().split())
    assert "trio_broker.client" in loaded
    assert loaded.isdisjoint(
        {"persistence", "metrics", "trio_broker.serve", "trio_broker.broker", "trio_broker.config"}
    )
    assert loaded.isdisjoint({"pydantic", "structlog", "purerpc", "prometheus_client"})


def test_acknowledged_ids_outlive_the_broker_and_the_rest_is_accounted_for(tmp_path: Path) -> None:
    store = url(tmp_path / "broker.db")
    with serving("--store", store) as broker, broker.start("pub", "orders", "--keep") as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        assert publisher.stderr is not None
        publisher.stdin.write(b"first\n")
        publisher.stdin.flush()
        assert publisher.stdout.readline() == b"1\n"
        broker.process.kill()
        broker.process.wait(SAFETY_S)
        _, err = publisher.communicate(b"second\n", timeout=SAFETY_S)
    assert publisher.returncode == 4
    assert err.decode().startswith("trio-broker: line 2: ")
    assert "published 1" in err.decode()
    with serving("--store", store) as broker:
        assert broker.run("get", "orders", "1") == (0, b"first", "")
        assert broker.run("pub", "orders", "second")[1] == b"2\n"
        assert broker.stop() == 0


def test_settings_come_from_everywhere_and_odd_variables_are_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(f'store = "{url(tmp_path / "x.db")}"\ngrace = "3s"\n')
    variables = {
        "TRIO_BROKER_CONFIG": str(file),
        "TRIO_BROKER_LISTN": "x",
        "TRIO_BROKER_PORT": "tcp://10.0.0.1:50051",
        "TRIO_BROKER_BODY_MAX_BYTES": "1KiB",
    }
    with serving(**variables) as broker:
        code, _, err = broker.run("pub", "orders", "x" * 1025)
        assert (code, "1024" in err) == (1, True)
        assert broker.stop() == 0
    warnings = [line for line in broker.logged if line["level"] == "warning"]
    assert [(line["event"], line["name"], line["did_you_mean"]) for line in warnings] == [
        ("variable_unknown", "TRIO_BROKER_LISTN", "TRIO_BROKER_LISTEN")
    ]
    assert {"event": "settings_read", "file": str(file)}.items() <= broker.logged[0].items()
    assert (tmp_path / "x.db").exists()


def test_the_metrics_address_is_announced_and_serves(broker: Broker) -> None:
    with urllib.request.urlopen(f"http://{broker.metrics}/readyz", timeout=SAFETY_S) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["--store", "no-such-store:"], 1, "no-such-store"),
        (["--listen", "256.0.0.1:0", "--allow-anonymous"], 1, "(--listen)"),
        (["--metrics-listen", "256.0.0.1:0"], 1, "(--metrics-listen)"),
        (["--listen", "0.0.0.0:0"], 2, "--allow-anonymous"),
    ],
)
def test_a_broker_that_cannot_start_says_why_in_one_line(arguments: list[str], exit_code: int, text: str) -> None:
    code, out, err = run("serve", *ANYWHERE, "--store", "memory:", *arguments)
    assert (code, out) == (exit_code, b"")
    assert err.startswith("trio-broker: ")
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("name", ["persistence", "metrics"])
def test_another_package_of_the_name_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    foreign = tmp_path / f"{name}.py"
    foreign.write_text("raise AssertionError('it must not even be imported')")
    code, out, err = run("serve", *ANYWHERE, "--store", "memory:", cwd=tmp_path)
    assert (code, out) == (1, b"")
    assert err.startswith(f"trio-broker: the broker needs its own package {name!r}")
    assert str(foreign) in err
    assert err.count("\n") == 1


def test_a_question_does_not_end_a_broker_that_only_starts(tmp_path: Path) -> None:
    asking = tmp_path / "structlog.py"  # which the command imports before it can answer
    asking.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)\nraise SystemExit(7)")
    code, _, err = run("serve", *ANYWHERE, "--store", "memory:", PYTHONPATH=str(tmp_path))
    assert (code, err) == (7, "")


def test_traces_without_their_packages_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()  # hides what is installed
    code, _, err = run("serve", *ANYWHERE, "--store", "memory:", "--traces", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert err.startswith("trio-broker: --traces needs more packages (No module named 'opentelemetry.")
    assert err.endswith('): pip install "trio-broker[otel]"\n')


def test_traces_by_another_protocol_are_refused() -> None:
    code, _, err = run("serve", *ANYWHERE, "--store", "memory:", "--traces", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert code == 1
    assert err == "trio-broker: OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc': traces are sent by http/protobuf only\n"


def test_a_taken_address_is_named_with_its_flag(broker: Broker) -> None:
    code, _, err = run("serve", *ANYWHERE, "--store", "memory:", "--listen", broker.server)
    assert code == 1
    assert err.startswith(f"trio-broker: cannot listen on {broker.server}: ")
    assert err.endswith("(--listen)\n")
    code, _, err = run("serve", *ANYWHERE, "--store", "memory:", "--metrics-listen", broker.metrics)
    assert code == 1
    assert broker.metrics in err
    assert err.endswith("(--metrics-listen)\n")


def test_programs_read_all_about_a_broker_in_one_event(tmp_path: Path) -> None:
    store = url(tmp_path / "broker.db")
    with serving("--store", store) as broker:
        assert broker.stop() == 0
    (ready,) = broker.logged
    assert (ready["event"], ready["store"], ready["durable"]) == ("ready", store, True)


def test_a_broker_that_loses_messages_or_that_strangers_can_call_warns(broker: Broker) -> None:
    assert [line["event"] for line in broker.logged] == ["not_durable", "ready"]
    with serving("--store", "memory:", "--listen", "0.0.0.0:0", "--allow-anonymous") as open_to_all:
        warnings = [line["event"] for line in open_to_all.logged if line["level"] == "warning"]
    assert warnings == ["not_durable", "strangers_may_call"]


def test_people_read_lines_of_which_the_last_says_ready(tmp_path: Path) -> None:
    with start("serve", *ANYWHERE, "--log-format", "console", "--store", url(tmp_path / "broker.db")) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line.decode())
                if "ready in" in lines[-1]:
                    break
            process.terminate()
            _, after = process.communicate(timeout=SAFETY_S)
        finally:
            process.kill()
    assert "trio-broker " in lines[0]
    assert "durability  durable (journal_mode=wal synchronous=full)" in "".join(lines)
    assert "ready" not in after.decode()
