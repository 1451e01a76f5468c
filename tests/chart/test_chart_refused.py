"""Wrong values are refused before anything is installed, in one line that says what to do (make chart-check)."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm_kit import CHART, POSTGRES, refusal, render

pytestmark = pytest.mark.chart

SQLITE = ("store.sqlite.enabled=true", "replicaCount=1")
TLS = (*POSTGRES, "tls.enabled=true")

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no store": ((), "Where are messages to be kept? Set store.url"),
    "two stores": ((*POSTGRES, "store.existingSecret=x"), "store.url and store.existingSecret name several"),
    "two stores, one to try": ((*SQLITE, "store.demoPostgres.enabled=true"), "leave all but one out"),
    "another database": (("store.url=mysql://a@b/c",), 'store.url begins with "mysql"; write postgresql://'),
    "no URL": (("store.url=db.internal",), "store.url begins with"),
    "no database": (("store.url=postgresql://",), "store.url names no database: write postgresql://"),
    "no keyspace": (("store.url=cassandra://a",), "store.url names no database: write postgresql://"),
    "a space in the URL": (("store.url=postgresql://a b@c/d",), "store.url has a space or a line end"),
    "SQLite as URL": (("store.url=sqlite:////data/x.db",), "set store.sqlite.enabled=true and replicaCount=1"),
    "memory as URL": (("store.url=memory:",), 'store.url begins with "memory"'),
    "several on SQLite": (("store.sqlite.enabled=true",), "replicaCount is 2: set replicaCount=1"),
    "by load on SQLite": ((*SQLITE, "autoscaling.enabled=true"), "set autoscaling.enabled=false"),
    "workers on SQLite": ((*SQLITE, "config.workers=2"), "leave config.workers out"),
    "LISTEN on Cassandra": (("store.url=cassandra://a/b", "store.listenUrl=postgresql://a/b"), "of PostgreSQL"),
    "LISTEN elsewhere": ((*POSTGRES, "store.listenUrl=cassandra://a/b"), "has to begin with postgresql://"),
    "key without Secret": ((*POSTGRES, "store.existingSecretListenKey=x"), "store.existingSecret, which is not set"),
    "TLS without key": (TLS, "TLS needs a certificate and its key: set tls.existingSecret"),
    "TLS without issuer": ((*TLS, "tls.certManager.enabled=true"), "set tls.certManager.issuerRef.name"),
    "two certificates": ((*TLS, "tls.certManager.enabled=true", "tls.existingSecret=x"), "leave one of them out"),
    "certificate without TLS": ((*POSTGRES, "tls.existingSecret=x"), "set tls.enabled=true"),
    "clients without TLS": ((*POSTGRES, "tls.clientCA.existingSecret=x"), "set tls.enabled=true"),
    "fewer at most": (
        (*POSTGRES, "autoscaling.enabled=true", "autoscaling.maxReplicas=1"),
        "autoscaling.maxReplicas (1) is less than autoscaling.minReplicas (2)",
    ),
    "by load of nothing": (
        (*POSTGRES, "autoscaling.enabled=true", "resources.requests.cpu=null"),
        "set resources.requests.cpu",
    ),
    "Ingress for nobody": ((*POSTGRES, "ingress.enabled=true"), "needs ingress.hosts"),
    "route from nowhere": ((*POSTGRES, "grpcRoute.enabled=true"), "needs grpcRoute.parentRefs"),
    "a port of nodes unasked": ((*POSTGRES, "service.nodePort=30051"), "set service.type=NodePort or LoadBalancer"),
    "addresses from outside in the cluster": (
        (*POSTGRES, "service.externalTrafficPolicy=Local"),
        "set service.type=NodePort or LoadBalancer",
    ),
    "ranges without a balancer": (
        (*POSTGRES, "service.type=NodePort", "service.loadBalancerSourceRanges={10.0.0.0/8}"),
        "service.loadBalancerSourceRanges needs service.type=LoadBalancer",
    ),
    "an upgrade that cannot begin": (
        (*POSTGRES, "updateStrategy.rollingUpdate.maxSurge=0"),
        "has maxSurge 0 and maxUnavailable 0; set one of them to 1",
    ),
    "a name that is none": ((*POSTGRES, "fullnameOverride=Foo_Bar"), 'would be called "Foo_Bar"'),
    "a name that no Service may have": ((*POSTGRES, "fullnameOverride=1st"), "set fullnameOverride to such a name"),
    "the chart's label for all": (
        (*POSTGRES, r"commonLabels.app\.kubernetes\.io/name=x"),
        "commonLabels has app.kubernetes.io/name, which the chart sets itself",
    ),
    "the chart's label for pods": (
        (*POSTGRES, r"podLabels.app\.kubernetes\.io/version=x"),
        "podLabels has app.kubernetes.io/version, which the chart sets itself",
    ),
    "a label twice": (
        (*POSTGRES, "commonLabels.team=x", "podLabels.team=z"),
        "podLabels and commonLabels both have team",
    ),
    "a label of rules twice": (
        (*POSTGRES, "commonLabels.team=x", "prometheusRule.labels.team=z"),
        "prometheusRule.labels and commonLabels both have team",
    ),
    "setting as variable": (
        (*POSTGRES, "extraEnv[0].name=TRIO_BROKER_GRACE", "extraEnv[0].value=1s"),
        "TRIO_BROKER_GRACE is a setting: write it under config",
    ),
}

WRONG: dict[str, str] = {
    "config.grace=3": "additional properties 'grace' not allowed",  # the chart's own
    "config.log_level=loud": "must be one of 'debug', 'info'",
    "config.slow_call=soon": "does not match pattern",
    "config.flush_bytes=4GB/s": "does not match pattern",
    "config.workers=0": "exclusiveMinimum: got 0, want 0",
    "config.workers=1000": "maximum: got 1,000, want 64",
    "config.traces=1": "want boolean",
    "replicaCount=some": "want integer",
    "image.digest=sha256:123": "does not match pattern",
    "image.pullPolicy=Sometimes": "must be one of",
    "migrations.by=me": "must be one of 'job', 'broker', 'none'",
    "service.port=70000": "maximum: got 70,000, want 65,535",
    "service.type=Magic": "must be one of",
    "shutdown.graceSeconds=-1": "minimum: got -1, want 0",
    "resources.limits.memory=much": "does not match pattern",
    "prometheusRule.runbookBase=https://x": "does not match pattern",
    "store.demoPostgres.password=a/b": "does not match pattern",  # it goes into a URL
    "extraEnv[0].value=x": "missing property 'name'",
    "extraEnv[0].nam=x": "additional properties 'nam' not allowed",
    "tolerations[0].efect=x": "additional properties 'efect' not allowed",
    "topologySpreadConstraints[0].maxSkw=1": "additional properties 'maxSkw' not allowed",
    "networkPolicy.clients[0].podSelecter=x": "additional properties 'podSelecter' not allowed",
    "imagePullSecrets[0].nam=x": "additional properties 'nam' not allowed",
    "affinity.podAfinity=x": "additional properties 'podAfinity' not allowed",
    "extraVolumes[0].secrets=x": "additional properties 'secrets' not allowed",
    "sidecars[0].imag=x": "additional properties 'imag' not allowed",
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_go_together_are_refused_in_one_line(case: str) -> None:
    values, reason = REFUSED[case]
    (line,) = (line for line in refusal(*values).splitlines() if line.startswith("Error:"))
    assert reason in line


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_value_is_refused(value: str) -> None:
    assert WRONG[value] in refusal(*POSTGRES, value)


def sections(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Every level of the values that is the chart's own, with a dot at its end; the top is empty."""
    yield above
    for name, value in values.items():
        if isinstance(value, dict):
            yield from sections(value, f"{above}{name}.")


OPEN = {"commonLabels", "dashboards.labels", "resources.requests", "resources.limits"}
OPEN |= {"nodeSelector", "podAnnotations", "podLabels"}
OPEN |= {"service.annotations", "ingress.annotations", "grpcRoute.annotations", "serviceAccount.annotations"}
OPEN |= {"dashboards.annotations", "serviceMonitor.labels", "prometheusRule.labels"}
"""Maps whose keys are an operator's."""
KUBERNETES = ("podSecurityContext.", "containerSecurityContext.")
"""Objects of Kubernetes': what is below their own keys is Kubernetes' to check."""


def test_a_key_that_nobody_knows_is_refused_at_every_level() -> None:
    levels = [
        level
        for level in sections(yaml.safe_load((CHART / "values.yaml").read_text()))
        if level.rstrip(".") not in OPEN and not (level not in KUBERNETES and level.startswith(KUBERNETES))
    ]
    assert "tls.certManager.issuerRef." in levels
    told = refusal(*POSTGRES, *(f"{level}nonsense=x" for level in levels))
    for level in levels:
        at = f"'/{level.rstrip('.').replace('.', '/')}'" if level else "''"
        assert f"at {at}: additional properties 'nonsense' not allowed" in told


MAY_GO = ("replicaCount", "resources", "dashboards.labels", "updateStrategy.rollingUpdate")
MAY_GO += ("podSecurityContext", "containerSecurityContext")
"""What has a default, and may be taken away by ``null``; lists, too."""
PROBES = ("probes.startup.", "probes.liveness.", "probes.readiness.")


def needed(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """The names of what templates read and cannot do without."""
    for name, value in values.items():
        path = f"{above}{name}"
        if value in ("", None, [], {}) or isinstance(value, list) or path.startswith(MAY_GO):
            continue
        yield path
        if isinstance(value, dict) and f"{path}." not in PROBES:
            yield from needed(value, f"{path}.")


def test_what_is_taken_away_by_a_comment_below_its_name_is_asked_for() -> None:
    paths = list(needed(yaml.safe_load((CHART / "values.yaml").read_text())))
    for depth in range(3):
        level = [path for path in paths if path.count(".") == depth and path != "store"]
        assert level
        told = refusal("store.existingSecret=x", *(f"{path}=null" for path in level))
        for path in level:
            above, _, name = path.rpartition(".")
            at = f"'/{above.replace('.', '/')}'" if above else "''"
            (line,) = (line for line in told.splitlines() if line.lstrip().startswith(f"- at {at}: missing propert"))
            assert f"'{name}'" in line


@pytest.mark.parametrize("name", ["config", "commonLabels", "podLabels", "tolerations", "extraEnv"])
def test_a_section_of_comments_alone_is_empty(name: str) -> None:
    assert render(*POSTGRES, f"{name}=null") == render(*POSTGRES)
