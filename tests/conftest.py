"""What many tests stand on: a real redis-server, clean for each test."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from kvatlas.cli.redis_server import RedisServer, running_redis
from kvatlas.common import limits
from kvatlas.router.lookup import BlockIndex
from tests.fakes.index_writer import Writer
from tests.fakes.indexed_fleet import LOOKUP_S

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Captures and golden files that are not part of the repository."""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run one private redis-server for the session."""
    # A unix socket's path is short by law; pytest's own folders are not.
    with (
        tempfile.TemporaryDirectory(prefix="kva-") as folder,
        running_redis(Path(folder)) as server,
    ):
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Give the URL of an empty Redis."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def shared() -> Path:
    """Give the folder of shared facts and data, or skip."""
    if not SHARED.exists():
        pytest.skip("../shared is not there")
    return SHARED


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Redis more than 20 ms, for tests of what is found and not of how soon."""
    monkeypatch.setattr(limits, "LOOKUP_S", 2.0)


@pytest.fixture
async def writer(redis_url: str) -> AsyncIterator[Writer]:
    """Give a writer on an empty Redis."""
    made = Writer(redis_url)
    yield made
    await made.store.aclose()


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[BlockIndex]:
    """Give a reader."""
    made = BlockIndex.connect(redis_url)
    await made.warm()
    yield made
    await made.aclose()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Redis what several servers on one machine need, for tests of how soon lookups end."""
    monkeypatch.setattr(limits, "LOOKUP_S", LOOKUP_S)
