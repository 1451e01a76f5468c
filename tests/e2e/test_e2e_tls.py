"""TLS as an operator runs it: certificates that are renewed under a broker of two workers."""

import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_broker import SAFETY_S, BrokerProcess, clean_environment, eventually
from postgres_databases import Databases
from tls_files import Files, days_from_now

RELOADED = "tls_reloaded"
EXPIRY = "trio_broker_tls_certificate_expiry_timestamp_seconds"
SUCCESSFUL = "trio_broker_tls_last_reload_successful"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def flags(files: Files) -> list[str]:
    return ["--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-client-ca", str(files.ca)]


def certificate_of(broker: BrokerProcess, files: Files) -> str:
    """Return the number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.client_cert, files.client_key)
    context.set_alpn_protocols(["h2"])
    host, port = broker.address.split(":")
    with (
        socket.create_connection((host, int(port)), 30) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as encrypted,
    ):
        return str(encrypted.getpeercert()["serialNumber"])


def of_workers(broker: BrokerProcess, name: str) -> list[float]:
    return [broker.metric(name, worker=worker) for worker in ("0", "1")]


def test_every_worker_uses_a_renewed_certificate(files: Files, postgres: Databases) -> None:
    with postgres.new() as url, BrokerProcess(url, "--workers", "2", *flags(files)) as broker:
        before = certificate_of(broker, files)
        expires = days_from_now(3)
        files.renew(expires=expires)
        eventually(lambda: of_workers(broker, EXPIRY), [expires.timestamp()] * 2)
        first = certificate_of(broker, files)
        assert first != before
        files.key.write_text("half a key")
        eventually(lambda: of_workers(broker, SUCCESSFUL), [0, 0])
        assert certificate_of(broker, files) == first
        broker.terminate()
        assert broker.wait() == 0
    failures = [line for line in broker.log if line["event"] == "tls_not_reloaded"]
    assert sorted(str(line["worker"]) for line in failures) == ["0", "1"], "each said it once"
    assert all(str(files.cert) in str(line["why"]) for line in failures)


def test_sighup_lets_every_worker_read_its_certificates_again(files: Files, postgres: Databases) -> None:
    with postgres.new() as url, BrokerProcess(url, "--workers", "2", *flags(files)) as broker:
        broker.system().send_signal(signal.SIGHUP)
        eventually(lambda: sum(line["event"] == RELOADED for line in [*broker.log]), 2)
        broker.stop()


def test_sighup_lets_a_broker_read_its_certificates_again(files: Files) -> None:
    with BrokerProcess("memory:", *flags(files)) as broker:
        broker.system().send_signal(signal.SIGHUP)
        broker.wait_logged(RELOADED)
        broker.stop()


def test_without_certificates_sighup_ends_a_broker_as_it_does_any_program() -> None:
    """It is what a shell sends when its terminal is closed."""
    with BrokerProcess("memory:") as broker:
        broker.system().send_signal(signal.SIGHUP)
        assert broker.wait() == -signal.SIGHUP


def run_command(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run the command line; return its exit code and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "trio_broker", *arguments],
        env=clean_environment() | {f"TRIO_BROKER_{name}": value for name, value in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SAFETY_S,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_commands_of_clients_speak_tls(files: Files) -> None:
    with BrokerProcess("memory:", *flags(files)) as broker:
        where = ("--server", broker.address)
        own = (
            *where,
            "--tls-ca",
            str(files.ca),
            "--tls-cert",
            str(files.client_cert),
            "--tls-key",
            str(files.client_key),
        )
        assert run_command("pub", "orders", "hello", "--keep", *own) == (0, "1\n")
        assert run_command("get", "orders", "1", *own) == (0, "hello")
        variables = {
            "SERVER": broker.address,
            "CLIENT_TLS_CA": str(files.ca),
            "CLIENT_TLS_CERT": str(files.client_cert),
            "CLIENT_TLS_KEY": str(files.client_key),
        }
        assert run_command("sub", "orders", "--from", "1", "--count", "1", **variables) == (
            0,
            "subscribed to orders\nhello\n",
        )
        code, told = run_command("get", "orders", "1", *where, "--tls-ca", str(files.ca))
        assert code == 4
        assert "it serves only clients that show a certificate" in told
        code, told = run_command("get", "orders", "1", *where)
        assert code == 4
        assert "This port speaks TLS" in told
        code, told = run_command("get", "orders", "1", *where, "--tls-ca", str(files.key))
        assert code == 2
        assert f"cannot use the authority {files.key}" in told
        code, told = run_command("get", "orders", "1", *where, "--tls-key", str(files.key))
        assert code == 2
        assert "give --tls-cert too" in told
        broker.stop()


def test_the_log_says_which_client_a_call_was_of(files: Files) -> None:
    files.issue_client("orders.example.org")
    with BrokerProcess("memory:", *flags(files)) as broker:
        own = ("--tls-ca", str(files.ca), "--tls-cert", str(files.client_cert), "--tls-key", str(files.client_key))
        code, _ = run_command("pub", "no subject", "x", "--server", broker.address, *own)
        assert code == 1
        assert broker.wait_logged("call_failed")["client"] == "orders.example.org"
        broker.stop()
