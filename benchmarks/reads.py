"""The same rows by the plain driver, without a broker: what reading a log takes at least.

Owns:      `PlainReads`, a load that reads all rows of a subject by pages, as tuples.
"""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing

import psycopg
import trio

from benchmarks.loads import EXPIRATION_S, Load, Measured, fresh_subject
from benchmarks.servers import SCRATCH, Server
from persistence import NewMessage, open_store
from trio_broker.replay import PAGE_MESSAGES

FILL_MESSAGES = 1000
_SQLITE = """
    SELECT id, body, headers, time_us, expires_us FROM messages
    WHERE subject_id = (SELECT id FROM subjects WHERE name = ?) AND id > ? ORDER BY id LIMIT ?
"""
_POSTGRES = """
    SELECT id, body, headers, published_at, expires_at FROM trio_broker.messages
    WHERE subject_id = (SELECT id FROM trio_broker.subjects WHERE name = %s) AND id > %s ORDER BY id LIMIT %s
"""
ReadPage = Callable[[str, int], list[tuple]]
"""Reads what follows an id in a subject."""


class PlainReads(Load):
    """Read ``messages`` rows, whose bodies have ``body`` bytes, again and again, by pages as large as the broker's.

    They are in a store of their own: on the side's database, or else in a new SQLite file.
    """

    def __init__(self, *, messages: int, body: int) -> None:
        self._messages = messages
        self._body = body

    def missing(self) -> str:
        """Nothing is needed."""
        return ""

    def run(self, server: Server, seconds: float) -> Measured:
        """Fill a subject, and read it for ``seconds``, at least once; the CPU time is this process's."""
        if server.database:
            subject = trio.run(self._fill, server.database.url)
            with psycopg.connect(server.database.url, autocommit=True) as connection:
                return self._read_for(server, seconds, subject, _by_psycopg(connection))
        with tempfile.TemporaryDirectory(dir=SCRATCH) as directory:
            subject = trio.run(self._fill, f"sqlite:///{directory}/store.db")
            with closing(sqlite3.connect(f"{directory}/store.db")) as connection:
                return self._read_for(server, seconds, subject, _by_sqlite3(connection))

    async def _fill(self, url: str) -> str:
        """Append the messages to a new subject. A checkpoint."""
        subject = fresh_subject()
        flush = [NewMessage(subject, bytes(self._body), EXPIRATION_S)] * FILL_MESSAGES
        async with open_store(url) as store:
            for _ in range(self._messages // FILL_MESSAGES):
                await store.append(flush)
        return subject

    def _read_for(self, server: Server, seconds: float, subject: str, read_page: ReadPage) -> Measured:
        problem = self._read_once(subject, read_page)
        database_cpu_s, cpu_s, began = server.database_cpu_s(), time.process_time(), time.perf_counter()
        calls = 0
        while not calls or time.perf_counter() < began + seconds:
            problem = problem or self._read_once(subject, read_page)
            calls += self._messages
        return Measured(
            calls=calls,
            seconds=time.perf_counter() - began,
            server_cpu_s=time.process_time() - cpu_s,
            database_cpu_s=server.database_cpu_s() - database_cpu_s,
            problem=problem,
        )

    def _read_once(self, subject: str, read_page: ReadPage) -> str:
        """Read all; say what is wrong with it."""
        count = last_id = 0
        while page := read_page(subject, last_id):
            count, last_id = count + len(page), page[-1][0]
        return "" if count == last_id == self._messages else f"{count} rows up to id {last_id}, not {self._messages}"


def _by_sqlite3(connection: sqlite3.Connection) -> ReadPage:
    return lambda subject, after_id: connection.execute(_SQLITE, (subject, after_id, PAGE_MESSAGES)).fetchall()


def _by_psycopg(connection: psycopg.Connection) -> ReadPage:
    # in the binary format, which takes half the time of the default
    return lambda subject, after_id: connection.execute(
        _POSTGRES, (subject, after_id, PAGE_MESSAGES), binary=True
    ).fetchall()
