"""Objects that Helm renders, run by `podman kube play`, which is a kubelet without a cluster.

Owns:      `Node`, and what is made of objects so that podman can play them.
Not here:  rendering (helm_kit.py); images and containers as such (e2e_containers.py).
Threads:   any; every method blocks.

What is played is the pod as rendered: image, arguments, variables, volumes, security, memory. What podman does not have
is put in place of it, or left out:

- a Deployment, a StatefulSet or a Job is one pod, and a volumeClaimTemplate the claim that Kubernetes would make of it;
- a Secret is a ConfigMap with the same keys: podman before 4.4 writes a Secret's values in base64;
- a Service is a line in /etc/hosts of pods that are played later; ports are published on the node's loopback address;
- the pod's own address is 127.0.0.1 to it (podman has no status.podIP);
- annotations are left out: podman refuses long ones;
- hooks run when a test plays them; probes are not run, the tests ask the same pages; the rest (NetworkPolicy,
  PodDisruptionBudget, ServiceAccount, the autoscaler, ..) is a cluster's business.
"""

import base64
import http.client
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import yaml
from e2e_containers import PATIENCE_S, log_of, podman

Object = dict[str, Any]

_numbers = count(1)
_ADDRESSED = "$(POD_IP)"


class Node(AbstractContextManager["Node"]):
    """Where pods run, with a network of their own. Leaving the block removes them and their volumes."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.address = f"127.43.0.{number}"
        """Where the ports of pods are published, each under its own number."""
        self._network = f"trio-broker-chart-{os.getpid()}-{number}"
        self._hosts: list[Object] = []
        self._pods: list[str] = []
        self._claims: list[str] = []
        podman("network", "create", self._network)

    def play(self, workload: Object, objects: list[Object]) -> str:
        """Run the pod of a workload, with the Secrets among ``objects``; return its first container's name."""
        played = _played(workload, self.address, self._hosts)
        name = played[-1]["metadata"]["name"]
        self._pods.append(name)
        self._claims += [each["metadata"]["name"] for each in played if each["kind"] == "PersistentVolumeClaim"]
        with TemporaryDirectory() as directory:
            file = Path(directory) / "played.yaml"
            file.write_text(yaml.safe_dump_all([*_settings(objects), *played]))
            podman("kube", "play", f"--network={self._network}", file)
        return f"{name}-{played[-1]['spec']['containers'][0]['name']}"

    def name_it(self, container: str, *names: str) -> None:
        """Let pods that are played from now on reach the pod of a container by these names, as by a Service's."""
        pod = podman("inspect", "--format={{.Pod}}", container)
        infra = podman("pod", "inspect", "--format={{.InfraContainerID}}", pod)
        networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self._hosts.append({"ip": podman("inspect", f"--format={networks}", infra), "hostnames": [*names]})

    def await_page(self, container: str, path: str, status: int, text: str = "") -> None:
        """Ask the port of metrics for a page, as a kubelet does, until it answers with a status, and has a text."""
        give_up = time.monotonic() + PATIENCE_S
        while (answer := self._ask(path))[0] != status or text not in answer[1]:
            state = podman("inspect", "--format={{.State.Status}}", container)
            assert state == "running", f"{state}: {log_of(container)}"
            assert time.monotonic() < give_up, f"{answer}: {log_of(container)}"

    def _ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, 9464, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as failed:
            return 0, str(failed)
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        podman("pod", "rm", "--force", "--ignore", "--time=0", *self._pods)
        for claim in self._claims:
            podman("volume", "rm", "--force", claim)
        podman("volume", "prune", "--force")  # those of Secrets, and those without a name
        podman("network", "rm", "--force", self._network)


def _played(workload: Object, address: str, hosts: list[Object]) -> list[Object]:
    workload = deepcopy(workload)
    name = workload["metadata"]["name"]
    pod = workload if workload["kind"] == "Pod" else workload["spec"]["template"]
    claims = []
    for claim in workload["spec"].get("volumeClaimTemplates", ()):
        volume = claim["metadata"]["name"]
        claimed = f"{volume}-{name}-0"
        claims.append({"kind": "PersistentVolumeClaim", "metadata": {"name": claimed}, "spec": claim["spec"]})
        pod["spec"].setdefault("volumes", []).append({"name": volume, "persistentVolumeClaim": {"claimName": claimed}})
    for volume in pod["spec"].get("volumes", ()):
        if secret := volume.pop("secret", None):
            volume["configMap"] = {"name": secret["secretName"], "items": secret.get("items", [])}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            port |= {"hostIP": address, "hostPort": port["containerPort"]}
        container["env"] = [_written(each) for each in container.get("env", ())]
    pod["spec"]["hostAliases"] = hosts
    metadata = {"name": name, "labels": pod["metadata"]["labels"]}
    return [
        {"apiVersion": "v1", **each} for each in (*claims, {"kind": "Pod", "metadata": metadata, "spec": pod["spec"]})
    ]


def _written(variable: Mapping[str, Any]) -> Object:
    """A variable with the pod's own address in place of what only a cluster knows."""
    if "valueFrom" in variable:
        assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
        return {"name": variable["name"], "value": "127.0.0.1"}
    return {"name": variable["name"], "value": variable["value"].replace(_ADDRESSED, "127.0.0.1")}


def _settings(objects: list[Object]) -> list[Object]:
    """Secrets as ConfigMaps."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": each["metadata"]["name"]},
            "data": {key: base64.b64decode(value).decode() for key, value in each["data"].items()},
        }
        for each in objects
        if each["kind"] == "Secret"
    ]
