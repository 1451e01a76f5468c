"""Generate what the chart has from elsewhere: ``python helm/generate.py [CHART]``, or ``make chart``.

Owns:      the chart's version, the section `config` of its schema, its copies of alerts and dashboards.
Not here:  the rest of the chart; its README.md (helm-docs, of values.yaml and README.md.gotmpl).
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from packaging.version import Version
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from trio_broker._version import __version__
from trio_broker.config import Config
from trio_broker.notation import seconds, size, write_seconds, write_size

HERE = Path(__file__).parent
CHART = HERE / "trio-broker"
DOCKER = HERE.parent / "docker"

OF_THE_CHART = {
    "listen",
    "store",
    "store_listen",
    "peer_listen",
    "advertise",
    "peers",
    "metrics_listen",
    "allow_anonymous",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "no_migrate",
    "drain_delay",
    "grace",
}
"""Settings that templates write, of other values."""

_PATTERNS = {seconds: r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h|d)?$", size: r"^[0-9]+(kB|MB|GB|KiB|MiB|GiB|B)?$"}
_WRITTEN = {seconds: write_seconds, size: write_size}
_WORDS: dict[str, Any] = {"type": ["string", "array"], "items": {"type": "string"}}
_PLAIN: dict[object, dict[str, Any]] = {str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}}


def generate(chart: Path) -> None:
    """Write into a chart what is not written there by hand."""
    for folder, source in (
        ("rules", DOCKER / "prometheus" / "rules"),
        ("dashboards", DOCKER / "grafana" / "dashboards"),
    ):
        copies = chart / "files" / folder
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir(parents=True)
        for path in source.glob("*.*"):
            shutil.copyfile(path, copies / path.name)
    about = chart / "Chart.yaml"
    text = re.sub(r"^version: .*$", f"version: {semantic(__version__)}", about.read_text(), flags=re.MULTILINE)
    about.write_text(re.sub(r"^appVersion: .*$", f'appVersion: "{__version__}"', text, flags=re.MULTILINE))
    schema = chart / "values.schema.json"
    values = json.loads(schema.read_text())
    values["properties"]["config"] = config_schema()
    schema.write_text(json.dumps(values, indent=2) + "\n")


def semantic(version: str) -> str:
    """Write a version of Python's as Helm wants it: ``1.0.0rc1`` is ``1.0.0-rc.1``."""
    parsed = Version(version)
    release = ".".join(str(number) for number in (*parsed.release, 0, 0)[:3])
    before = [
        f"{kind}.{number}"
        for kind, number in [parsed.pre or ("", 0), ("dev", parsed.dev)]
        if kind and number is not None
    ]
    return "-".join([release, ".".join(before)]) if before else release


def config_schema() -> dict[str, Any]:
    """Return the schema of the settings that an operator may give."""
    settings = {name: _setting(field) for name, field in Config.model_fields.items() if name not in OF_THE_CHART}
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(settings.items()))}


def _setting(field: FieldInfo) -> dict[str, Any]:
    read = next((each.func for each in field.metadata if isinstance(each, BeforeValidator)), None)
    default = field.default
    if get_origin(field.annotation) is Literal:
        schema: dict[str, Any] = {"enum": [*get_args(field.annotation)]}
    elif read in _PATTERNS:
        schema = {"type": ["string", "number" if read is seconds else "integer"], "pattern": _PATTERNS[read]}
        default = _WRITTEN[read](default)
    else:
        schema = _PLAIN.get(field.annotation, _WORDS)
    bounds = {
        key: value
        for each in field.metadata
        for key, name in (("minimum", "ge"), ("exclusiveMinimum", "gt"), ("maximum", "le"))
        if (value := getattr(each, name, None)) is not None
    }
    return {**schema, **bounds, "description": field.description, "default": default}


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else CHART)
