"""Keyspaces of a Cassandra cluster, one for each test that asks.

Owns:      naming and dropping them; what an administrator sees and does.
Not here:  making them, which a store does when it opens; the server (cassandra_server.py).
Threads:   any, one at a time; every method is a round trip. The driver has threads of its own while a block lasts.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session
from cassandra.policies import WhiteListRoundRobinPolicy

PATIENCE_S = 30
"""No answer takes this long, not even to a change of the schema on a busy machine."""

PORT = 9042
"""Where a URL names none."""

_numbers = count(1)


@contextmanager
def connected(url: str) -> Generator[Session]:
    """A session with the hosts of a URL and no others, for the length of the block; its keyspace need not be there.

    All are asked at one port, the first that the URL names.
    """
    parts = urlsplit(url)
    names, ports = zip(*[_place(host) for host in parts.netloc.rpartition("@")[2].split(",")], strict=True)
    profile = ExecutionProfile(
        load_balancing_policy=WhiteListRoundRobinPolicy(names),
        consistency_level=ConsistencyLevel.QUORUM,
        serial_consistency_level=ConsistencyLevel.SERIAL,
        request_timeout=PATIENCE_S,
    )
    cluster = Cluster(
        names,
        port=next(filter(None, ports), PORT),
        auth_provider=_login(parts),
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=4,
        connect_timeout=PATIENCE_S,
        control_connection_timeout=PATIENCE_S,
    )
    try:
        yield cluster.connect()
    finally:
        cluster.shutdown()


class Keyspaces:
    """An administrator of a cluster, given the URL of a store on it (its keyspace does not matter)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._emptied: list[str] = []

    def __enter__(self) -> Self:
        self._connected = connected(self.url)
        self._session = self._connected.__enter__()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        try:
            for url in self._emptied:
                self._drop(url)
        finally:
            self._connected.__exit__(None, None, None)

    @contextmanager
    def new(self) -> Generator[str]:
        """The URL of a keyspace that is not there yet, for the length of the block; whoever made it, it is dropped."""
        url = self._new_url()
        try:
            yield url
        finally:
            self._drop(url)

    @contextmanager
    def lend(self) -> Generator[str]:
        """The URL of a keyspace without rows, for the length of the block, for who leaves nothing else there.

        It may have the tables that a store made. It is emptied afterwards and lent again: that takes a tenth of the
        time of making tables and dropping them, which is a second or so.
        """
        url = self._emptied.pop() if self._emptied else self._new_url()
        yield url  # after an error it is not lent again
        self._truncate(url)
        self._emptied.append(url)

    def execute(self, statement: str, *parameters: object) -> list[Any]:
        """Run a statement by itself, in no keyspace; return its rows."""
        return list(self._session.execute(statement, parameters or None))

    def _new_url(self) -> str:
        return urlsplit(self.url)._replace(path=f"/trio_broker_test_{os.getpid()}_{next(_numbers)}").geturl()

    def _drop(self, url: str) -> None:
        self.execute(f"DROP KEYSPACE IF EXISTS {keyspace_of(url)}")

    def _truncate(self, url: str) -> None:
        keyspace = keyspace_of(url)
        tables = self.execute("SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s", keyspace)
        for truncating in [self._session.execute_async(f"TRUNCATE {keyspace}.{table}") for (table,) in tables]:
            truncating.result()


def keyspace_of(url: str) -> str:
    """The name of the keyspace that a URL names."""
    return urlsplit(url).path.removeprefix("/")


def _place(host: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{host}")
    assert parts.hostname is not None, "the URL must name a host"
    return parts.hostname, parts.port


def _login(parts: SplitResult) -> PlainTextAuthProvider | None:
    if parts.username is None:
        return None
    return PlainTextAuthProvider(unquote(parts.username), unquote(parts.password or ""))
