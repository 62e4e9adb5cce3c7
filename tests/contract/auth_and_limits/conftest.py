"""Fixtures of the stores' suites: each suite runs on every store that keeps the port's promises.

Owns their opening and closing; refuses anything else.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.auth_and_limits.hold_store import Bench, EmbeddedBench, RedisBench
from tests.redis_server import RedisServer
from tests.redis_server import redis_server as redis_server
from tests.redis_server import shared_redis as shared_redis


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedBench]:
    """The embedded store."""
    it = EmbeddedBench(tmp_path / "auth")
    await it.open()
    yield it
    await it.close()


@pytest.fixture
async def on_redis(shared_redis: RedisServer) -> AsyncIterator[RedisBench]:
    """The store on Redis."""
    it = RedisBench(shared_redis)
    await it.open()
    yield it
    await it.close()


@pytest.fixture(params=["embedded", "on_redis"])
def bench(request: pytest.FixtureRequest) -> Bench[Any]:
    """Every hold store in turn."""
    it: Bench[Any] = request.getfixturevalue(request.param)
    return it
