"""What Helm makes of the chart is accepted by Kubernetes, operators, Prometheus and the broker (make chart-check)."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_kit import CHART, POSTGRES, ROOT, VALUES, broker, broker_pod, helm, one, program, render, template, variables
from prometheus_server import promtool

from trio_broker.cli import serve, storing
from trio_broker.cli.main import run_command_line
from trio_broker.cli.settings import Settings
from trio_broker.config import Config

pytestmark = pytest.mark.chart

KUBERNETES = ("1.25", "1.37")
"""The oldest and the newest that the chart is for."""
FOREIGN = {"Certificate", "GRPCRoute", "PrometheusRule", "ServiceMonitor"}
"""Kinds that are not Kubernetes' own."""

by_values = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)


@by_values
def test_helm_lint_has_nothing_to_say(values: Path) -> None:
    done = helm("lint", "--strict", "--quiet", CHART, f"--values={values}")
    assert done.returncode == 0, done.stdout + done.stderr


@by_values
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(values: Path, version: str) -> None:
    for each in render(values=values):
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)


def test_value_files_use_every_kind_of_other_peoples_and_their_programs_know_every_field(tmp_path: Path) -> None:
    reader = ROOT / ".cache" / "chart_crds"
    program("go")
    subprocess.run(["go", "build", "-o", reader, "."], cwd=ROOT / "tests" / "chart_crds", check=True)
    files = []
    for values in VALUES:
        files.append(tmp_path / values.name)
        files[-1].write_text(template(values=values).stdout)
    done = subprocess.run([reader, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {line.rpartition("/")[2] for line in done.stdout.splitlines()} == FOREIGN


@by_values
def test_the_broker_accepts_its_arguments_and_variables(
    values: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render(values=values)
    container = broker(objects)
    given = _environment(container, tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    read: list[Settings] = []
    monkeypatch.setattr(serve, "run", lambda _fn, settings, _file: read.append(settings) or 0)
    assert run_command_line(container["args"]) == 0
    ((config, unknown),) = read
    assert unknown == {}
    written = yaml.safe_load(values.read_text()).get("config", {})
    assert {name: getattr(config, name) for name in written} == {
        name: getattr(Config.model_validate({"store": config.store, name: value}), name)
        for name, value in written.items()
    }
    shutdown = config.drain_delay + config.grace
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    patience = broker_pod(objects)["spec"]["terminationGracePeriodSeconds"]
    assert patience == int(hook[1]) + shutdown + 5  # a broker takes up to 2 s more than its grace
    assert config.allow_anonymous == (not config.tls_client_ca)


def _environment(container: dict[str, Any], directory: Path) -> dict[str, str]:
    """What the container's variables are, the files they name made."""
    given = variables(container)
    for name in given:
        if name.startswith("TRIO_BROKER_STORE") and name.endswith("_FILE"):
            (directory / name).write_text("postgresql://somebody@somewhere/app")
            given[name] = str(directory / name)
    return given


def test_the_broker_accepts_what_the_migration_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = one(render(*POSTGRES), "Job")["spec"]["template"]["spec"]["containers"]
    for name, value in _environment(container, tmp_path).items():
        monkeypatch.setenv(name, value)
    read: list[str] = []
    monkeypatch.setattr(storing, "run", lambda _reported, _fn, url, *_options: read.append(url) or 0)
    assert run_command_line(container["args"]) == 0
    assert read == ["postgresql://somebody@somewhere/app"]


@by_values
def test_pods_are_what_pod_security_calls_restricted(values: Path) -> None:
    pods = [
        each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        for each in render(values=values)
        if each["kind"] in ("Deployment", "StatefulSet", "Job", "Pod")
    ]
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            if container["name"] not in ("broker", "migrate", "test", "postgres"):
                continue  # an operator's own
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
        for volume in pod.get("volumes", []):
            assert set(volume) & {"configMap", "emptyDir", "secret"}, volume


@by_values
def test_a_service_finds_the_broker_and_nothing_else(values: Path) -> None:
    objects = render(values=values)
    labels = broker_pod(objects)["metadata"]["labels"]
    ports = {each["name"] for each in broker(objects)["ports"]}
    others = [each["spec"]["template"] for each in objects if each["kind"] == "Job"]
    others += [each for each in objects if each["kind"] == "Pod"]
    for each in objects:
        if each["kind"] == "Service" and "demo-postgres" not in each["metadata"]["name"]:
            assert each["spec"]["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
            for other in others:
                assert not each["spec"]["selector"].items() <= other["metadata"]["labels"].items()


@pytest.mark.usefixtures("prometheus_installed")
@pytest.mark.parametrize("base", ["", "https://git.example/"])
def test_promtool_finds_the_rules_well_formed(tmp_path: Path, base: str) -> None:
    objects = render(*POSTGRES, "prometheusRule.enabled=true", f"prometheusRule.runbookBase={base}")
    rules = one(objects, "PrometheusRule")["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    promtool("check", "rules", tmp_path / "rules.yml")
    addresses = [
        rule["annotations"]["runbook_url"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    ]
    beginning = base or "{{ $externalLabels.runbook_base }}"
    assert addresses
    assert all(address.startswith(f"{beginning}docs/RUNBOOK.md#") for address in addresses)


def test_the_job_of_what_is_scraped_is_one_that_rules_and_dashboards_are_about() -> None:
    for name in ("broker", "my-trio-broker"):
        monitor = one(render(*POSTGRES, "serviceMonitor.enabled=true", f"fullnameOverride={name}"), "ServiceMonitor")
        (endpoint,) = monitor["spec"]["endpoints"]
        (job,) = (each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job")
        assert "trio-broker" in job


def test_what_is_for_developers_is_not_packaged(tmp_path: Path) -> None:
    done = helm("package", CHART, f"--destination={tmp_path}")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.iterdir()
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert "trio-broker/values.schema.json" in listed
    assert "trio-broker/templates/tests/publish.yaml" in listed
    assert "trio-broker/files/rules/trio-broker.yml" in listed
    assert not [name for name in listed if name.startswith(("trio-broker/ci/", "trio-broker/tests/"))]


def test_the_readme_is_what_the_values_say(tmp_path: Path) -> None:
    program("helm-docs")
    for name in ("Chart.yaml", "values.yaml", "README.md.gotmpl"):
        (tmp_path / name).write_bytes((CHART / name).read_bytes())
    subprocess.run([ROOT / "helm" / "ci" / "readme.sh", tmp_path], check=True)
    assert (tmp_path / "README.md").read_text() == (CHART / "README.md").read_text(), "run make chart"


def test_the_suites_beside_the_templates_hold() -> None:
    done = subprocess.run([program("helm-unittest"), CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
