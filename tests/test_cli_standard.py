"""Lines of a file: whole, in order, however they are cut by reading."""

import os
from pathlib import Path

import pytest
import trio

from trio_broker.cli import standard
from trio_broker.cli.standard import read_lines


async def lines_of(descriptor: int) -> list[bytes]:
    async with read_lines(descriptor) as some:
        return [line async for lines in some for line in lines]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_lines_are_whole_however_they_come(
    end: bytes, read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard, "_READ_BYTES", read_bytes)
    path = tmp_path / "lines"
    path.write_bytes(b"ab\n\ncd\nefghi" + end)
    with path.open("rb") as file:
        assert await lines_of(file.fileno()) == [b"ab", b"", b"cd", b"efghi"]


async def test_a_long_line_costs_no_more_than_its_bytes() -> None:
    """It comes in pieces of 64 KiB: joining what is there with each of them would move 18 GB."""
    line = b"x" * 48 * 1024 * 1024
    reading, writing = os.pipe()
    found: list[bytes] = []

    async def read() -> None:
        found.extend(await lines_of(reading))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(_write_all, writing, line)
    os.close(reading)
    assert found == [line]


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
