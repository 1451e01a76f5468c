"""The compose files: what they say, and the stack that they describe (make image-check)."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc
import pytest
import trustme
import yaml
from e2e_broker import SAFETY_S, eventually
from e2e_compose import BASE, DOCKER, Stack, go_program, read_project
from e2e_containers import build_image, podman
from e2e_journal import Journal, check_recovered, check_whole
from e2e_peers import OWN_CONNECTION, GrpcioStubs
from e2e_retrying import Retrying, publish_meanwhile

from trio_broker._proto import broker_pb2 as pb

pytestmark = pytest.mark.containers

OVERRIDES = sorted(DOCKER.glob("compose.*.yaml"))
CASSANDRAS = {"cassandra", "scylla"}
"""Services that write to their own configuration, or run as root: not hardened by us."""


@pytest.fixture(params=[None, *OVERRIDES], ids=lambda file: "base" if file is None else file.name.split(".")[1])
def files(request: pytest.FixtureRequest) -> list[Path]:
    """The base, alone and with each override."""
    return [BASE] if request.param is None else [BASE, request.param]


def test_services_are_bounded_hardened_pinned_and_only_on_loopback(files: list[Path]) -> None:
    services = read_project(*files)["services"]
    for name, service in services.items():
        assert {"mem_limit", "pids_limit"} <= service.keys()
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports") or [])
        if name not in CASSANDRAS:
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
        if name not in ("broker", "secrets"):
            tag = service["image"].partition(":")[2]
            assert any(character.isdigit() for character in tag), "a version"
        if name != "secrets":
            assert "healthcheck" in service
            assert service["restart"] == "unless-stopped"


def test_no_service_has_a_secret_in_its_environment(files: list[Path]) -> None:
    for service in read_project(*files)["services"].values():
        for name, value in (service.get("environment") or {}).items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/")
            assert "@" not in value, "a URL with a password, or with a user who needs one"


def test_a_secret_is_where_its_reader_is_and_nowhere_else(files: list[Path]) -> None:
    project = read_project(*files)
    mounts = Counter(
        volume["source"]
        for name, service in project["services"].items()
        if name != "secrets"
        for volume in service.get("volumes") or []
        if volume["source"].endswith("secrets")
    )
    assert mounts.keys() <= {"broker-secrets", "postgres-secrets", "grafana-secrets"} <= project["volumes"].keys()
    assert set(mounts.values()) == {1}


def test_nothing_is_fetched_from_postgresql_where_it_is_not_run(files: list[Path]) -> None:
    services = read_project(*files)["services"]
    assert "postgres" in services or not [each for each in services.values() if "postgres" in each["image"]]


def test_prometheus_is_told_of_each_broker_by_name(files: list[Path]) -> None:
    project = read_project(*files)
    mounts = {volume["target"]: volume["source"] for volume in project["services"]["prometheus"]["volumes"]}
    (told,) = yaml.safe_load(Path(mounts["/etc/prometheus/brokers.yml"]).read_text())
    replicas = project["services"]["broker"].get("deploy", {}).get("replicas")
    names = [f"{project['name']}-broker-{number + 1}" for number in range(replicas)] if replicas else ["broker"]
    assert told["targets"] == [f"{name}:9464" for name in names]


def test_grafana_is_given_what_its_settings_name() -> None:
    grafana = read_project(BASE)["services"]["grafana"]
    mounted = {volume["target"]: Path(volume["source"]) for volume in grafana["volumes"] if volume["type"] == "bind"}
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounted[str(home.parent)] / home.name).is_file()
    provisioning = mounted["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "trio-broker.yaml").read_text())["providers"]
    assert provider["options"]["path"] == str(home.parent)
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_envoy_takes_its_configuration() -> None:
    subprocess.run([go_program("envoy_config"), DOCKER / "envoy" / "envoy.yaml"], check=True)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The stack on PostgreSQL."""
    build_image()
    with Stack(BASE) as stack:
        yield stack


def test_the_stack_comes_up_and_prometheus_scrapes_the_broker(stack: Stack) -> None:
    assert {"broker", "postgres", "prometheus"} <= set(stack.services)
    eventually(lambda: query(stack, 'up{job="trio-broker"}'), ["1"])
    assert [group["name"] for group in ask(stack, "rules")["groups"]], "the rules are read"


def test_a_broker_that_has_ended_is_missed_and_not_forgotten(stack: Stack) -> None:
    down = 'count by (instance) (ALERTS{alertname="TrioBrokerDown"})'
    eventually(lambda: query(stack, 'up{job="trio-broker"}'), ["1"])
    assert query(stack, down) == []
    with stack.stopped("broker"):
        eventually(lambda: query(stack, 'up{job="trio-broker"}'), ["0"])
        eventually(lambda: query(stack, down), ["1"])


def test_a_restart_under_load_on_postgresql_is_no_error_for_clients_that_retry(stack: Stack) -> None:
    journal, peer = Journal(), Retrying()
    address = f"{stack.address}:50051"
    peer.run(publish_meanwhile, address, journal, lambda: stack.restart("broker"))
    peer.run(check_recovered, address, journal)
    peer.run(check_whole, address, journal)


def test_passwords_are_made_once_and_are_in_no_environment(stack: Stack) -> None:
    container = stack.container("broker")
    url = podman("exec", container, "cat", "/run/secrets/store")
    assert url.startswith("postgresql://trio_broker:")
    password = url.split(":")[2].partition("@")[0]
    assert len(password) == 48
    assert podman("exec", container, "ls", "/run/secrets") == "store"
    assert podman("exec", stack.container("postgres"), "ls", "/run/secrets") == "postgres_password"
    assert password not in podman("inspect", container)
    podman("start", "--attach", stack.container("secrets"))
    assert podman("exec", container, "cat", "/run/secrets/store") == url


def test_with_tls_only_clients_with_certificates_are_served(tmp_path: Path) -> None:
    """On SQLite, so that its override is run too."""
    build_image()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "client-ca.crt")
    server, client = authority.issue_cert("broker.example.org"), authority.issue_cert("client@example.org")
    (tmp_path / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(tmp_path / "tls.key")
    for file in tmp_path.iterdir():
        os.chown(file, 10001, 10001)
        file.chmod(0o400)
    root = authority.cert_pem.bytes()
    with_certificate = grpc.ssl_channel_credentials(
        root, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    )
    overrides = [DOCKER / "compose.sqlite.yaml", DOCKER / "compose.tls.yaml"]
    with Stack(BASE, *overrides, services=["broker"], TRIO_BROKER_TLS_DIR=str(tmp_path)) as stack:
        assert publish(stack, with_certificate) == 1
        with pytest.raises(grpc.RpcError) as refused:
            publish(stack, grpc.ssl_channel_credentials(root))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert publish(stack, with_certificate) == 2


def publish(stack: Stack, credentials: grpc.ChannelCredentials) -> int:
    options = (*OWN_CONNECTION, ("grpc.ssl_target_name_override", "broker.example.org"))
    with grpc.secure_channel(f"{stack.address}:50051", credentials, options) as channel:
        request = pb.PublishRequest(subject="orders", body=b"tea", keep=True)
        return GrpcioStubs(channel).publish(request, timeout=SAFETY_S).id


def query(stack: Stack, expression: str) -> list[str]:
    """The values that its Prometheus has now."""
    return [sample["value"][1] for sample in ask(stack, f"query?{urlencode({'query': expression})}")["result"]]


def ask(stack: Stack, path: str) -> dict[str, list[dict[str, str]]]:
    with urlopen(f"http://{stack.address}:9090/api/v1/{path}", timeout=SAFETY_S) as answer:
        data: dict[str, list[dict[str, str]]] = json.load(answer)["data"]
    return data
