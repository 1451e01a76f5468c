"""The image: built by the Dockerfile as it is, run with every privilege taken away (make image-check)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_containers import IMAGE, ROOT, Container, build_image, podman, run
from e2e_journal import Journal, check_recovered, check_whole
from e2e_peers import PEERS, Peer, received
from e2e_retrying import Retrying, publish_meanwhile

pytestmark = pytest.mark.containers

AIO = PEERS["grpcio.aio"]


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    build_image()


@contextmanager
def volume() -> Iterator[str]:
    name = podman("volume", "create")
    try:
        yield name
    finally:
        podman("volume", "rm", "--force", name)


async def publish_and_receive(peer: Peer, address: str) -> int:
    async with peer.connect(address) as client, client.subscribe("orders.eu") as stream:
        id_ = (await client.publish("orders.eu", b"tea", keep=True)).id
        (message,) = await received(stream, 1)
        assert (message.id, message.body) == (id_, b"tea")
        return id_


async def fetch(peer: Peer, address: str, id_: int) -> bytes:
    async with peer.connect(address) as client:
        return (await client.fetch("orders.eu", id_)).body


def test_hadolint_has_nothing_to_say() -> None:
    for dockerfile in (ROOT / "docker").rglob("*Dockerfile"):
        subprocess.run(["hadolint", dockerfile], check=True)


def test_it_serves_and_stops_without_root_privileges_or_a_writable_file_system() -> None:
    with Container() as container:
        status = dict(
            line.split(":\t", 1) for line in container.execute("cat", "/proc/self/status").stdout.splitlines()
        )
        assert set(status["Uid"].split()) == {"10001"}
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert "Read-only file system" in container.execute("touch", "/opt/x").stderr
        assert AIO.run(publish_and_receive, container.address) == 1
        assert container.execute("trio-broker", "health").stdout.startswith("ready\n")
        assert container.stop() == 0
        assert '"stopped"' in container.log()


def test_messages_are_on_the_volume_and_can_be_backed_up_from_inside() -> None:
    with volume() as data:
        with Container(f"--volume={data}:/data") as container:
            AIO.run(publish_and_receive, container.address)
            done = container.execute("trio-broker", "backup", "/data/backup.db")
            assert done.returncode == 0, done.stderr
        with Container(f"--volume={data}:/data") as container:
            assert AIO.run(fetch, container.address, 1) == b"tea"
        with Container(f"--volume={data}:/data", "--env=TRIO_BROKER_STORE=sqlite:////data/backup.db") as container:
            assert AIO.run(fetch, container.address, 1) == b"tea"


def test_health_says_why_not_while_the_store_cannot_be_reached() -> None:
    options = ["--detach", "--env=TRIO_BROKER_STORE=postgresql://nobody@127.0.0.1:1/nothing"]
    container = podman("run", *options, IMAGE)
    try:
        podman("wait", "--condition=running", container)
        health = run("podman", "exec", container, "trio-broker", "health", check=False)
        assert health.returncode == 4
        assert health.stderr.startswith("trio-broker: ")
    finally:
        podman("rm", "--force", "--volumes", "--time=0", container)


def test_a_restart_under_load_is_no_error_for_clients_that_retry_and_loses_nothing(tmp_path: Path) -> None:
    journal, peer = Journal(), Retrying()
    with volume() as data, Container(f"--volume={data}:/data") as container:
        peer.run(publish_meanwhile, container.address, journal, container.restart)
        peer.run(check_recovered, container.address, journal)
        peer.run(check_whole, container.address, journal)
        assert container.stop() == 0


def test_it_obeys_its_memory_limit_whatever_clients_do() -> None:
    with Container("--memory=128m") as container:
        trial = Path(__file__).with_name("memory_trial.py")
        subprocess.run([sys.executable, trial, container.address], check=True)
        state = container.inspect()["State"]
        assert (state["Running"], state["OOMKilled"]) == (True, False)
        assert container.stop() == 0


def test_its_labels_say_what_it_is() -> None:
    labels = podman("image", "inspect", "--format={{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", IMAGE)
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels
