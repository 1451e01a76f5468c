"""The Helm chart's own pods serve: what it renders is run by podman, with the image as built (make image-check)."""

from pathlib import Path
from typing import Any

import pytest
from e2e_compose import STAND_INS
from e2e_containers import IMAGE, build_image, have_image, log_of, podman
from e2e_kube import Node
from e2e_peers import PEERS, Peer, received
from helm_kit import CHART, NAMESPACE, one, render

pytestmark = pytest.mark.containers

AIO = PEERS["grpcio.aio"]
SUITABLE = ("replicaCount=1", f"image.tag={IMAGE.rpartition(':')[2]}", "image.pullPolicy=Never")
DATABASE = "r-trio-broker-demo-postgres"


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    build_image()


async def publish_and_fetch(peer: Peer, address: str) -> None:
    async with peer.connect(address) as client, client.subscribe("orders.eu") as stream:
        id_ = (await client.publish("orders.eu", b"tea", keep=True)).id
        (message,) = await received(stream, 1)
        assert (message.id, message.body) == (id_, b"tea")
        assert (await client.fetch("orders.eu", id_)).body == b"tea"


def rendered(values: str) -> list[dict[str, Any]]:
    return render(*SUITABLE, values=CHART / "ci" / f"{values}.yaml")


def check_serving(node: Node, broker: str, objects: list[dict[str, Any]]) -> None:
    """It is alive and ready, serves a client, passes the chart's own test (helm test), and stops in order."""
    node.await_page(broker, "/healthz", 200)
    node.await_page(broker, "/readyz", 200)
    AIO.run(publish_and_fetch, f"{node.address}:50051")
    node.name_it(broker, f"{one(objects, 'Service', 'broker')['metadata']['name']}.{NAMESPACE}")
    trial = node.play(one(objects, "Pod"), objects)
    assert podman("wait", trial) == "0", log_of(trial)
    assert "was published, received and fetched" in log_of(trial)
    podman("stop", "--time=30", broker)
    assert podman("inspect", "--format={{.State.ExitCode}}", broker) == "0"


def play_database(node: Node) -> None:
    objects = rendered("demo")
    database = one(objects, "StatefulSet", "demo-postgres")
    (container,) = database["spec"]["template"]["spec"]["containers"]
    have_image(container["image"], STAND_INS["postgres"])
    node.name_it(node.play(database, objects), DATABASE)


def test_a_broker_on_sqlite_serves() -> None:
    objects = rendered("sqlite")
    with Node() as node:
        check_serving(node, node.play(one(objects, "StatefulSet"), objects), objects)


def test_a_broker_on_the_demo_database_makes_its_tables_and_serves() -> None:
    objects = rendered("demo")
    with Node() as node:
        play_database(node)
        check_serving(node, node.play(one(objects, "Deployment"), objects), objects)


def test_a_broker_waits_unready_for_the_tables_that_the_migration_job_makes(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"store: {{ url: 'postgresql://trio_broker:only-to-try-it@{DATABASE}/trio_broker' }}\n")
    objects = render(*SUITABLE, "fullnameOverride=broker", values=values)
    with Node() as node:
        play_database(node)
        broker = node.play(one(objects, "Deployment"), objects)
        node.await_page(broker, "/readyz", 503, "run 'trio-broker migrate up'")
        node.await_page(broker, "/healthz", 200)
        job = node.play(one(objects, "Job"), objects)
        assert podman("wait", job) == "0", log_of(job)
        check_serving(node, broker, objects)
