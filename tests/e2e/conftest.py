import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

# grpcio's own handlers of fork() crash it when a server is started while calls are under way
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

import pytest
from e2e_broker import DATABASE, BrokerProcess, sqlite_url
from e2e_peers import PEERS, Peer

_numbers = count(1)

STORES: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[str]]] = {
    "memory": lambda request: nullcontext("memory:"),
    "sqlite": lambda request: nullcontext(sqlite_url(request.getfixturevalue("tmp_path_factory").mktemp("store"))),
    "postgres": lambda request: request.getfixturevalue("postgres").new(),
    "cassandra": lambda request: request.getfixturevalue("cassandra").new(),
}


@pytest.fixture(scope="session", params=STORES)
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    """A broker on each kind of store, for all tests that leave it as they find it. It must never log an error."""
    with STORES[request.param](request) as url, BrokerProcess(url) as process:
        yield process
        process.stop()


@pytest.fixture(params=PEERS.values(), ids=PEERS.keys())
def peer(request: pytest.FixtureRequest) -> Peer:
    """Each gRPC library."""
    return request.param


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> str:
    """A subject of the test's own."""
    return f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())}.{next(_numbers)}"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the brokers of `sqlite_broker` keep their messages."""
    return tmp_path / DATABASE


@pytest.fixture
def sqlite_broker(tmp_path: Path) -> Callable[..., BrokerProcess]:
    """Makes brokers on one SQLite file of the test's own."""
    return lambda *flags: BrokerProcess(sqlite_url(tmp_path), *flags)
