"""The schema of a store apart from opening it: which version it has, and what would bring it to the latest.

Owns:      `Schema`, and which store is asked for it.
Not here:  the tables and their steps (schema.py of each store); migration at start (persistence/opening.py).
Threads:   the trio thread; what blocks goes to another one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from persistence import threads
from persistence.errors import CannotOpen
from persistence.opening import POSTGRES_SCHEMES, needs_extra, open_store


class Schema(NamedTuple):
    """Which version of its schema a store has."""

    version: int
    """0: there are no tables yet."""
    latest: int
    """The version that this release needs."""


class _Kind(NamedTuple):
    """What a kind of store knows of its schema."""

    version_of: Callable[[str], int]
    """Look it up by the URL of the store; blocks."""
    latest: int
    script: Callable[[int], str]
    """Return the SQL that leads from a version to the latest."""


async def read_schema(url: str) -> Schema:
    """Return the version of the schema at ``url``. Nothing is created. A checkpoint.

    Raises:
        CannotOpen: it is no store of ours, or one of a later release.
        StoreUnavailable: it cannot be reached now.
    """
    kind = _kind_of(url)
    return Schema(await threads.to_the_end(kind.version_of, url), kind.latest)


async def migrate(url: str) -> Schema:
    """Create or upgrade the schema at ``url``, as a broker does at its start; return what it is then. A checkpoint.

    Safe beside brokers that run, and when several do it at once. Raises as `read_schema` does.
    """
    _kind_of(url)
    async with open_store(url):
        pass
    return await read_schema(url)


async def migration_sql(url: str) -> str:
    """Return the SQL that `migrate` would run now, for an administrator; empty: there is nothing to do. A checkpoint.

    Raises as `read_schema` does.
    """
    version, latest = await read_schema(url)
    return _kind_of(url).script(version) if version < latest else ""


def _kind_of(url: str) -> _Kind:
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from persistence.sqlite import opening as sqlite
        from persistence.sqlite import schema as sqlite_schema

        return _Kind(sqlite.version_of, len(sqlite_schema.STEPS), sqlite_schema.script)
    if scheme in POSTGRES_SCHEMES:
        with needs_extra("postgres"):
            from persistence.postgres import opening as postgres
            from persistence.postgres import schema as postgres_schema

        return _Kind(postgres.version_of, len(postgres_schema.STEPS), postgres_schema.script)
    if scheme == "cassandra":
        with needs_extra("cassandra"):
            from persistence.cassandra import opening as cassandra
            from persistence.cassandra import schema as cassandra_schema

        return _Kind(cassandra.version_of, len(cassandra_schema.STEPS), partial(cassandra_schema.script, url))
    if scheme == "memory":
        raise CannotOpen("a store in memory has no schema; name a store by its URL, such as sqlite:///broker.db")
    raise CannotOpen(f"no store is called {scheme!r}; write sqlite:///path, postgresql:// or cassandra://host/name")
