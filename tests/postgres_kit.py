"""What the tests of the PostgreSQL store share: messages, somebody who locks and looks from outside, waiting."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, Self

import psycopg
import trio

from persistence import NO_HEADERS, Appended, NewMessage, Outcome, Record, Store, open_store
from persistence.postgres.store import PostgresStore

SAFETY_S = 30
"""What hangs fails after this long; nothing that works comes near."""

STORES = "application_name = 'trio-broker' AND datname = current_database()"
"""Of the rows of pg_stat_activity, those of stores."""


def message(subject: str = "orders", body: bytes = b"x", expiration_s: int | None = None) -> NewMessage:
    return NewMessage(subject, body, expiration_s, NO_HEADERS)


def ids(outcomes: list[Outcome]) -> list[int]:
    assert all(isinstance(outcome, Appended) for outcome in outcomes), outcomes
    return [outcome.id for outcome in outcomes if isinstance(outcome, Appended)]


async def read_all(store: Store, subject: str = "orders") -> list[Record]:
    page = await store.read(subject, 0, max_messages=10_000, max_bytes=2**30)
    assert page.scanned_to == page.last_id
    return list(page.records)


@asynccontextmanager
async def opened(url: str, *, commit_timeout_s: float = 10.0) -> AsyncGenerator[PostgresStore]:
    """A store at rest whose subject ``orders`` has one message, so that there is a row to lock."""
    async with open_store(url, commit_timeout_s=commit_timeout_s) as store:
        assert isinstance(store, PostgresStore)
        assert ids(await store.append([message(body=b"first")])) == [1]
        await settle(store)
        yield store


async def settle(store: PostgresStore) -> None:
    """Wait until there is a connection to read by, and what was appended has been announced."""
    await store.now()
    session = store._writer._session
    assert session is not None
    await store._writing.run(session.hints.finish)


class Outside:
    """Somebody else in the same database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(self.url, autocommit=True, application_name="outside")
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._connection.close()

    def do(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def holding(self, statement: str) -> Generator[psycopg.Connection]:
        """Keep the locks that a statement takes, for the length of the block."""
        with closing(psycopg.connect(self.url, application_name="outside")) as connection:
            connection.execute(statement)
            yield connection

    def holding_subject(self, subject: str = "orders") -> Any:
        return self.holding(f"SELECT FROM trio_broker.subjects WHERE name = '{subject}' FOR UPDATE")

    def stuck(self) -> list[int]:
        """The backends of stores that wait for a lock."""
        return [
            pid for (pid,) in self.do(f"SELECT pid FROM pg_stat_activity WHERE {STORES} AND wait_event_type = 'Lock'")
        ]

    def active(self) -> list[int]:
        """The backends of stores that are at work on a statement."""
        return [pid for (pid,) in self.do(f"SELECT pid FROM pg_stat_activity WHERE {STORES} AND state = 'active'")]

    def terminate(self, *pids: int) -> None:
        """End backends; return when they are gone."""
        for pid in pids:
            assert self.do("SELECT pg_terminate_backend(%s, 10000)", pid) == [(True,)]

    def terminate_all(self) -> None:
        self.terminate(*[pid for (pid,) in self.do(f"SELECT pid FROM pg_stat_activity WHERE {STORES}")])


def set_standbys(outside: Outside, names: str) -> None:
    outside.do(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    outside.do("SELECT pg_reload_conf()")


def waiting_for_standby(outside: Outside) -> list[int]:
    return [pid for (pid,) in outside.do("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")]


async def until(condition: Callable[[], object]) -> None:
    """Ask again and again, each time from the database: there is nobody to be told by."""
    with trio.fail_after(SAFETY_S):
        while not condition():
            await trio.lowlevel.checkpoint()


class Task:
    """A call in a task of its own: what it returned or raised, once it has."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Any], *args: object) -> None:
        self._ended = trio.Event()
        self._result: Any = None
        self._error: Exception | None = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call, *args)

    async def _run(self, call: Callable[..., Any], *args: object) -> None:
        try:
            with self.scope:
                self._result = await call(*args)
        except Exception as error:  # noqa: BLE001 (`result` raises it)
            self._error = error
        finally:
            self._ended.set()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    async def result(self) -> Any:
        with trio.fail_after(SAFETY_S):
            await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result
