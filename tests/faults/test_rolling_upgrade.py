"""F25: two brokers behind a Service are replaced one at a time, as Kubernetes does, and gRPC clients notice nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import trio
from e2e_containers import IMAGE, Container, build_image, have_image, podman, run, stand_in_postgres

from persistence import migrate

from .cluster import Cluster, cluster
from .rolling_upgrade import SETTINGS, upgrade

SAFETY_S = 120
"""What hangs fails after this long; nothing that works comes near."""
CONTAINERS_SAFETY_S = 400
POSTGRES = "docker.io/library/postgres:17.6"


async def test_three_rolling_upgrades_cost_no_publish_and_no_subscriber_a_message(postgres_url: str) -> None:
    await migrate(postgres_url)
    settings = {f"TRIO_BROKER_{name.upper()}": value for name, value in SETTINGS.items()}
    with trio.fail_after(SAFETY_S):
        async with cluster(postgres_url, environment=settings) as brokers:
            await upgrade(brokers)


class ContainedBroker(Container):
    """What a `Cluster` needs of a broker, in a container of the image."""

    def __init__(self, network: str, store: str) -> None:
        settings = {**SETTINGS, "store": store, "peer_listen": "0.0.0.0:50052"}
        flags = [f"--env=TRIO_BROKER_{name.upper()}={value}" for name, value in settings.items()]
        super().__init__(f"--network={network}", "--publish=127.0.0.1::9464", *flags)
        self._pages = podman("port", self._id, "9464/tcp")

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection(self._pages, timeout=SAFETY_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        assert super().stop() == 0, self.log()


@contextmanager
def network() -> Iterator[str]:
    name = podman("network", "create")
    try:
        yield name
    finally:
        podman("network", "rm", "--force", name)


@contextmanager
def postgres_container(network: str, password: Path) -> Iterator[str]:
    """A database in a container, which may still be starting: its URL within the network."""
    have_image(POSTGRES, stand_in_postgres)
    password.write_text("secret")
    password.chmod(0o444)
    settings = ("POSTGRES_USER=trio_broker", "POSTGRES_DB=trio_broker", "POSTGRES_PASSWORD_FILE=/run/password")
    container = podman(
        "run",
        "--detach",
        f"--network={network}:alias=database",
        "--user=999:999",
        f"--volume={password}:/run/password:ro",
        *(f"--env={setting}" for setting in settings),
        POSTGRES,
    )
    try:
        yield "postgresql://trio_broker:secret@database/trio_broker"
    finally:
        podman("rm", "--force", "--volumes", "--time=0", container)


@pytest.mark.containers
async def test_the_same_with_containers_of_the_image(tmp_path: Path) -> None:
    build_image()
    with network() as name, postgres_container(name, tmp_path / "password") as store, ExitStack() as stack:
        run("podman", "run", "--rm", f"--network={name}", IMAGE, "migrate", "up", "--wait=60s", f"--store={store}")
        brokers = Cluster(stack, 2, lambda _number: ContainedBroker(name, store))
        with trio.fail_after(CONTAINERS_SAFETY_S):
            for number in range(2):
                await brokers.start(number)
            await upgrade(brokers)
            for number in range(2):
                await brokers.stop(number)
