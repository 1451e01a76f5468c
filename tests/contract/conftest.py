from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from contract_kit import BACKENDS, Backend, Clock

from persistence import Store, open_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture
async def store(backend: Backend, tmp_path: Path, clock: Clock) -> AsyncGenerator[Store]:
    """Each kind of store, new and empty."""
    async with open_store(backend.new_url(tmp_path), clock=clock) as opened:
        yield opened


@pytest.fixture(
    params=[backend for backend in BACKENDS if backend.durable],
    ids=lambda backend: backend.name,
)
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each kind of store that outlives its opener; no store is there yet."""
    return request.param.new_url(tmp_path)
