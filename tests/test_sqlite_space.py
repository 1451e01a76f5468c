"""Space is given back: the file shrinks, the log file stays short, a step of either is small."""

# ruff: noqa: ASYNC240 (small files, and nobody else waits)

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistence import NewMessage, Store, open_store
from persistence.sqlite import purging, reading, sweeping, writing

MIB = 1024 * 1024


class Clock:
    now_us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def outside(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's handle to the file. Open it after the store."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


async def sweep_all(store: Store) -> int:
    removed, more = await store.sweep()
    while more:
        now_removed, more = await store.sweep()
        removed += now_removed
    return removed


def wal_bytes(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


@pytest.mark.parametrize(("body_bytes", "messages"), [(100, 20_000), (10_000, 400), (MIB, 8)])
async def test_the_file_shrinks_after_sweeping(path: Path, clock: Clock, body_bytes: int, messages: int) -> None:
    url = f"sqlite:///{path}"
    async with open_store(url, clock=clock) as store:
        for _ in range(4):
            batch = [NewMessage(f"s{n % 5}", b"x" * body_bytes, 60) for n in range(messages // 4)]
            await store.append([*batch, NewMessage("kept", b"kept", None)])
    full = path.stat().st_size
    assert full > body_bytes * messages
    clock.now_us += 60_000_000
    async with open_store(url, clock=clock) as store:
        assert await sweep_all(store) == messages
        page = await store.read("kept", 0, max_messages=10, max_bytes=1000)
        assert [record.id for record in page.records] == [1, 2, 3, 4]
    assert path.stat().st_size < 0.6 * MIB
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


async def test_one_step_gives_back_a_bounded_number_of_pages(path: Path, clock: Clock) -> None:
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        await store.append([NewMessage("s", b"x" * 10_000, 60)] * 500)
        clock.now_us += 60_000_000
        outside = sqlite3.connect(path, isolation_level=None)
        more, (pages,) = True, outside.execute("PRAGMA page_count").fetchone()
        while more:
            _, more = await store.sweep()
            before, (pages,) = pages, outside.execute("PRAGMA page_count").fetchone()
            assert before - pages <= sweeping.PAGES_MAX + 1  # SQLite's map of pages shrinks along
        assert pages <= 2 * sweeping.PAGES_KEPT_MIN
        outside.close()


async def test_one_step_drops_a_bounded_number_of_bytes_but_at_least_one_message(path: Path, clock: Clock) -> None:
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        await store.append([NewMessage("s", b"x" * 3 * MIB, 60)] * 4 + [NewMessage("s", b"x" * 12 * MIB, 60)])
        clock.now_us += 60_000_000
        steps = []
        more = True
        while more:
            removed, more = await store.sweep()
            steps.append(removed)
        assert [removed for removed in steps if removed] == [2, 2, 1]


async def test_free_pages_are_kept_for_what_comes_next(path: Path, clock: Clock) -> None:
    """A steady flow of expiring messages neither shrinks nor grows the file."""
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        for _ in range(10):
            await store.append([NewMessage("s", b"x" * 1000, 60)] * 1000)
            clock.now_us += 10_000_000
            await sweep_all(store)
        outside = sqlite3.connect(path, isolation_level=None)
        (pages,) = outside.execute("PRAGMA page_count").fetchone()
        for _ in range(10):
            await store.append([NewMessage("s", b"x" * 1000, 60)] * 1000)
            clock.now_us += 10_000_000
            await sweep_all(store)
            (pages_now,) = outside.execute("PRAGMA page_count").fetchone()
            assert abs(pages_now - pages) < pages // 4
        outside.close()


async def test_sweeping_writes_nothing_when_there_is_nothing_to_do(path: Path, clock: Clock) -> None:
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        await store.append([NewMessage("s", b"x", 60), NewMessage("s", b"x", None)])
        outside = sqlite3.connect(path, isolation_level=None)
        before = outside.execute("PRAGMA data_version").fetchone(), wal_bytes(path)
        for _ in range(5):
            assert await store.sweep() == (0, False)
        assert (outside.execute("PRAGMA data_version").fetchone(), wal_bytes(path)) == before
        outside.close()


async def test_the_log_file_does_not_grow_with_what_is_appended(path: Path, clock: Clock) -> None:
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        for _ in range(15):
            await store.append([NewMessage("s", b"x" * 2 * MIB, None)] * 2)
        assert path.stat().st_size > 40 * MIB
        assert wal_bytes(path) < 24 * MIB


async def test_a_log_file_that_a_long_reader_kept_growing_is_started_again(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "WAL_KEPT_BYTES", MIB)
    monkeypatch.setattr(sweeping, "LOCK_WAIT_MS", 0)
    async with open_store(f"sqlite:///{path}", clock=clock) as store:
        await store.append([NewMessage("s", b"x", None)])
        outside = sqlite3.connect(path, isolation_level=None)
        outside.execute("BEGIN")
        outside.execute("SELECT * FROM subjects").fetchall()
        await store.append([NewMessage("s", b"x" * 3 * MIB, None)])
        long = wal_bytes(path)
        assert long > 3 * MIB
        await store.sweep()  # the reader still needs the log: nothing is lost, nobody waits
        assert wal_bytes(path) == long
        outside.execute("COMMIT")
        outside.close()
        await store.sweep()
        assert wal_bytes(path) == 0
        assert (await store.head("s")).last_id == 2


async def test_no_statement_walks_a_whole_table(path: Path) -> None:
    async with open_store(f"sqlite:///{path}"):
        outside = sqlite3.connect(path)
        statements = {
            reading._SUBJECT: 1,
            reading._FIRST_KEPT: 3,
            reading._SUBJECTS: 2,
            sweeping._DUE: 2,
            sweeping._DROP: 2,
            writing._NEXT_IDS: 3,
            purging._PURGED: 4,
            purging._DROP: 3,
            purging._KEYS_TO_DROP: 1,
            purging._KEYS: 3,
        }
        plans = {sql: outside.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * count) for sql, count in statements.items()}
        named = {"now_us": 1, "subject_id": 1, "after_id": 1, "max_messages": 1, "subject": "s", "id": 1}
        for sql in (reading._PAGE, reading._MESSAGE):
            plans[sql] = outside.execute(f"EXPLAIN QUERY PLAN {sql}", named)
        for sql, plan in plans.items():
            details = [row[-1] for row in plan]
            assert not any("SCAN" in detail or "TEMP B-TREE" in detail for detail in details), (sql, details)
        outside.close()
