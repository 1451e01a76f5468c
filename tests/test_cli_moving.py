"""``trio-broker export`` and ``import``: a log in another store is the same log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from persistence import NO_HEADERS, Head, NewMessage, Record, Store, open_store
from trio_broker.cli.loglines import read_line
from trio_broker.cli.main import run_command_line
from trio_broker.cli.running import ERROR, NOT_FOUND
from trio_broker.cli.standard import LINE_MAX_BYTES

BODIES = [b"plain", b"\xff\x00", "ü\n".encode(), b""]


async def fill(store: Store) -> None:
    await store.append([NewMessage("orders", body, None, {"h": b"v", "b": b"\xff"}) for body in BODIES])
    await store.append([NewMessage("orders", b"seen only", 0), NewMessage("orders", b"an hour", 3600)])
    await store.append([NewMessage("ü.\U0001f600", b"%d" % n, None) for n in range(2_500)])
    await store.append([NewMessage("live", b"", 0)] * 7)
    await store.append([NewMessage("deleted", b"", None)] * 3)
    assert await store.delete_subject("deleted", 3) is None
    await store.purge("ü.\U0001f600", 10)


async def log_of(store: Store, subject: str) -> tuple[Head, list[Record]]:
    records: list[Record] = []
    after_id, head = 0, await store.head(subject)
    while after_id < head.last_id:
        page = await store.read(subject, after_id, max_messages=1000, max_bytes=2**30)
        records += page.records
        after_id = page.scanned_to
    return head, records


async def logs(url: str) -> dict[str, tuple[Head, list[Record]]]:
    async with open_store(url) as store:
        return {subject: await log_of(store, subject) for subject in await store.subjects()}


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, bytes, str]:
    code = run_command_line(arguments)
    out, err = capfdbinary.readouterr()
    return code, out, err.decode()


@pytest.fixture
def old(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'old.db'}"

    async def make() -> None:
        async with open_store(url) as store:
            await fill(store)

    trio.run(make)
    return url


@pytest.fixture
def new(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"


@pytest.fixture
def exported(old: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Path:
    code, out, err = run(capfdbinary, "export", "--store", old)
    assert (code, err) == (0, "trio-broker: exported 2495 messages of 3 subjects\n")
    path = tmp_path / "log.jsonl"
    path.write_bytes(out)
    return path


def test_an_imported_log_is_what_it_was(
    old: str, new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, out, _ = run(capfdbinary, "import", str(exported), "--store", new)
    assert (code, out) == (0, b"imported 2495 messages of 3 subjects, 0 were there already\n")
    assert trio.run(logs, new) == trio.run(logs, old)


def test_an_imported_log_is_what_it_was_on_postgres_and_back(
    old: str, new: str, exported: Path, postgres_url: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(capfdbinary, "import", str(exported), "--store", postgres_url)[0] == 0
    assert trio.run(logs, postgres_url) == trio.run(logs, old)
    code, out, _ = run(capfdbinary, "export", "--store", postgres_url)
    assert code == 0
    assert out == exported.read_bytes()


def test_importing_again_changes_nothing(
    old: str, new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run(capfdbinary, "import", str(exported), "--store", new)
    code, out, _ = run(capfdbinary, "import", str(exported), "--store", new)
    assert (code, out) == (0, b"imported 0 messages of 3 subjects, 2495 were there already\n")
    assert trio.run(logs, new) == trio.run(logs, old)


def test_an_import_that_was_cut_short_goes_on(
    old: str, new: str, exported: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    whole = exported.read_bytes()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(whole[: len(whole) // 2])
    code, _, err = run(capfdbinary, "import", str(cut), "--store", new)
    assert code == ERROR
    assert "not JSON" in err
    assert "; imported " in err
    assert run(capfdbinary, "import", str(exported), "--store", new)[0] == 0
    assert trio.run(logs, new) == trio.run(logs, old)


def test_standard_input_is_read_and_what_is_named_is_exported(
    old: str, new: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, out, err = run(capfdbinary, "export", "deleted", "orders", "orders", "--store", old)
    assert (code, err) == (0, "trio-broker: exported 5 messages of 2 subjects\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[0] == {"subject": "deleted", "last_id": 3}
    assert lines[-1] == {"subject": "orders", "last_id": 6}
    assert [line["id"] for line in lines[1:-1]] == [1, 2, 3, 4, 6]
    command = [sys.executable, "-m", "trio_broker", "import", "-", "--store", new]
    done = subprocess.run(command, input=out, capture_output=True, check=True)
    assert done.stdout == b"imported 5 messages of 2 subjects, 0 were there already\n"
    assert done.stderr == b""
    assert trio.run(logs, new)["deleted"] == (Head(4, 3), [])


def test_a_subject_that_never_was_is_not_found(old: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, err = run(capfdbinary, "export", "unheard", "--store", old)
    assert (code, out) == (NOT_FOUND, b"")
    assert "'unheard'" in err


def test_a_store_that_is_not_there_is_not_made_by_exporting(
    new: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, _, err = run(capfdbinary, "export", "--store", new)
    assert code == ERROR
    assert err
    assert not (tmp_path / "new.db").exists()


async def put(url: str, subject: str, count: int) -> None:
    async with open_store(url) as store:
        await store.append([NewMessage(subject, b"another", None, NO_HEADERS)] * count)


def test_nothing_is_mixed_with_another_log(new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    trio.run(put, new, "orders", 2)
    before = trio.run(logs, new)["orders"]
    code, _, err = run(capfdbinary, "import", str(exported), "--store", new)
    assert code == ERROR
    assert "'orders' has another message with id 1 in the store" in err
    assert trio.run(logs, new)["orders"] == before


def test_a_log_goes_on_after_another_one_only_if_that_is_meant(
    new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trio.run(put, new, "ü.\U0001f600", 5)  # the file begins with id 11
    code, _, err = run(capfdbinary, "import", str(exported), "--store", new)
    assert code == ERROR
    assert "has messages up to id 5 in the store, of which the file has none" in err
    assert run(capfdbinary, "import", "--continue", str(exported), "--store", new)[0] == 0
    head, records = trio.run(logs, new)["ü.\U0001f600"]
    assert head == Head(1, 2500)
    assert [record.id for record in records] == [*range(1, 6), *range(11, 2501)]


def test_a_last_id_alone_is_not_raised_over_another_log(
    new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trio.run(put, new, "live", 3)
    code, _, err = run(capfdbinary, "import", str(exported), "--store", new)
    assert code == ERROR
    assert "'live' has messages up to id 3" in err


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("{}", "line 1: no subject"),
        ('{"subject": "a b", "last_id": 1}', "line 1: "),
        ('{"subject": "a"}', "line 1: id must be a number from 1 on, not None"),
        ('{"subject": "a", "last_id": true}', "last_id must be"),
        ('{"subject": "a", "id": 1, "body": "", "published_at": "yesterday"}', "published_at must be a time"),
        ('{"subject": "a", "id": 1, "body": "", "published_at": "2026-01-01T00:00:00"}', "no time zone"),
        (
            '{"subject": "a", "id": 1, "body": "", "published_at": "0001-01-01T00:00:00+14:00"}',
            "published_at is '0001-",
        ),
        (
            '{"subject": "a", "id": 1, "body": "", "published_at": "9999-12-31T23:59:59-14:00"}',
            "published_at is '9999-",
        ),
        ('{"subject": "a", "last_id": 9223372036854775807}', "leaves room"),
        ("[" * 100_000, "line 1: not JSON that is written here"),
        ('{"subject": "a", "last_id": 1}\n' + "x" * (LINE_MAX_BYTES + 1), "line 2: longer than"),
        ('{"subject": "a", "id": 1, "published_at": "2026-01-01T00:00:00Z"}', "either body or body_base64"),
        ('{"subject": "a", "last_id": 1}\n{"subject": "b", "last_id": 1}\n{"subject": "a", "last_id": 2}', "line 3: "),
        (
            '{"subject": "a", "id": 2, "body": "", "published_at": "2026-01-01T00:00:00Z"}\n' * 2,
            "line 2: id 2 comes after 2",
        ),
        (
            '{"subject": "a", "id": 2, "body": "", "published_at": "2026-01-01T00Z"}\n{"subject": "a", "last_id": 1}',
            "line 2: last_id 1 is below",
        ),
    ],
)
def test_bad_lines_are_named(
    lines: str, why: str, new: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(lines)
    code, _, err = run(capfdbinary, "import", str(path), "--store", new)
    assert code == ERROR
    assert why in err


def test_a_file_that_a_broker_has_open_is_refused(
    new: str, exported: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def beside_a_broker() -> int:
        async with open_store(new, exclusive=True):
            command = [sys.executable, "-m", "trio_broker", "import", str(exported), "--store", new]
            done = await trio.run_process(command, check=False, capture_stderr=True)
            assert b"another broker" in done.stderr or b"in use" in done.stderr, done.stderr
            return done.returncode

    assert trio.run(beside_a_broker) == ERROR


def test_times_are_exact() -> None:
    line = read_line(
        b'{"subject": "a", "id": 1, "body": "", "published_at": "2026-01-01T01:00:00.000001+01:00", '
        b'"expires_at": "2090-01-01T00:00:00.999999Z"}'
    )
    assert line.record is not None
    assert line.record.time_us % 1_000_000 == 1
    assert line.record.expires_us is not None
    assert line.record.expires_us % 1_000_000 == 999_999


def test_the_bar_is_for_terminals(new: str, exported: Path) -> None:
    main_fd, terminal_fd = os.openpty()
    command = [sys.executable, "-m", "trio_broker", "import", str(exported), "--store", new]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal_fd, check=True)
    os.close(terminal_fd)
    shown = os.read(main_fd, 65536)
    os.close(main_fd)
    assert b"100%" in shown
    assert done.stdout.startswith(b"imported 2495")
