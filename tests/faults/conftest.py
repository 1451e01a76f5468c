from collections.abc import Iterator

import pytest
from postgres_databases import Databases
from postgres_server import PostgresServer


@pytest.fixture
def own_url(own_postgres: PostgresServer) -> Iterator[str]:
    """A database on `own_postgres`, which the test may kill, freeze or stop."""
    databases = Databases(own_postgres.dsn())
    url = databases.create()
    yield url
    own_postgres.revive()
    databases.drop(url)
