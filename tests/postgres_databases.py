"""Databases of a PostgreSQL server, one for each test that asks.

Owns:      making and dropping them; what an administrator sees and does.
Not here:  the server (postgres_server.py).
Threads:   any, one at a time; every method is a round trip, and making a database takes 20 to 300 ms.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from typing import Self
from urllib.parse import quote, urlsplit

import psycopg
from postgres_server import ASKED
from psycopg import sql

_CLIENTS = "FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)'"
_numbers = count(1)


class Databases:
    """An administrator of a server, given a URL whose role may create databases. Leaving the block drops them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []
        self._emptied: list[str] = []
        self._roles: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for url in [*self._made]:
            self.drop(url)
        for name in self._roles:
            self.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))

    def create(self) -> str:
        """Make an empty database; return its URL."""
        name = f"trio_broker_test_{os.getpid()}_{next(_numbers)}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = urlsplit(self.url)._replace(path=f"/{name}").geturl()
        self._made.append(url)
        return url

    def drop(self, url: str) -> None:
        """Drop a database that `create` made; who is still connected is cut off."""
        self.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(_name(url))))
        self._made.remove(url)

    @contextmanager
    def new(self) -> Generator[str]:
        """An empty database for the length of the block: its URL."""
        url = self.create()
        try:
            yield url
        finally:
            self.drop(url)

    @contextmanager
    def lend(self) -> Generator[str]:
        """A database without schemas for the length of the block, for who leaves nothing else there: its URL.

        It is emptied afterwards and lent again: that takes 10 ms.
        """
        url = self._emptied.pop() if self._emptied else self.create()
        yield url  # after an error it is not lent again
        self.terminate(url)
        for (name,) in self.execute(_SCHEMAS, url=url):
            self.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)), url=url)
        self._emptied.append(url)

    def create_role(self, url: str, *, password: str = "") -> str:
        """Make a role that may only log in; return ``url`` with its name. With a password it is asked for it (TCP)."""
        name = f"{ASKED if password else ''}trio_broker_test_{os.getpid()}_{next(_numbers)}"
        self.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password or None))
        )
        self._roles.append(name)
        parts = urlsplit(url)
        login = f"{name}:{quote(password)}" if password else name
        return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()

    def backends(self, url: str) -> list[int]:
        """The process ids of those that serve clients of a database."""
        return [pid for (pid,) in self.execute(f"SELECT pid {_CLIENTS}", _name(url))]

    def terminate(self, url: str) -> int:
        """End the connections of all clients of a database, as an administrator can; return how many. They are gone."""
        return len(self.execute(f"SELECT pg_terminate_backend(pid, 10000) {_CLIENTS}", _name(url)))

    def execute(self, statement: str | sql.Composed, *parameters: object, url: str | None = None) -> list[tuple]:
        """Run a statement by itself, in the database of ``url`` or else the administrator's; return its rows."""
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")
