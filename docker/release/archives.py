"""Archives that are the same to the byte whenever, and by whom, they are made.

Owns:      what an entry of a .tar.gz says besides its name and its content.
Not here:  what goes into which archive (build.py).
"""

import gzip
import io
import tarfile
from pathlib import Path


def level(archive: Path, epoch: int) -> None:
    """Write a .tar.gz again: entries by name, of that time, of nobody, readable by all; no time and name of its own."""
    with tarfile.open(archive, "r:gz") as source:
        entries = [(each, _content(source, each)) for each in sorted(source.getmembers(), key=lambda each: each.name)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as target:
        for entry, content in entries:
            executable = entry.isdir() or entry.mode & 0o100
            entry.mtime, entry.mode = epoch, 0o755 if executable else 0o644
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.pax_headers = {}
            target.addfile(entry, io.BytesIO(content))
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=9, mtime=epoch) as compressed,
    ):
        compressed.write(packed.getvalue())


def _content(source: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = source.extractfile(entry) if entry.isfile() else None
    return file.read() if file else b""
