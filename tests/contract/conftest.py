from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest
from cassandra_keyspaces import Keyspaces
from contract_kit import MEMORY, SQLITE, Backend, Clock, cassandra_on, postgres_on
from postgres_databases import Databases

import persistence
from persistence import Store, open_store

BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "memory": lambda request: MEMORY,
    "sqlite": lambda request: SQLITE,
    "postgres": lambda request: request.getfixturevalue("postgres_backend"),
}
if Path(persistence.__file__).with_name("cassandra").joinpath("store.py").exists():
    BACKENDS["cassandra"] = lambda request: request.getfixturevalue("cassandra_backend")
DURABLE = [name for name in BACKENDS if name != "memory"]
SWEEPING = [name for name in BACKENDS if name != "cassandra"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_backend(postgres: Databases) -> Backend:
    return postgres_on(postgres)


@pytest.fixture(scope="session")
def cassandra_backend(cassandra: Keyspaces) -> Backend:
    return cassandra_on(cassandra)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each kind of store."""
    return BACKENDS[request.param](request)


@pytest.fixture
async def store(backend: Backend, tmp_path: Path, clock: Clock) -> AsyncGenerator[Store]:
    """Each kind of store, empty."""
    with backend.empty_url(tmp_path, clock) as url:
        async with open_store(url, clock=clock) as opened:
            yield opened


@pytest.fixture(params=SWEEPING)
async def sweeping_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncGenerator[Store]:
    """Each kind of store that drops by itself what has expired, step by step; empty."""
    backend = BACKENDS[request.param](request)
    assert backend.sweeps
    with backend.empty_url(tmp_path, clock) as url:
        async with open_store(url, clock=clock) as opened:
            yield opened


@pytest.fixture(params=DURABLE)
def durable_backend(request: pytest.FixtureRequest) -> Backend:
    """Each kind of store that outlives its opener."""
    backend = BACKENDS[request.param](request)
    assert backend.durable
    return backend


@pytest.fixture
def durable_url(durable_backend: Backend, tmp_path: Path, clock: Clock) -> Iterator[str]:
    """Its URL; no store is there yet."""
    with durable_backend.new_url(tmp_path, clock) as url:
        yield url
