"""Opening a SQLite store: which URLs and files are refused, with what words, and the lock of one broker per file."""

# ruff: noqa: ASYNC240 (small files, and nobody else waits)

import os
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from persistence import Appended, CannotOpen, NewMessage, SchemaNotReady, open_store
from persistence.sqlite import schema
from persistence.sqlite.connection import connect, set_up_reader, set_up_writer

MESSAGE = NewMessage("orders", b"x", None)
LATEST = len(schema.STEPS)


async def refusal(
    url: str, kind: type[Exception] = CannotOpen, *, exclusive: bool = False, migrate: bool = True
) -> str:
    with pytest.raises(kind) as refused:
        async with open_store(url, exclusive=exclusive, migrate=migrate):
            pass
    return str(refused.value)


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def make(path: Path) -> None:
    async with open_store(url_of(path)) as store:
        await store.append([MESSAGE])


async def test_three_slashes_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    async with open_store("sqlite:///below/log.db"):
        monkeypatch.chdir("/")  # the path was settled when it was opened
    assert (tmp_path / "below" / "log.db").exists()


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "a#b.db", "ü.db", "what?.db"])
async def test_any_file_name_can_be_written_in_a_url(tmp_path: Path, name: str) -> None:
    encoded = name.replace("%", "%25").replace("?", "%3F")
    async with open_store(f"sqlite:///{tmp_path}/{encoded}") as store:
        await store.append([MESSAGE])
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://:memory:",
        "sqlite:///:memory:",
        "sqlite://host/x.db",
        "sqlite:///a%00b",
    ],
)
async def test_a_url_without_a_file_is_refused_with_how_to_write_it(url: str) -> None:
    text = await refusal(url)
    assert repr(url) in text
    assert "sqlite:////absolute.db" in text
    assert "memory:" in text


async def test_parameters_are_refused(path: Path) -> None:
    assert "'mode=ro'" in await refusal(f"{url_of(path)}?mode=ro")
    assert not path.exists()


@pytest.mark.parametrize("url", ["", "log.db", "postgre://x", "memory", "memory:x"])
async def test_an_unknown_store_is_refused_with_those_there_are(url: str) -> None:
    assert "sqlite:///relative.db" in await refusal(url)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    text = await refusal(url_of(tmp_path / "missing" / "log.db"))
    assert f"{tmp_path / 'missing'} is not a directory; create it" in text


async def test_a_directory_is_refused_with_a_path_that_would_do(tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory; name a file in it, such as {tmp_path}/broker.db" in await refusal(
        url_of(tmp_path)
    )


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_place_where_no_file_can_be_made_is_named(*, exclusive: bool) -> None:
    text = await refusal("sqlite:////proc/log.db", exclusive=exclusive)
    assert text.startswith("/proc/log.db")


async def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "too long" in await refusal(url_of(tmp_path / ("x" * 300)))


async def test_a_file_that_stays_locked_is_refused(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CannotOpen, match="another process keeps it locked"):
        async with open_store(url_of(path), commit_timeout_s=0):
            pass
    other.close()


async def test_a_file_that_is_not_sqlite_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)
    text = await refusal(url_of(path))
    assert str(path) in text
    assert "not a database; give the path of a new file" in text
    assert path.read_bytes() == b"not a database at all" * 1000


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7", "CREATE TABLE messages (id)"],
)
async def test_a_database_of_another_application_is_refused_and_left_alone(path: Path, statement: str) -> None:
    theirs = sqlite3.connect(path)
    theirs.execute(statement)
    theirs.close()
    before = path.read_bytes()
    assert f"{path} is a database of another application" in await refusal(url_of(path))
    assert path.read_bytes() == before


async def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    await make(path)
    async with open_store(url_of(path)) as store:
        assert await store.subjects() == ["orders"]


async def test_a_newer_file_is_refused_with_both_versions_and_what_to_do(path: Path) -> None:
    await make(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    text = await refusal(url_of(path))
    assert str(path) in text
    assert "version 99" in text
    assert f"up to {len(schema.STEPS)}" in text
    assert "use the release that upgraded it, or a later one" in text


async def test_a_file_that_another_process_is_just_making_is_not_taken_for_anothers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    identity = schema._identity

    def identity_then_the_other_process(connection: sqlite3.Connection) -> tuple[int, int]:
        monkeypatch.undo()
        found = identity(connection)
        try:
            schema.migrate_to_latest(other)
        except sqlite3.OperationalError:  # it has to wait: the question is asked in one snapshot
            other.close()
        return found

    monkeypatch.setattr(schema, "_identity", identity_then_the_other_process)
    await make(path)
    other.close()


async def test_without_migration_nothing_is_made(path: Path) -> None:
    assert f"{path} has no schema yet" in await refusal(url_of(path), SchemaNotReady, migrate=False)
    assert not path.exists()
    path.touch()
    assert "has no schema yet" in await refusal(url_of(path), SchemaNotReady, migrate=False)
    assert path.stat().st_size == 0


async def test_without_migration_a_current_file_opens(path: Path) -> None:
    await make(path)
    async with open_store(url_of(path), migrate=False) as store:
        assert isinstance((await store.append([MESSAGE]))[0], Appended)


async def test_an_old_sqlite_library_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 9))
    assert "3.35 or later is needed" in await refusal(url_of(path))


async def test_a_file_of_the_first_version_keeps_what_it_has_and_learns_keys_and_purging(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patching:
        patching.setattr(schema, "STEPS", schema.STEPS[:1])
        script = schema.script(0)
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(script)
    old.execute("INSERT INTO subjects VALUES (1, 'orders', 1, 0)")
    old.execute("INSERT INTO messages VALUES (1, 1, 0, NULL, NULL, x'61')")
    old.close()
    assert f"version 1, and this release needs version {LATEST}" in await refusal(
        url_of(path), SchemaNotReady, migrate=False
    )
    keyed = MESSAGE._replace(idempotency_key="k")
    async with open_store(url_of(path)) as store:
        assert [outcome[0] for outcome in await store.append([keyed, keyed])] == [2, 2]
        assert await store.subjects() == ["orders"]
        page = await store.read("orders", 0, max_messages=10, max_bytes=10)
        assert [record.body for record in page.records] == [b"a", b"x"]
        assert await store.delete_subject("orders", 2) is None
        assert await store.subjects() == []


async def test_an_old_file_is_upgraded_once_though_two_open_it_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(path)
    # a step that can be taken only once
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, ("ALTER TABLE subjects ADD COLUMN note TEXT",)))
    assert f"needs version {LATEST + 1}" in await refusal(url_of(path), SchemaNotReady, migrate=False)

    async def open_and_append() -> None:
        async with open_store(url_of(path)) as store:
            await store.append([MESSAGE])

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(open_and_append)
    outside = sqlite3.connect(path)
    assert outside.execute("PRAGMA user_version").fetchone() == (LATEST + 1,)
    assert outside.execute("SELECT name, last_id, note FROM subjects").fetchall() == [("orders", 5, None)]
    outside.close()


async def test_a_step_that_fails_is_undone_and_the_next_start_takes_it_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(path)
    released = schema.STEPS
    monkeypatch.setattr(schema, "STEPS", (*released, ("CREATE TABLE half (x)", "CREATE TABLE subjects (x)")))
    assert f"{path}: table subjects already exists" in await refusal(url_of(path))
    monkeypatch.setattr(schema, "STEPS", (*released, ("CREATE TABLE half (x)",)))
    async with open_store(url_of(path)) as store:
        assert await store.subjects() == ["orders"]


async def test_the_file_is_set_up_to_be_durable_and_to_give_space_back(path: Path) -> None:
    async with open_store(url_of(path)) as store:
        durability = store.durability()
        outside = sqlite3.connect(path)
        assert outside.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert outside.execute("PRAGMA auto_vacuum").fetchone() == (2,)  # incremental
        assert outside.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
        outside.close()
    assert durability.durable
    assert durability.kind == f"SQLite {sqlite3.sqlite_version}"
    assert durability.setting == "journal_mode=wal synchronous=full"

    writer = connect(path, create=False, busy_timeout_s=1)
    set_up_writer(writer)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # full
    assert writer.execute("PRAGMA secure_delete").fetchone() == (0,)
    writer.close()
    reader = connect(path, create=False, busy_timeout_s=1)
    set_up_reader(reader)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM messages")
    reader.close()


async def test_closing_leaves_one_file_and_the_lock(path: Path) -> None:
    async with open_store(url_of(path), exclusive=True) as store:
        await store.append([MESSAGE])
        assert path.with_name("log.db-wal").exists()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["log.db", "log.db.lock"]


async def test_a_second_exclusive_opener_is_told_who_has_the_file(path: Path) -> None:
    async with open_store(url_of(path), exclusive=True):
        text = await refusal(url_of(path), exclusive=True)
        assert text.startswith(f"another broker (pid {os.getpid()}) has {path} open; ")
        async with open_store(url_of(path)) as shared:  # without the lock it is allowed
            await shared.append([MESSAGE])
    async with open_store(url_of(path), exclusive=True) as store:
        assert await store.subjects() == ["orders"]


async def test_the_lock_is_the_files_under_any_name(path: Path) -> None:
    await make(path)
    alias = path.with_name("alias.db")
    alias.symlink_to(path)
    async with open_store(url_of(path), exclusive=True):
        assert f"has {path} open" in await refusal(url_of(alias), exclusive=True)


HOLDER = """
import sys, trio
from persistence import open_store
async def main():
    async with open_store(sys.argv[1], exclusive=True):
        print("open", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_a_killed_broker_leaves_no_lock(path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, url_of(path)]
    hold = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        holder: trio.Process = await nursery.start(hold)
        assert holder.stdout is not None
        assert await holder.stdout.receive_some(4) == b"open"
        assert f"another broker (pid {holder.pid}) has" in await refusal(url_of(path), exclusive=True)
        holder.kill()
    async with open_store(url_of(path), exclusive=True) as store:
        await store.append([MESSAGE])


async def test_a_failed_opening_keeps_no_lock(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)
    await refusal(url_of(path), exclusive=True)
    path.unlink()
    async with open_store(url_of(path), exclusive=True):
        pass
