"""Generate brokerpb/ from protos/broker.proto: ``python tests/peers/go/generate.py`` (needs go and grpcio-tools).

The plugins are tools of the Go module beside this file: go.mod pins their versions.
"""

import subprocess
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

MODULE = Path(__file__).parent
PROTOS = MODULE.parents[2] / "protos"
PACKAGE = "Mbroker.proto=trio-broker/tests/peers/go/brokerpb"


def generate() -> None:
    """Write broker.pb.go and broker_grpc.pb.go."""
    arguments = ["protoc", f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    for plugin in ("go", "go-grpc"):
        # a plugin has to be a program on disk: `go tool -n` builds it and names it
        tool = ["go", "tool", "-n", f"protoc-gen-{plugin}"]
        path = subprocess.run(tool, cwd=MODULE, check=True, capture_output=True, text=True).stdout.strip()
        arguments += [f"--plugin=protoc-gen-{plugin}={path}", f"--{plugin}_out={MODULE / 'brokerpb'}"]
        arguments += [f"--{plugin}_opt={PACKAGE}", f"--{plugin}_opt=paths=source_relative"]
    if protoc.main([*arguments, "broker.proto"]) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate()
