"""``trio-broker health``: against brokers that are ready, that are not, and against what is no broker."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_cli_serve import serving

from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import UNAVAILABLE, USAGE


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Serve one answer for everything; the block gets the address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_ready_broker_is_healthy_and_says_on_which_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving("--store", f"sqlite:///{tmp_path / 'broker.db'}") as broker:
        monkeypatch.setenv("TRIO_BROKER_METRICS_LISTEN", broker.metrics)
        assert run_command_line(["health"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "ready"
    assert out[1].startswith("store: SQLite")


def test_a_broker_that_listens_everywhere_is_asked_on_loopback(capfd: pytest.CaptureFixture[str]) -> None:
    with answering(200, b"ready\n") as address:
        port = address.rpartition(":")[2]
        assert run_command_line(["health", "--metrics-listen", f"0.0.0.0:{port}"]) == 0
    assert capfd.readouterr().out == "ready\n"


def test_a_broker_that_is_not_ready_is_told_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with answering(503, b"the store has been away for 7 s\nstore: SQLite\n") as address:
        assert run_command_line(["health", "--metrics-listen", address]) == UNAVAILABLE
    assert capfd.readouterr().err == "trio-broker: the store has been away for 7 s\n"


def test_what_is_no_broker_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with answering(404, b"") as address:
        assert run_command_line(["health", "--metrics-listen", address]) == UNAVAILABLE
    assert capfd.readouterr().err == f"trio-broker: http://{address}/readyz answers 404 Not Found\n"


def test_nobody_there_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    assert run_command_line(["health", "--metrics-listen", f"127.0.0.1:{port}"]) == UNAVAILABLE
    assert "Connection refused" in capfd.readouterr().err


def test_one_who_does_not_answer_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert run_command_line(["health", "--metrics-listen", address, "--timeout", "50ms"]) == UNAVAILABLE
    assert capfd.readouterr().err == f"trio-broker: no answer from {address} within 0.05 s\n"


def test_settings_that_only_serve_completes_do_not_disturb(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in the image: its variables say where to listen, and the flag of ``serve`` that this is meant."""
    monkeypatch.setenv("TRIO_BROKER_LISTEN", "0.0.0.0:50051")
    with answering(200, b"ready\n") as address:
        assert run_command_line(["health", "--metrics-listen", address]) == 0


def test_a_wrong_address_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["health", "--metrics-listen", "nowhere"]) == USAGE
    assert capfd.readouterr().err.startswith("trio-broker: --metrics-listen: ")
