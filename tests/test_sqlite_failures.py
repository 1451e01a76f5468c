"""What a failing SQLite means: which error, nothing applied, and a store that works again afterwards."""

# ruff: noqa: ASYNC240 (small files, and nobody else waits)

import errno
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from persistence import (
    Appended,
    BadContent,
    CannotOpen,
    Head,
    Key,
    NewMessage,
    OutcomeUnknown,
    Record,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
    open_store,
)
from persistence.sqlite import connection, opening, presence, sweeping


class Faulty(sqlite3.Connection):
    """A connection on which chosen statements fail."""

    faults: ClassVar[dict[str, int]] = {}
    lock_waits_ms: ClassVar[list[int]] = []
    """How long each transaction that writes would wait for a lock."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            self.lock_waits_ms += super().execute("PRAGMA busy_timeout").fetchone()
        if sql in self.faults:
            raise error_of(self.faults[sql])
        return super().execute(sql, *parameters)


def error_of(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("planted")
    error.sqlite_errorcode = code
    error.sqlite_errorname = f"code {code}"
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections that write, in the order in which they were opened; the last one is in use."""
    opened: list[sqlite3.Connection] = []
    set_up = opening.set_up_writer

    def remember(connection: sqlite3.Connection) -> None:
        set_up(connection)
        opened.append(connection)

    monkeypatch.setattr(opening, "set_up_writer", remember)
    return opened


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Statements that are to fail, with the error's code, on every connection."""
    planted: dict[str, int] = {}
    real_connect = sqlite3.connect
    monkeypatch.setattr(Faulty, "faults", planted)
    monkeypatch.setattr(Faulty, "lock_waits_ms", [])
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: real_connect(*args, **kwargs, factory=Faulty))
    return planted


@pytest.fixture
async def store(path: Path, writers: list[sqlite3.Connection], faults: dict[str, int]) -> AsyncGenerator[Store]:
    """A store whose subject ``orders`` has one message."""
    async with open_store(f"sqlite:///{path}", commit_timeout_s=0.001) as opened:
        await opened.append([message(b"first")])
        yield opened


def message(body: bytes = b"x", subject: str = "orders") -> NewMessage:
    return NewMessage(subject, body, None)


async def refused(store: Store, kind: type[StoreError], *batch: NewMessage) -> str:
    """Append a batch that must fail, and check that nothing of it was applied."""
    with pytest.raises(kind) as raised:
        await store.append(batch)
    assert await store.head("orders") == Head(1, 1)
    assert await store.head("other") == Head(1, 0)
    assert [type(found) for found in await store.get([Key("orders", 1)])] == [Record]
    return str(raised.value)


async def works_again(store: Store) -> None:
    (outcome,) = await store.append([message(b"second")])
    assert isinstance(outcome, Appended)
    assert outcome.id == 2
    assert await store.head("orders") == Head(1, 2)


async def test_a_full_disk_and_space_that_returns(store: Store, path: Path, writers: list[sqlite3.Connection]) -> None:
    (pages,) = writers[-1].execute("PRAGMA page_count").fetchone()
    writers[-1].execute(f"PRAGMA max_page_count = {pages + 50}")
    text = await refused(store, StoreFull, message(), message(b"x" * 1_000_000, "other"))
    assert str(path) in text
    assert "full" in text
    await refused(store, StoreFull, *[message(b"x" * 10_000, f"s{n}") for n in range(100)])
    writers[-1].execute("PRAGMA max_page_count = 1000000")
    await works_again(store)


async def test_a_full_disk_that_shows_at_the_commit(store: Store, faults: dict[str, int]) -> None:
    faults["COMMIT"] = sqlite3.SQLITE_FULL
    await refused(store, StoreFull, message())
    faults.clear()
    await works_again(store)


@pytest.mark.parametrize("resolution", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_trigger_that_refuses_a_body_refuses_the_batch(store: Store, path: Path, resolution: str) -> None:
    outside = sqlite3.connect(path)
    outside.execute(
        "CREATE TRIGGER picky BEFORE INSERT ON messages WHEN NEW.body = CAST('poison' AS BLOB) "
        f"BEGIN SELECT RAISE({resolution}, 'poison is not taken'); END"
    )
    outside.close()
    text = await refused(store, BadContent, message(), message(b"poison"), message(b"good", "other"))
    assert "poison is not taken" in text
    await works_again(store)


async def test_a_body_beyond_what_sqlite_can_hold(store: Store, writers: list[sqlite3.Connection]) -> None:
    writers[-1].setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    await refused(store, BadContent, message(), message(b"x" * 100_001))
    await works_again(store)


async def test_a_lock_held_for_longer_than_the_commit_timeout(store: Store, path: Path) -> None:
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN IMMEDIATE")
    assert "locked" in await refused(store, StoreUnavailable, message())
    with pytest.raises(StoreUnavailable):
        await store.compare_and_set("r", b"", version=0)
    with pytest.raises(StoreUnavailable):
        await store.delete("r", version=1)
    outside.execute("ROLLBACK")
    outside.close()
    await works_again(store)


async def test_a_sweep_waits_for_no_lock_and_appends_still_do(path: Path, faults: dict[str, int]) -> None:
    now_us = [0]
    async with open_store(f"sqlite:///{path}", commit_timeout_s=60, clock=lambda: now_us[0]) as store:
        await store.append([NewMessage("orders", b"x", 1)])
        now_us[0] = 2_000_000
        outside = sqlite3.connect(path, isolation_level=None)
        outside.execute("BEGIN IMMEDIATE")
        Faulty.lock_waits_ms.clear()
        assert await store.sweep() == (0, False)
        assert Faulty.lock_waits_ms == [sweeping.LOCK_WAIT_MS]
        outside.execute("ROLLBACK")
        outside.close()
        assert await store.sweep() == (1, False)
        await store.append([message()])
        assert Faulty.lock_waits_ms == [sweeping.LOCK_WAIT_MS, sweeping.LOCK_WAIT_MS, 30_000]


async def test_a_sweep_on_a_connection_that_breaks_leaves_one_that_waits_for_locks(
    path: Path, faults: dict[str, int]
) -> None:
    now_us = [0]
    async with open_store(f"sqlite:///{path}", commit_timeout_s=60, clock=lambda: now_us[0]) as store:
        await store.append([NewMessage("orders", b"x", 1)])
        now_us[0] = 2_000_000
        faults.update({"COMMIT": sqlite3.SQLITE_IOERR_FSYNC, "ROLLBACK": sqlite3.SQLITE_IOERR})
        with pytest.raises(OutcomeUnknown):
            await store.sweep()
        faults.clear()
        Faulty.lock_waits_ms.clear()
        await store.append([message()])
        assert Faulty.lock_waits_ms == [30_000]


async def test_a_store_that_became_read_only(store: Store, writers: list[sqlite3.Connection]) -> None:
    writers[-1].execute("PRAGMA query_only = ON")
    await refused(store, StoreUnavailable, message())
    writers[-1].execute("PRAGMA query_only = OFF")
    await works_again(store)


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT]
)
async def test_an_error_before_the_commit_is_known_to_have_changed_nothing(
    store: Store, faults: dict[str, int], code: int
) -> None:
    faults["BEGIN IMMEDIATE"] = code
    await refused(store, StoreUnavailable, message())
    faults.clear()
    await works_again(store)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_NOMEM])
async def test_an_input_or_output_error_at_the_commit_leaves_the_outcome_unknown(
    store: Store, faults: dict[str, int], code: int
) -> None:
    faults["COMMIT"] = code
    assert "while committing" in await refused(store, OutcomeUnknown, message())
    faults.clear()
    await works_again(store)


async def test_a_busy_commit_is_known_to_have_changed_nothing(store: Store, faults: dict[str, int]) -> None:
    faults["COMMIT"] = sqlite3.SQLITE_BUSY
    await refused(store, StoreUnavailable, message())
    faults.clear()
    await works_again(store)


async def test_a_connection_that_cannot_roll_back_is_replaced(
    store: Store, faults: dict[str, int], writers: list[sqlite3.Connection]
) -> None:
    faults.update({"COMMIT": sqlite3.SQLITE_IOERR_FSYNC, "ROLLBACK": sqlite3.SQLITE_IOERR})
    with pytest.raises(OutcomeUnknown):
        await store.append([message()])
    faults.clear()
    faults["PRAGMA synchronous = FULL"] = sqlite3.SQLITE_IOERR  # the new connection fails too
    await refused(store, StoreUnavailable, message())
    faults.clear()
    await works_again(store)
    assert len(writers) == 2


async def test_a_file_replaced_by_another_applications_is_not_written_to(
    store: Store, path: Path, faults: dict[str, int]
) -> None:
    faults.update({"COMMIT": sqlite3.SQLITE_IOERR_FSYNC, "ROLLBACK": sqlite3.SQLITE_IOERR})
    with pytest.raises(OutcomeUnknown):
        await store.append([message()])
    faults.clear()
    outside = sqlite3.connect(path)
    outside.execute("PRAGMA application_id = 7")
    with pytest.raises(StoreUnavailable, match="another application"):
        await store.append([message()])
    outside.close()


def delete(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


async def test_a_file_that_was_deleted_takes_nothing_more(store: Store, path: Path) -> None:
    delete(path)
    for call in (
        store.append([message()]),
        store.now(),
        store.sweep(),
        store.compare_and_set("r", b"", version=0),
        store.delete("r", version=1),
    ):
        with pytest.raises(StoreUnavailable, match="deleted or replaced") as raised:
            await call
        assert str(path) in str(raised.value)
    assert not list(path.parent.iterdir())


async def test_a_file_that_was_replaced_takes_nothing_more_until_it_is_put_back(store: Store, path: Path) -> None:
    aside = path.rename(path.with_name("aside.db"))
    path.write_bytes(aside.read_bytes())
    assert "deleted or replaced" in await refused(store, StoreUnavailable, message())
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.now()
    aside.replace(path)
    await works_again(store)
    await store.now()


async def test_a_file_in_a_directory_that_cannot_be_looked_into_takes_nothing_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patching:
        patching.setattr(presence.os, "stat", refuse)
        assert "log.db: Permission denied" in await refused(store, StoreUnavailable, message())
    await works_again(store)


async def test_a_connection_that_is_replaced_makes_no_new_file(
    store: Store, path: Path, faults: dict[str, int]
) -> None:
    faults.update({"COMMIT": sqlite3.SQLITE_IOERR_FSYNC, "ROLLBACK": sqlite3.SQLITE_IOERR})
    with pytest.raises(OutcomeUnknown):
        await store.append([message()])
    faults.clear()
    delete(path)
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.append([message()])
    assert not list(path.parent.iterdir())


async def test_a_read_that_fails_leaves_its_connection_usable(store: Store, faults: dict[str, int]) -> None:
    for code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_BUSY):
        faults["BEGIN"] = code
        for _ in range(opening.READERS + 1):
            with pytest.raises(StoreUnavailable):
                await store.head("orders")
        faults.clear()
        assert await store.head("orders") == Head(1, 1)


async def test_a_corrupt_file_is_unavailable(path: Path) -> None:
    url = f"sqlite:///{path}"
    async with open_store(url) as store:
        await store.append([message(b"x" * 500)] * 100)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    async with open_store(url) as store:
        for call in (store.append([message()]), store.head("orders"), store.sweep(), store.now(), store.load("r")):
            with pytest.raises(StoreUnavailable, match="malformed"):
                await call


async def test_a_file_that_another_process_is_switching_to_a_log_is_tried_again(
    path: Path, faults: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults["PRAGMA journal_mode = WAL"] = sqlite3.SQLITE_BUSY
    with pytest.raises(CannotOpen, match="planted; another process keeps it locked"):
        async with open_store(f"sqlite:///{path}", commit_timeout_s=0):
            pass
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: faults.clear())
    async with open_store(f"sqlite:///{path}") as store:
        await store.append([message()])


async def test_a_table_that_is_gone_is_unavailable(store: Store, path: Path) -> None:
    outside = sqlite3.connect(path)
    outside.execute("ALTER TABLE messages RENAME TO gone")
    with pytest.raises(StoreUnavailable, match="no such table"):
        await store.append([message()])
    outside.execute("ALTER TABLE gone RENAME TO messages")
    outside.close()
    await works_again(store)


async def test_a_bug_of_the_caller_is_not_taken_for_the_databases(store: Store) -> None:
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.InterfaceError)):
        await store.append([message(), message(object())])  # type: ignore[arg-type]
    assert await store.head("orders") == Head(1, 1)
    await works_again(store)
