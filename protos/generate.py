"""Generate trio_broker/_proto from the .proto files beside this file: ``python protos/generate.py [OUT]``.

The messages live in a private descriptor pool, so that a user's own stubs of ``package broker`` (or of any
of the standard files) can be in the same process: protobuf's default pool refuses two files of one name.
protoc has no option for that, so its output is rewritten: the pool, the imports, and the stanza that ties a
file to one protobuf release (the serialized descriptors in it are understood by all of them).
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PACKAGE = "trio_broker._proto"
WELL_KNOWN = ["google/protobuf/any.proto", "google/protobuf/duration.proto", "google/protobuf/timestamp.proto"]


def generate(out: Path) -> None:
    """Write the generated modules below ``out``, which stands for the package ``trio_broker._proto``."""
    own = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = str(files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["protoc", f"-I{PROTOS}", f"-I{include}", f"--python_out={scratch}", f"--pyi_out={scratch}"]
        if protoc.main([*arguments, *own, *WELL_KNOWN]) != 0:
            raise SystemExit("protoc failed")
        services = [name for name in own if "\nservice " in (PROTOS / name).read_text()]
        plugin = [f"--plugin=protoc-gen-purerpc={PROTOS / 'purerpc_plugin.py'}", f"--purerpc_out={scratch}"]
        if protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *plugin, *services]) != 0:
            raise SystemExit("protoc failed: is the python3 on PATH one that has purerpc?")
        for path in sorted(Path(scratch).rglob("*.py*")):
            target = out / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rewrite(path.read_text()))
            for folder in target.relative_to(out).parents:
                (out / folder / "__init__.py").touch()


def rewrite(code: str) -> str:
    """Move one generated file into the private package and pool."""
    code = re.sub(r"# Protobuf Python Version: .*\n", "", code)
    code = re.sub(r"from google\.protobuf import runtime_version as .*\n", "", code)
    code = re.sub(r"_runtime_version\.ValidateProtobufRuntimeVersion\((?:.|\n)*?\n\)\n", "", code)
    code = code.replace("_descriptor_pool.Default()", "_POOL")
    code = code.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool\n",
        f"from {PACKAGE}.pool import POOL as _POOL\n",
    )
    # messages' modules: `from google.rpc import x_pb2 as y`; services' modules: `import google.rpc.x_pb2 as y`
    code = re.sub(r"^from ([\w.]+) import (\w+_pb2) as", rf"from {PACKAGE}.\1 import \2 as", code, flags=re.MULTILINE)
    return re.sub(r"^import ([\w.]+_pb2) as", rf"import {PACKAGE}.\1 as", code, flags=re.MULTILINE)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent / "trio_broker" / "_proto")
