import os
from collections.abc import Iterator

# grpcio's own handlers of fork() crash it when a broker is started while calls are under way
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

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
